"""Fuzz the decoder and both folds: python benchmarks/fuzz_decoder.py [--events N] [--seed N].

Valid, odd, mutated and random rows go through `projections.fold` as in the daemon: in batches, with
every view stored as its row in between. Nothing may raise, no reason may name a fault in the code,
and no row may be reported as damaged. The digest over every verdict, reason and row is the same on
every version of Python.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar

import msgpack
import msgspec

from session_projector.projections import BUILT_IN
from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import FAULT, Projection

T0: Final = 1_700_000_000_000
FORGET_EVENTS: Final = 4000
"""The number of events after which all views are dropped, so that sessions are created again."""
SESSIONS: Final = ("A-1", "A-2", "session:A-1", "grün", "頁-3")
STATUSES: Final = ("ready", "in-progress", "review", "done")
WORDS: Final = ("fix", "the", "Formular", "  ", "\n\t", "頁", "\U0001f916", "", "x" * 90, "\x00")
_T = TypeVar("_T")


class Result(msgspec.Struct):
    """The result of a run; `faults` must be empty."""

    verdicts: Counter[str]
    reasons: Counter[str]
    faults: list[str]
    digest: str


class Chance:
    """Random choices from `Random.random` only, which gives the same numbers on every Python."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def below(self, bound: int) -> int:
        return int(self.random() * bound)

    def of(self, options: Sequence[_T]) -> _T:
        return options[int(self.random() * len(options))]

    def one_in(self, number: int) -> bool:
        return self.random() * number < 1

    def bytes(self, length: int) -> bytes:
        return bytes(self.below(256) for _ in range(length))


# Wrong values for a row, an event, its data or a message.


def nested(depth: int, *, maps: bool) -> Any:
    """Nest maps or lists around None."""
    value: Any = None
    for _ in range(depth):
        value = {"k": value} if maps else [value]
    return value


def extension(chance: Chance) -> msgpack.ExtType:
    """Make an extension type of any code (-1, the byte 255, is for timestamps) and any length."""
    code = chance.of((0, 1, 5, 42, 127))
    return msgpack.ExtType(code, chance.bytes(chance.of((0, 1, 2, 3, 4, 8, 12, 16, 17))))


