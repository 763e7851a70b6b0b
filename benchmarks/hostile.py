"""What the worst events cost to decode: python benchmarks/hostile.py

Each is within 16 MiB. A line says the seconds of one core and the MiB that decoding it took in a
process of its own, beyond what that had before, and what became of the event.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from session_projector.projections.decode import decode
from session_projector.projections.event import MAX_EVENT_BYTES, LogRow, Unfoldable

HEAD: Final = b"\x82\xa4type\xaesession_append\xa4data\x81\xa8messages\x91\x81\xa1a\xdd"
JSON: Final = '{"type":"session_append","data":{"messages":[{"a":['
ROOM: Final = MAX_EVENT_BYTES - 64


def packed(unit: bytes, most: int = ROOM, values: int = 1) -> bytes:
    """A message with a list that repeats some bytes, which are so many values."""
    count = min(ROOM // len(unit), most)
    return HEAD + (count * values).to_bytes(4, "big") + unit * count


def text(*units: tuple[str, int]) -> str:
    """The same in JSON: so many times each unit, the last one as often as there is room."""
    body = "".join(unit * count for unit, count in units[:-1])
    last = units[-1][0]
    return JSON + body + last * ((ROOM - len(body)) // len(last) - 1) + last[:-1] + "]}]}}"


EVENTS: Final[dict[str, Callable[[], Any]]] = {
    "empty maps": lambda: packed(b"\x80"),
    "a million empty maps": lambda: packed(b"\x80", 999_995),
    "a million lists of 15 values": lambda: packed(b"\x9f" + b"\xc0" * 15, 999_995),
    "maps in lists": lambda: packed(b"\xc0\x91\xc0", 999_995, 2),
    "runs of 17 values": lambda: packed(b"\xc0" * 17 + b"\x90", 900_000, 18),
    "lists 250 deep": lambda: packed(b"\x91" * 250 + b"\xc0", 3_900),
    "one byte a value": lambda: packed(b"\xc0"),
    "short texts": lambda: packed(b"\xa2\xc3\xa9"),
    "texts of 32 bytes": lambda: packed(b"\xd9\x20" + b"x" * 32),
    "times out of range": lambda: packed(b"\xd6\xff\xff\xff\xff\xff\xa2\xc3\xa9", values=2),
    "JSON: a million maps, then texts": lambda: text(('{"a":1},', 999_000), ('"ab",', 0)),
    "JSON: nested maps": lambda: text(('[[{"a":1}]],', 333_000), ('"ab",', 0)),
    "JSON: short texts": lambda: text(('"ab",', 0)),
    "JSON: empty maps": lambda: text(("{},", 0)),
    "JSON: escapes": lambda: JSON + '"' + "\\u0000" * (ROOM // 6 - 20) + '"]}]}}',
    "JSON: brackets in texts": lambda: text(('"[",', 0)),
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if len(sys.argv) == 1:
        for name in EVENTS:
            subprocess.run([sys.executable, __file__, name], check=True)
        return
    row = LogRow(1, "e", "A-1", EVENTS[sys.argv[1]](), 0)
    before, started = peak_mib(), time.process_time()
    verdict = "folded"
    try:
        decode(row)
    except Unfoldable as error:
        verdict = str(error)
    took_s = time.process_time() - started
    print(f"{sys.argv[1]:34}{took_s:6.2f} s{peak_mib() - before:6.0f} MiB  {verdict}")


if __name__ == "__main__":
    main()
