"""MessagePack looked at without building it: is it whole, and within the limits of an event?

A regular expression walks over a run of plain values at once, so that Python takes one step for a
map, a list, a long text or a run, and not for each value: `benchmarks/hostile.py` has what the
worst events cost. Nothing is hashed, and few values are built at a time.
"""

import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from math import inf
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 256
"""Levels of maps and lists, the outermost counted as the first; plain values do not count."""
MAX_CONTAINERS: Final = 100_000
"""Maps and lists in one event, its own map among them."""
_BUILT_BYTES: Final = 1 << 20
"""So many bytes may be built, whatever they are."""
_BUILT_VIEW_BYTES: Final = 1 << 23
"""The same of a stored view, if it has no more maps and lists than an event may have."""
TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
TOO_MANY: Final = f"more than {MAX_CONTAINERS} maps and lists, the most an event may have"
FAILURES: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot read."""


class Malformed(ValueError):
    """Not one whole MessagePack value within the limits; the text says what and at which byte."""


def cut_short(data: bytes) -> Malformed:
    return Malformed(f"not MessagePack: cut short after {len(data)} bytes")


def left_over(count: int) -> Malformed:
    return Malformed(f"not MessagePack: {count} bytes are left over at its end")


def no_value(at: int) -> Malformed:
    return Malformed(f"not MessagePack: byte {at} is 0xc1, which begins no value")


def no_text(at: int) -> Malformed:
    return Malformed(f"not MessagePack: the text at byte {at} is not UTF-8")


def no_key(head: int, at: int) -> Malformed:
    what = "list" if is_list(head) else "map"
    return Malformed(f"a {what} is used as a map key (at byte {at})")


def too_deep(at: int) -> Malformed:
    return Malformed(f"{TOO_DEEP} (at byte {at})")


def is_list(head: int) -> bool:
    """Whether a value that begins with this byte is a list."""
    return 0x90 <= head <= 0x9F or head in (0xDC, 0xDD)


def is_map(head: int) -> bool:
    """Whether a value that begins with this byte is a map."""
    return 0x80 <= head <= 0x8F or head in (0xDE, 0xDF)


def may_be_built(data: bytes, most: float = MAX_CONTAINERS) -> bool:
    """Whether these are so few bytes that they may be built, and have at most so many maps and
    lists, whatever they are; of a stored view any number may be right (`inf`)."""
    if len(data) > (_BUILT_VIEW_BYTES if most == inf else _BUILT_BYTES):
        return False
    if len(data) > _BUILT_BYTES:
        most = MAX_CONTAINERS
    return len(data) <= most or len(data.translate(None, _NOT_CONTAINERS)) <= most


def check(data: bytes, most: float = MAX_CONTAINERS) -> None:
    """Raises `Malformed` unless this is one whole value with at most so many maps and lists."""
    runs = _Runs(data)
    try:
        end = _walk(data, 0, 1, most, runs)
    finally:
        runs.check()  # and if anything is wrong there, that comes first
    if end < len(data):
        raise left_over(len(data) - end)


def end_of(data: bytes, start: int, values: int = 1) -> int:
    """Where the last of so many values ends, in bytes that `check` accepts."""
    if values == 1 and data[start] in _LENGTHS:
        return _long(data, start)
    return _walk(data, start, values, inf, _Runs(data, at_once=inf))


def _walk(data: bytes, position: int, left: int, most: float, runs: "_Runs") -> int:
    in_map = False
    outer: list[int] = []  # what is left of each, twice, and 1 more for a map
    run, counts = _run()
    while True:
        while left <= 0:  # a run may end in what this is in: below 0 by as many values
            if not outer:
                return runs.without_last(-left) if left else position
            more = outer.pop()
            left, in_map = left + (more >> 1), more & 1 == 1
        if position == len(data):
            raise cut_short(data)
        head = data[position]
        width = WIDTHS[head]
        if width is not None:
            if in_map and not left & 1:  # keys and values are counted, so a key comes where it is
                raise no_key(head, position)  # even
            if len(outer) == MAX_DEPTH:
                raise too_deep(position)
            start = position + 1 + width
            if start > len(data):
                raise cut_short(data)
            if not most:
                raise Malformed(TOO_MANY)
            most -= 1
            outer.append(2 * left - 2 + in_map)
            in_map = head < 0x90 or head > 0xDD
            left = int.from_bytes(data[position + 1 : start], "big") if width else head & 0x0F
            left <<= in_map
            position = start
        elif last := (found := run(data, position)).lastindex:
            position = runs.add(position, found.end(), counts[last])
            left -= counts[last]
        elif head in _LENGTHS:
            position, left = _long(data, position), left - 1
        elif head == 0xC1:
            raise no_value(position)
        else:
            raise cut_short(data)


def _long(data: bytes, position: int) -> int:
    """Where a text, binary or extension type ends that is too long for a run."""
    head = data[position]
    start = position + 1 + _LENGTHS[head]
    if start > len(data):
        raise cut_short(data)
    end = start + int.from_bytes(data[position + 1 : start], "big") + (0xC7 <= head <= 0xC9)
    if end > len(data):
        raise cut_short(data)
    if head >= 0xD9:
        _require_text(data, start, end)
    return end


def _require_text(data: bytes, start: int, end: int) -> None:
    try:
        data[start:end].decode()
    except UnicodeDecodeError:
        raise no_text(start) from None


class _Runs:
    """Runs of plain values, whose texts are checked many at a time."""

    def __init__(self, data: bytes, at_once: float = 1 << 16) -> None:
        self._data = data
        self._at_once = at_once
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._count = 0

    def add(self, start: int, end: int, count: int) -> int:
        """Raises `Malformed` for an earlier run; returns where this one ends."""
        if self._count > self._at_once:
            self.check()
        self._starts.append(start)
        self._ends.append(end)
        self._count += count
        return end

    def without_last(self, many: int) -> int:
        """Leave out the last values of the last run, which nobody asked for; returns where those
        begin."""
        ends, last = [self._starts[-1]], self._ends[-1]
        while ends[-1] < last:
            ends.append(_one_end(self._data, ends[-1]))
        self._ends[-1] = ends[-1 - many]
        self._count -= many
        return self._ends[-1]

    def check(self) -> None:
        """Raises `Malformed` for the first text that is not UTF-8."""
        data, starts, ends, count = self._data, self._starts, self._ends, self._count
        self._starts, self._ends, self._count = [], [], 0
        values = b"".join([data[a:b] for a, b in zip(starts, ends, strict=True)])
        if not values.translate(None, _NO_TEXTS):
            return
        try:
            msgspec.msgpack.decode(_list_header(count) + values)
        except FAILURES:  # of a text, or of a time that is out of its range
            texts = _texts()(values)
            try:
                msgspec.msgpack.decode(_list_header(len(texts)) + b"".join(texts))
            except FAILURES:
                for start, end in zip(starts, ends, strict=True):
                    self._check_each(start, end)

    def _check_each(self, position: int, end: int) -> None:
        while position < end:
            head, start = self._data[position], position + 1 + _TEXTS.get(self._data[position], 0)
            position = _one_end(self._data, position)
            if head in _TEXTS:
                _require_text(self._data, start, position)


_FIXED: Final = {
    **dict.fromkeys([*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3], 0),
    **{head: head & 0x1F for head in range(0xA0, 0xC0)},
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
"""How many bytes follow the first one of a value, where that alone says it."""
_LENGTHS: Final = {first + n: 1 << n for first in (0xC4, 0xC7, 0xD9) for n in range(3)}
"""How many bytes the length has that follows the first byte of a value."""
_TEXTS: Final = dict.fromkeys(range(0xA0, 0xC0), 0) | {h: _LENGTHS[h] for h in (0xD9, 0xDA, 0xDB)}
_NO_TEXTS: Final = bytes({*range(256)} - {*_TEXTS})
WIDTHS: Final[list[int | None]] = [
    0 if 0x80 <= head < 0xA0 else {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}.get(head)
    for head in range(256)
]
"""How many bytes the size has that follows the first byte of a map or list."""
_NOT_CONTAINERS: Final = bytes(head for head in range(256) if WIDTHS[head] is None)


@cache
def value(most: int = 32, of: frozenset[int] = frozenset(range(256))) -> bytes:
    """The expression for a plain value of fewer than so many bytes that begins with one of some
    bytes; the shortest forms come first."""
    ways = []

    def way(heads: Iterable[int], rest: bytes) -> None:
        if some := [head for head in heads if head in of]:
            ways.append(_one_of(some) + rest)

    for size in sorted({*_FIXED.values()}):
        way((head for head, more in _FIXED.items() if more == size), _any(size))
        if size != 2:
            continue
        for firsts, extra in (((0xC4, 0xD9), 0), ((0xC7,), 1)):
            lengths = b"|".join(rb"\x%02x" % n + _any(n + extra) for n in range(most))
            for nth in range(3):
                zeros = rb"\x00" * ((1 << nth) - 1)
                way((head + nth for head in firsts), b"%b(?:%b)" % (zeros, lengths))
    return b"(?:" + b"|".join(ways) + b")"


def _any(count: int) -> bytes:
    """So many bytes, in the form that matches fastest."""
    return b"." * count if count < 9 else b".{%d}" % count


def _one_of(heads: Iterable[int]) -> bytes:
    """One of some bytes; ranges take less time to compile."""
    found = {*heads}
    starts, ends = (sorted(head for head in found if head + by not in found) for by in (-1, 1))
    ranges = (
        rb"\x%02x" % first + rb"-\x%02x" % last * (last > first)
        for first, last in zip(starts, ends, strict=True)
    )
    return b"[%b]" % b"".join(ranges)


_ONE_BYTE: Final = _one_of(head for head, more in _FIXED.items() if not more)


def _one_end(data: bytes, position: int) -> int:
    found = _one()(data, position)
    assert found is not None  # it is in a run
    return int(found.end())


@cache
def _one() -> Any:
    return re.compile(value(), re.DOTALL).match


@cache
def _run() -> tuple[Any, list[int]]:
    """What finds a run of plain values, and how many it has whose last group is the nth. Each group
    adds half of the run before it, so that few values are tried in vain."""
    counts = [0]
    while counts[-1] < 4096:
        counts.append(counts[-1] + max(1, counts[-1] // 2))
    run = b""
    for less, more in reversed(list(pairwise(counts))):
        many = b"{%d}+" % (more - less)
        run = b"(?:(%b|%b)%b)?+" % (_ONE_BYTE + many, value() + many, run)
    return re.compile(run, re.DOTALL).match, counts


@cache
def _texts() -> Any:
    """What finds the texts in a run."""
    texts = frozenset(_TEXTS)
    others = value(of=frozenset(range(256)) - texts)
    return re.compile(b"%b*+(%b)" % (others, value(of=texts)), re.DOTALL).findall


def _list_header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")
