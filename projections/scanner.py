"""MessagePack looked at without building it: is it whole, and within the limits of an event?

A regular expression walks over a run of plain values at once, so that Python takes one step for a
map, a list, a long text or a run, and not for each value: `benchmarks/hostile.py` has what the
worst events cost. Nothing is hashed, and few values are built at a time.
"""

import re
from functools import cache
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 256
"""Levels of maps and lists, the outermost counted as the first; plain values do not count."""
MAX_CONTAINERS: Final = 1_000_000
"""Maps and lists in one event, its own map among them."""
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


def check(data: bytes, most: float = MAX_CONTAINERS) -> None:
    """Raises `Malformed` unless this is one whole value with at most so many maps and lists."""
    if most == MAX_CONTAINERS < len(data.translate(None, NOT_CONTAINERS)) and _too_many()(data):
        raise Malformed(TOO_MANY)  # known at once where no long text comes before
    end = end_of(data, most=most)
    if end < len(data):
        raise left_over(len(data) - end)


def end_of(data: bytes, start: int = 0, values: int = 1, most: float = MAX_CONTAINERS) -> int:
    """Where the last of so many values ends, each byte of them checked; raises `Malformed`."""
    runs = _Runs(data)
    try:
        return _walk(data, start, values, most, runs)
    finally:
        runs.check()  # and if anything is wrong there, that comes first


def _walk(data: bytes, position: int, left: int, most: float, runs: "_Runs") -> int:
    in_map = False
    outer: list[int] = []  # what is left of each, twice, and 1 more for a map
    steps, counts = _steps()
    while True:
        for found in steps(data, position):
            end = found.end()
            if end == position:
                break
            head = data[position]
            width = _WIDTHS[head]
            if width is not None:
                if in_map and not left & 1:  # keys and values are counted, so a key comes where
                    raise no_key(head, position)  # it is even
                if len(outer) == MAX_DEPTH:
                    raise too_deep(position)
                if not most:
                    raise Malformed(TOO_MANY)
                most -= 1
                outer.append(2 * left - 2 + in_map)
                in_map = head < 0x90 or head > 0xDD
                left, position = head & 0x0F, position + 1
                if width:
                    left = int.from_bytes(data[position : position + width], "big")
                    position += width
                left <<= in_map
            if end > position:
                count = counts[found.lastindex]
                if runs.count > _CHECKED_AT_ONCE:
                    runs.check()
                runs.starts.append(position)
                runs.ends.append(end)
                runs.count += count
                left -= count
                position = end
            while left <= 0:  # a run may end in what this is in: below 0 by as many values
                if not outer:
                    return position if not left else runs.without_last(-left)
                more = outer.pop()
                left, in_map = left + (more >> 1), more & 1 == 1
        if position == len(data):
            raise cut_short(data)
        if (head := data[position]) in _LENGTHS:
            position, left = _long(data, position), left - 1
            while not left:
                if not outer:
                    return position
                more = outer.pop()
                left, in_map = more >> 1, more & 1 == 1
            continue
        if head == 0xC1:
            raise no_value(position)
        if _WIDTHS[head] is not None and in_map and not left & 1:
            raise no_key(head, position)
        if _WIDTHS[head] is not None and len(outer) == MAX_DEPTH:
            raise too_deep(position)
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
        str(memoryview(data)[start:end], "utf-8")
    except UnicodeDecodeError:
        raise no_text(start) from None


class _Runs:
    """Runs of plain values, whose texts are checked many at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.count = 0

    def without_last(self, many: int) -> int:
        """Leave out the last values of the last run, which nobody asked for; returns where those
        begin."""
        ends, last = [self.starts[-1]], self.ends[-1]
        while ends[-1] < last:
            ends.append(_one_end(self._data, ends[-1]))
        self.ends[-1] = ends[-1 - many]
        self.count -= many
        return self.ends[-1]

    def check(self) -> None:
        """Raises `Malformed` for the first text that is not UTF-8."""
        data, starts, ends, count = self._data, self.starts, self.ends, self.count
        self.starts, self.ends, self.count = [], [], 0
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


_CHECKED_AT_ONCE: Final = 1 << 16

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
_WIDTHS: Final[list[int | None]] = [
    0 if 0x80 <= head < 0xA0 else {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}.get(head)
    for head in range(256)
]
"""How many bytes the size has that follows the first byte of a map or list."""
NOT_CONTAINERS: Final = bytes(head for head in range(256) if _WIDTHS[head] is None)
"""The bytes that begin no map or list."""
_CONTAINER: Final = rb"(?:[\x80-\x9f]|[\xdc\xde]..|[\xdd\xdf]....)"


def _heads(heads: list[int]) -> bytes:
    return b"[" + b"".join(rb"\x%02x" % head for head in heads) + b"]"


@cache
def _value(of: frozenset[int] = frozenset(range(256))) -> bytes:
    """The expression for a plain value of at most about 32 bytes that begins with one of some
    bytes; the shortest forms come first."""
    ways = []
    for size in sorted({*_FIXED.values()}):
        if heads := [head for head, more in _FIXED.items() if more == size and head in of]:
            ways.append(_heads(heads) + b".{%d}" % size)
        if size != 1:
            continue
        for first, extra in ((0xC4, 0), (0xD9, 0), (0xC7, 1)):
            for nth in range(3):
                if first + nth in of:
                    counts = range(16 if nth else 32)
                    lengths = (rb"\x%02x.{%d}" % (n, n + extra) for n in counts)
                    zeros = rb"\x00" * ((1 << nth) - 1)
                    ways.append(_heads([first + nth]) + zeros + b"(?:" + b"|".join(lengths) + b")")
    return b"(?:" + b"|".join(ways) + b")"


def _one_end(data: bytes, position: int) -> int:
    found = _one()(data, position)
    assert found is not None  # it is in a run
    return int(found.end())


@cache
def _one() -> Any:
    return re.compile(_value(), re.DOTALL).match


@cache
def _steps() -> tuple[Any, list[int]]:
    """What finds, one after the other, a map or list and the run that follows its first bytes; and
    how many values a run has whose last group is the nth. A group costs more than a value, so that
    fours come before ones, and from 16 on each group doubles the run."""
    counts = [0]

    def group(values: int, before: int) -> bytes:
        counts.append(before + values)
        return b"(%b{%d}+)" % (_value(), values)

    def run(before: int) -> bytes:
        if before == 1 << 16:
            return b""
        if before >= 16:
            return b"(?:%b%b)?+" % (group(before, before), run(2 * before))
        fours = group(4, before) + run(before + 4)
        ones = b"%b(?:%b%b?+)?+" % (group(1, before), group(1, before + 1), group(1, before + 2))
        return b"(?:%b|%b)?+" % (fours, ones)

    return re.compile(_CONTAINER + b"?+" + run(0), re.DOTALL).finditer, counts


@cache
def _too_many() -> Any:
    many = b"(?:%b*+%b){%d}+" % (_value(), _CONTAINER, MAX_CONTAINERS + 1)
    return re.compile(many, re.DOTALL).match


@cache
def _texts() -> Any:
    """What finds the texts in a run."""
    texts = frozenset(_TEXTS)
    others = _value(frozenset(range(256)) - texts)
    return re.compile(b"%b*+(%b)" % (others, _value(texts)), re.DOTALL).findall


def _list_header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")