def timestamp(chance: Chance) -> msgpack.Timestamp:
    """Make a timestamp inside or outside of Python's range."""
    seconds = chance.of((0, 1, T0 // 1000, 2**32 - 1, 2**34 - 1, 2**34, 2**62, -1, -(2**63)))
    return msgpack.Timestamp(seconds, chance.of((0, 1, 999_999_999)))


def odd_key(chance: Chance) -> Any:
    """Make a map key that is not plain text."""
    plain = (0, -1, 2**64 - 1, 1.5, float("nan"), None, True, b"k", "", "\ud800", (), (1, ("x",)))
    return chance.of((chance.of(plain), chance.of(plain), extension(chance), timestamp(chance)))


def odd(chance: Chance) -> Any:
    """Make a value of any type."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: chance.of((None, True, False, 0, -1, 5, 5.0, -0.0, 1.5, T0, float(T0))),
        lambda: chance.of((2**31, 2**53, 2**53 + 1, -(2**53), 2**63, 2**64 - 1, -(2**63))),
        lambda: chance.of((float("nan"), float("inf"), float("-inf"), 1e300, 5e-324)),
        lambda: chance.of(("", "session:", "\ud800", "a\udfffb", "\x00", "\ufeff", "x" * 300)),
        lambda: chance.of((b"", b"\xff\xfe", b"x" * 300)),
        lambda: chance.of(([], [None], [[]], [{}], {}, {"role": "user"}, [{}, 1])),
        lambda: {odd_key(chance): chance.below(9), "role": "user"},
        lambda: [{odd_key(chance): "x", "content": text(chance)}],
        lambda: extension(chance),
        lambda: timestamp(chance),
        lambda: nested(chance.of((3, 100, 250, 253, 254, 255, 256, 300)), maps=chance.one_in(2)),
    )
    return chance.of(makers)()


def text(chance: Chance) -> str:
    return " ".join(chance.of(WORDS) for _ in range(chance.below(4)))


def message(chance: Chance) -> dict[Any, Any]:
    content: Any = text(chance)
    if chance.one_in(6):
        content = [{"type": chance.of(("text", "image")), "text": content}, {"type": "text"}]
    said = {"role": chance.of(("user", "assistant")), "content": content}
    if chance.one_in(12):
        said[chance.of(("role", "content", "n"))] = odd(chance)
    return said


def messages(chance: Chance, least: int = 0) -> list[Any]:
    many = 17 if chance.one_in(50) else least + chance.below(3)
    return [message(chance) for _ in range(many)]


def body(chance: Chance) -> tuple[str, dict[Any, Any]]:
    """Make an event type and the data that goes with it."""
    kind = chance.below(20)
    if kind < 3:
        created = {"project": chance.of(("A", "B", "")), "messages": messages(chance)}
        return "session_created", created | ({"createdAt": T0} if chance.one_in(3) else {})
    if kind < 12:
        append = chance.of(("session_append", "session_append_messages"))
        return append, {"messages": messages(chance, 1)}
    if kind < 15:
        return "session_status_update", {"status": chance.of(STATUSES)}
    if kind < 19:
        changes = {"status": chance.of(STATUSES), "project": "C", "messages": messages(chance)}
        return "session_updated", {name: changes[name] for name in changes if chance.one_in(2)}
    return chance.of(("task_created", "", "session_")), {}


def event(chance: Chance, session: str) -> dict[Any, Any]:
    """Make a valid event, or occasionally one with something odd in it."""
    kind, data = body(chance)
    made: dict[Any, Any] = {"type": kind, "data": data}
    if chance.one_in(2):
        made["timestamp"] = T0 + chance.below(1000)
    if chance.one_in(3):
        made["sessionId"] = session.removeprefix("session:") if chance.one_in(2) else session
    if chance.one_in(6):
        spoil(chance, made)
    return made


def spoil(chance: Chance, made: dict[Any, Any]) -> None:
    """Put something odd into an event or its data, or remove something."""
    where = chance.of((made, made["data"]))
    names = ("type", "data", "timestamp", "sessionId", "messages", "status", "project", "createdAt")
    name = odd_key(chance) if chance.one_in(4) else chance.of(names)
    if chance.one_in(5):
        where.pop(name, None)
    else:
        where[name] = odd(chance)


# From an event to the data in the log.


def as_messagepack(value: Any) -> bytes:
    """Encode as MessagePack; lone surrogates become bytes that are not UTF-8."""
    packed: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return packed


def as_json(value: Any, chance: Chance) -> str:
    """Encode as JSON, including NaN, lone surrogates and whatever else `json` allows."""
    return json.dumps(_plain(value), ensure_ascii=chance.one_in(2))


def _plain(value: Any) -> Any:
    """Turn MessagePack's own types into text, keys included."""
    if isinstance(value, dict):
        return {k if isinstance(k, str) else ascii(k): _plain(v) for k, v in value.items()}
    if isinstance(value, msgpack.ExtType | msgpack.Timestamp | bytes):
        return ascii(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


RAW_PIECES: Final = (
    *(bytes([head]) + b"\xff" * 4 for head in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF)),
    *(bytes([head, 255, 255]) for head in (0xC5, 0xC8, 0xDA, 0xDC, 0xDE)),
    *(bytes([head]) for head in (0xC0, 0xC1, 0xC2, 0xCA, 0xCB, 0xCF, 0xD3, 0x80, 0x8F, 0x9F)),
    *(b"\xd6\xff" + b"\xff" * 4, b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\x7f" * 12),
    *(b"\xc7\x00\xff", b"\xd4\xff\x00", b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xa2\xc3\x28"),
    *(b"\x91" * 300, b"\x81" * 300, b"\x81\xa1k" * 260, b"\x81\x91\x01\x02", b"\x81\x80\x80"),
)
JSON_PIECES: Final = (
    *("NaN", "-Infinity", "1e999", "-0", "1E-400", "01", "18446744073709551616", "9" * 5000),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', "\ud800", "\ufeff", "\x00", "\u2028"),
    *('"', "\\", "{", "}", "[", "]", ",", ":", "//", "'", "\\u", "[" * 300, '{"k":' * 257, "é"),
    *("1.0", "0.1e1", "1e400", "-9223372036854775809", "null", "tru", '"\\\\"', '\\"'),
)


def mutate(chance: Chance, data: Any, pieces: Sequence[Any], junk: Callable[[], Any]) -> Any:
    """Flip, cut, insert, duplicate or replace parts of bytes or text, once or a few times."""
    for _ in range(1 + (chance.below(4) if chance.one_in(3) else 0)):
        at = chance.below(len(data) + 1)
        upto = min(len(data), at + 1 + chance.below(12))
        match chance.below(7):
            case 0 | 1:
                data = data[:at] + junk() + data[at + 1 :]
            case 2:
                data = data[:at] if chance.one_in(2) else data[:at] + data[upto:]
            case 3:
                data = data[:at] + junk() + data[at:]
            case 4:
                data = data[:upto] + data[at:]
            case 5:
                data = data[:at] + chance.of(pieces) + data[at:]
            case _:
                data = data[:at] + chance.of(pieces) + data[upto:]
    return data


def mutated(chance: Chance, made: dict[Any, Any]) -> Any:
    if chance.one_in(2):
        return mutate(chance, as_messagepack(made), RAW_PIECES, lambda: chance.bytes(1))
    return mutate(chance, as_json(made, chance), JSON_PIECES, lambda: chr(chance.below(128)))


def noise(chance: Chance) -> Any:
    """Make data that never was an event."""
    match chance.below(6):
        case 0:
            return chance.bytes(chance.below(40))
        case 1:
            return "".join(chr(chance.below(0xFFFF)) for _ in range(chance.below(40)))
        case 2:
            return b"".join(chance.of(RAW_PIECES) for _ in range(1 + chance.below(4)))
        case 3:
            return "".join(chance.of(JSON_PIECES) for _ in range(1 + chance.below(4)))
        case 4:
            return as_messagepack(odd(chance))
        case _:
            return chance.of((None, 0, 5, 1.5, float("inf"), "", b"", "null", "{}", b"\x80"))


def row(chance: Chance, seq: int) -> LogRow:
    """Make a row of the log, occasionally with an odd value in one of its columns."""
    session = chance.of(SESSIONS)
    share = chance.below(20)
    data: Any
    if share < 2:
        data = noise(chance)
    else:
        made = event(chance, session)
        if share < 7:
            data = mutated(chance, made)
        else:
            data = as_messagepack(made) if chance.one_in(2) else as_json(made, chance)
    key: Any = f"session:{session}" if chance.one_in(2) else session
    row_id: Any = f"e{seq}"
    created_at: Any = T0 + seq if chance.one_in(2) else T0 // 1000
    match chance.below(60):
        case 0:
            row_id = odd(chance)
        case 1:
            key = odd(chance)
        case 2:
            created_at = odd(chance)
    return LogRow(seq, row_id, key, data, created_at)


# Folding, and recording the results.


class Run:
    """The rows that each projection keeps between batches, and the record of the results."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, tuple[Any, ...]]] = {p.name: {} for p in BUILT_IN}
        self.hash = blake2b(digest_size=16)
        self.result = Result(Counter(), Counter(), [], "")

    def forget(self) -> None:
        for rows in self.kept.values():
            rows.clear()

    def batch(self, rows: Sequence[LogRow]) -> None:
        events = folding.read(rows)
        if [event.seq for event in events] != [row.seq for row in rows]:
            self.result.faults.append(f"not every row was read once: {rows[0].seq}")
        for projection in BUILT_IN:
            self.fold(projection, events)

    def fold(self, projection: Projection, events: Sequence[Event | Rejected]) -> None:
        kept = self.kept[projection.name]
        keys = {folding.key_of(projection, event) for event in events}
        views = {key: projection.from_row(row) for key, row in kept.items() if key in keys}
        folded = folding.fold(projection, views, events)
        reasons = {rejected.seq: rejected.reason for rejected in folded.quarantined}
        skipped = sum(self.judge(projection, event, reasons.get(event.seq)) for event in events)
        if skipped != folded.skipped or len(reasons) != len(folded.quarantined):
            self.result.faults.append(f"{projection.name}: miscounted up to {events[-1].seq}")
        for key in sorted(folded.views):
            kept[key] = projection.to_row(folded.views[key])
            self.note(key, *kept[key])

    def judge(self, projection: Projection, event: Event | Rejected, reason: str | None) -> bool:
        """Record what happened to an event; returns whether it was skipped."""
        verdict = "quarantined"
        if reason is None:
            skipped = folding.key_of(projection, event) is None
            verdict = "skipped" if skipped else "folded"
        elif reason.startswith(FAULT):
            self.result.faults.append(f"{projection.name}: {event.seq}: {reason}")
        self.note(event.seq, verdict, reason)
        if projection is BUILT_IN[0]:
            self.result.verdicts[verdict] += 1
            if reason is not None:
                self.result.reasons[re.sub(r"\d+", "N", reason).partition(" (")[0]] += 1
        return verdict == "skipped"

    def note(self, *values: Any) -> None:
        # `ascii`, because what `repr` escapes depends on the Unicode version, and so on Python.
        for value in values:
            self.hash.update(value if isinstance(value, bytes) else ascii(value).encode() + b"\n")


def fuzz(events: int, seed: int) -> Result:
    """Fuzz `events` events, which are the same for the same seed on every Python."""
    chance = Chance(seed)
    run = Run()
    seq = since = 0
    while seq < events:
        size = min(events - seq, 1 + chance.below(chance.of((2, 20, 400))))
        rows = [row(chance, seq + number) for number in range(1, size + 1)]
        try:
            run.batch(rows)
        except Exception as error:
            run.result.faults.append(f"events {seq + 1} to {seq + size} raised {error!r}")
        seq, since = seq + size, since + size
        if since > FORGET_EVENTS:
            run.forget()
            since = 0
    run.result.digest = run.hash.hexdigest()
    return run.result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    result = fuzz(options.events, options.seed)
    for name, count in sorted(result.verdicts.items()):
        print(f"{count:>9} {name}")
    for reason, count in result.reasons.most_common(12):
        print(f"{count:>9}   {reason}")
    print(f"digest {result.digest}, {time.perf_counter() - started:.0f} s")
    for fault in result.faults[:20]:
        print(fault, file=sys.stderr)
    if result.faults:
        sys.exit(f"{len(result.faults)} faults")


if __name__ == "__main__":
    main()
