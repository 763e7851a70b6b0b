"""What the worst events cost to fold: python benchmarks/hostile.py [NAME …]

Each is within 16 MiB. A line says the seconds of one core and the MiB that it took to decode the
event, fold it into both tables and encode the rows, in a process of its own, beyond what that had
before, and what became of the event.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice, product
from typing import Any, Final

import msgspec

from session_projector.projections import BUILT_IN
from session_projector.projections.event import MAX_EVENT_BYTES, LogRow
from session_projector.projections.fold import fold, read
from session_projector.projections.scanner import MAX_CONTAINERS

HEAD: Final = b"\x82\xa4type\xaesession_append\xa4data\x81\xa8messages"
JSON: Final = '{"type":"session_append","data":{"messages":['
ROOM: Final = MAX_EVENT_BYTES - 100
MOST: Final = MAX_CONTAINERS - 5


def packed(
    unit: bytes, most: int = ROOM, values: int = 1, first: bytes = b"\x91\x81\xa1a"
) -> bytes:
    """A message with a list that repeats some bytes, which are so many values."""
    count = min(ROOM // len(unit), most)
    return HEAD + first + b"\xdd" + (count * values).to_bytes(4, "big") + unit * count


def spread(unit: bytes, values: int = 1) -> bytes:
    """As many lists as there may be, with as much of the unit in each as there is room for."""
    count = (ROOM // MOST - 3) // len(unit)
    return packed(b"\xdc" + (count * values).to_bytes(2, "big") + unit * count, MOST)


def text(*units: tuple[str, int]) -> str:
    """The same in JSON: so many times each unit, the last one as often as there is room."""
    body = "".join(unit * count for unit, count in units[:-1])
    unit = units[-1][0]
    room = ROOM - len(body.encode())
    return JSON + '{"a":[' + body + unit * (room // len(unit.encode()) - 1) + unit[:-1] + "]}]}}"


def many_names(value: str) -> str:
    """A message in JSON whose names have four letters and all have this value."""
    letters = [chr(n) for n in range(32, 127) if chr(n) not in '"\\']
    names = islice(product(letters, repeat=4), ROOM // (8 + len(value)))
    return JSON + "{" + ",".join(f'"{"".join(name)}":{value}' for name in names) + "}]}}"


def long_text(characters: bytes) -> bytes:
    return b"\xdb" + len(characters).to_bytes(4, "big") + characters


def map_head(entries: int) -> bytes:
    return b"\xdf" + entries.to_bytes(4, "big")


E_ACUTE: Final = b"\xc3\xa9"
LATE: Final = b"\xd6\xff\xff\xff\xff\xff"
USER: Final = b"\xa4role\xa4user"
CONTENT: Final = b"\x91\x82" + USER + b"\xa7content"
NUMBERS: Final = b"\x01\xc0" * (ROOM // 2)
PART: Final = b"\x81\x01\xda\x00\x98" + b"x" * 152
EVENTS: Final[dict[str, Callable[[], Any]]] = {
    "too many empty maps": lambda: packed(b"\x80"),
    "empty maps": lambda: packed(b"\x80", MOST),
    "lists of 15 values": lambda: packed(b"\x9f" + b"\xc0" * 15, MOST),
    "maps in lists": lambda: packed(b"\xc0\x91\xc0", MOST, 2),
    "lists 250 deep": lambda: packed(b"\x91" * 250 + b"\xc0", MOST // 250),
    "runs in lists": lambda: spread(b"\xc0"),
    "mixed runs in lists": lambda: spread(b"\xc0\xcc\x80", 2),
    "mixed texts in lists": lambda: spread(b"\xa1x\xa2" + E_ACUTE, 2),
    "runs of 511 values": lambda: packed(b"\xc0\xcc\x80" * 255 + b"\x90", values=511),
    "one byte a value": lambda: packed(b"\xc0"),
    "one and two bytes a value": lambda: packed(b"\xc0\xcc\x80", values=2),
    "two and three bytes a value": lambda: packed(b"\xcc\x80\xcd\x80\x80", values=2),
    "texts of one byte": lambda: packed(b"\xa1x"),
    "short texts": lambda: packed(b"\xa2" + E_ACUTE),
    "texts of 16 bytes, long form": lambda: packed(b"\xda\x00\x10" + b"x" * 16),
    "texts of 32 bytes": lambda: packed(b"\xd9\x20" + E_ACUTE * 16),
    "empty extensions": lambda: packed(b"\xc7\x00\x05"),
    "times out of range": lambda: packed(LATE + b"\xa2" + E_ACUTE, values=2),
    "messages": lambda: packed(b"\x80", MOST, first=b""),
    "number keys": lambda: HEAD + b"\x91" + map_head(ROOM // 2) + NUMBERS,
    "number keys of a user": lambda: HEAD + b"\x91" + map_head(ROOM // 2 + 1) + NUMBERS + USER,
    "number keys of the event": lambda: map_head(ROOM // 2 + 2) + NUMBERS + HEAD[1:] + b"\x91\x80",
    "content of nothings": lambda: packed(b"\xc0", first=CONTENT),
    "content of parts": lambda: packed(PART, MOST, first=CONTENT),
    "content of white space": lambda: HEAD + CONTENT + long_text(b" " * ROOM),
    "content of short words": lambda: HEAD + CONTENT + long_text(b"x " * (ROOM // 2)),
    "one wide character": lambda: (
        HEAD + CONTENT + long_text(b"\xf0\x9f\xa4\x96" + b"x" * (ROOM - 4))
    ),
    "cut short": lambda: packed(b"\xa1x\xa2" + E_ACUTE, values=2)[:-1],
    "not UTF-8": lambda: packed(b"\xa1x\xa2" + E_ACUTE, values=2)[:-1] + b"\xff",
    "JSON: too many maps": lambda: text(("{},", 0)),
    "JSON: maps, then texts": lambda: text(('{"a":1},', MOST), ('"a",', 0)),
    "JSON: nested maps": lambda: text(('[[{"a":1}]],', MOST // 3), ('"a",', 0)),
    "JSON: texts of one letter": lambda: text(('"a",', 0)),
    "JSON: texts of two letters": lambda: text(('"éé",', 0)),
    "JSON: fractions": lambda: text(("0.1,", 0)),
    "JSON: one exponent, fractions": lambda: text(("1e300,", 1), ("0.1,", 0)),
    "JSON: exponents": lambda: text(("1e300,", 0)),
    "JSON: digits": lambda: text(("1" * 4000 + ",", 0)),
    "JSON: one map of numbers": lambda: many_names("1"),
    "JSON: one map of texts": lambda: many_names('"b"'),
    "JSON: escapes": lambda: JSON + '{"a":"' + "\\u0000" * (ROOM // 6 - 20) + '"}]}}',
    "JSON: brackets in texts": lambda: text(('"[",', 0)),
    "JSON: brackets": lambda: JSON + "[" * ROOM,
    "JSON: quotes and brackets": lambda: JSON + '"[' * (ROOM // 2),
    "JSON: closing brackets": lambda: JSON + "]" * ROOM,
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(data: Any) -> tuple[float, float, str]:
    created = msgspec.msgpack.encode({"type": "session_created", "data": {"project": "web"}})
    first = read([LogRow(1, "e1", "A-1", created, 0)])
    views = {p.name: fold(p, {}, first).views for p in BUILT_IN}
    row = LogRow(2, "e2", "A-1", data, 0)
    verdict = "folded"
    before, started = peak_mib(), time.process_time()
    events = read([row])
    for projection in BUILT_IN:
        folded = fold(projection, views[projection.name], events)
        for view in folded.views.values():
            projection.to_row(view)
        verdict = "skipped" if folded.skipped else verdict
        verdict = folded.quarantined[0].reason if folded.quarantined else verdict
    return time.process_time() - started, peak_mib() - before, verdict


def main() -> None:
    if len(sys.argv) != 2:
        for name in sys.argv[1:] or EVENTS:
            subprocess.run([sys.executable, __file__, name], check=True)
        return
    took_s, mib, verdict = cost(EVENTS[sys.argv[1]]())
    print(f"{sys.argv[1]:32}{took_s:6.2f} s{mib:6.0f} MiB  {verdict[:60]}", flush=True)


if __name__ == "__main__":
    main()
