"""MessagePack read exactly, with the same limits on every Python.

`check` says whether bytes are one whole value within the limits, and builds little; `fields`,
`items` and `scalar` look into bytes that it accepted. `decode` builds all of it. msgspec does
nearly all the work. `scanner` and `_Reader` are the definition, the same in other words: they are
asked where msgspec says no (its nesting limit differs between Pythons, it rejects times out of its
range), and where it would build or hash too much.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from math import inf
from typing import Any, Final

import msgspec

from session_projector.projections import scanner
from session_projector.projections.scanner import (
    FAILURES,
    MAX_CONTAINERS,
    MAX_DEPTH,
    TOO_MANY,
    Malformed,
    is_list,
    is_map,
)

Buffer = bytes | msgspec.Raw

MAX_NUMBER_KEYS: Final = 1000
"""Keys of one map that `decode` builds: what hash they have is no secret, so that somebody may
choose them to have the same one."""
SMALL_BYTES: Final = 64 * 1024
"""So few bytes are built and hashed whatever they are: that takes 0.1 s at most."""
_VALUES_AT_ONCE: Final = 1 << 20

_SCALAR: Final = bool | int | float | str | None
_Value: Any = _SCALAR
for _level in range(7):
    _Value = _SCALAR | list[_Value] | dict[str, _Value]
_check_value = msgspec.msgpack.Decoder(_Value).decode
_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def check(data: bytes, most: float = MAX_CONTAINERS) -> None:
    """Raises `Malformed` unless this is one whole value with at most so many maps and lists, and
    within the other limits."""
    if scanner.may_be_built(data, most):
        try:
            _check_value(data)
        except FAILURES:
            pass
        else:
            return
    scanner.check(data, most)


def decode(data: bytes) -> Any:
    """What `check` accepts, built. Raises `Malformed`, also for a map of more than 64 KiB with more
    than `MAX_NUMBER_KEYS` keys that are numbers."""
    try:
        return _check_value(data)
    except FAILURES:
        pass
    try:
        if len(data) <= SMALL_BYTES:
            return msgspec.msgpack.decode(data)
    except FAILURES:
        pass
    return _Reader(data).whole()


def decode_exact(data: bytes) -> Any:
    """One whole value, however large: every extension type, time too, is an `Extension`, which is
    slow to read. Raises `Malformed`."""
    try:
        return _check_value(data)
    except FAILURES:
        return _Reader(data, most=inf).whole()


def decode_partly(data: bytes) -> tuple[Any, str | None]:
    """What decodes before the first fault, and what that is; the value it broke off in is '…'."""
    reader = _PartReader(data)
    value = reader.value(0)
    if reader.fault is None and reader.position < len(data):
        reader.fault = f"{len(data) - reader.position} bytes are left over at its end"
    return value, reader.fault


def fields(data: Buffer, names: tuple[str, ...]) -> list[bytes | None]:
    """The values of some entries of a map that `check` accepts, each as the bytes that hold it,
    None where there is none or it is null; the last of two equal keys counts."""
    try:
        found: Iterable[Any] = msgspec.structs.astuple(_decoder(names)(data))
    except FAILURES:  # of keys that are not text
        found = _any_fields(bytes(data), names)
    values = (None if value is None else bytes(value) for value in found)
    return [None if value == b"\xc0" else value for value in values]


@cache
def _decoder(names: tuple[str, ...]) -> Any:
    empty: Any = msgspec.field(default=None)
    made = msgspec.defstruct("Fields", [(n, msgspec.Raw, empty) for n in names], gc=False)
    return msgspec.msgpack.Decoder(made).decode


def _any_fields(data: bytes, names: tuple[str, ...]) -> list[bytes | None]:
    """Entries are looked at from the last to the first, many at a time, and no key is hashed but
    those that are spelled as a name."""
    left = tuple(name for name in names if any(key in data for key in _keys((name,))))
    parts: list[tuple[int, int, bool]] = []
    position = _head_bytes(data) if left else len(data)
    while position < len(data):
        end = _entries()(data, position).end()
        plain = end > position
        if not plain:
            end = scanner.end_of(data, scanner.end_of(data, position))
        parts.append((position, end, plain))
        position = end
    found: dict[str, bytes] = {}
    while left and parts:
        start, end, plain = parts.pop()
        keys = _keys(left)
        if plain:
            pairs = [entry.groups() for entry in _named(left)(data, start, end) if entry[1]]
        else:
            here = [key for key in keys if data.startswith(key, start)]
            pairs = [(key, data[start + len(key) : end]) for key in here]
        found |= {keys[key]: value for key, value in pairs}
        left = tuple(name for name in left if name not in found) if pairs else left
    return [found.get(name) for name in names]


@cache
def _keys(names: tuple[str, ...]) -> dict[bytes, str]:
    """All spellings of some names."""
    return {spelling: name for name in names for spelling in _spellings(name.encode())}


@cache
def _entries() -> Any:
    """What finds entries of a map whose keys and values are plain."""
    value = scanner.value(128)
    return re.compile(b"(?:%b%b){0,4096}+" % (value, value), re.DOTALL).match


@cache
def _named(names: tuple[str, ...]) -> Any:
    """What finds those of them whose key is one of some names, and at the end nothing."""
    value = scanner.value(128)
    keys = b"|".join(map(re.escape, _keys(names)))
    pattern = b"(?:(?!%b)%b%b)*+(?:(%b)(%b))?+" % (keys, value, value, keys, value)
    return re.compile(pattern, re.DOTALL).finditer


def _head_bytes(data: bytes) -> int:
    """How many bytes begin a map or list, its size among them."""
    return 1 + (scanner.WIDTHS[data[0]] or 0)


def _spellings(name: bytes) -> list[bytes]:
    """The ways to write a short text."""
    size = len(name)
    heads = (b"\xd9", b"\xda\x00", b"\xdb\x00\x00\x00")
    return [bytes([0xA0 | size]) + name, *(head + bytes([size]) + name for head in heads)]


def scalar(data: bytes | None) -> Any:
    """A value that `check` accepts; of a map or list an empty one."""
    if data is None:
        return None
    if is_list(data[0]):
        return []
    return {} if is_map(data[0]) else _Reader(data).value(0)


def items(data: Buffer) -> list[msgspec.Raw]:
    """The values of a list that `check` accepts, each as the bytes that hold it."""
    return _items(data)


def maps(data: bytes) -> Iterator[bytes]:
    """The maps in a list that `check` accepts, whatever else is in it."""
    if split_list(data)[0] <= 2 * MAX_CONTAINERS:
        yield from (bytes(item) for item in items(data) if is_map(memoryview(item)[0]))
        return
    position = _head_bytes(data)
    while (position := _values()(data, position).end()) < len(data):
        end = scanner.end_of(data, position)
        if is_map(data[position]):
            yield data[position:end]
        position = end


@cache
def _values() -> Any:
    return re.compile(scanner.value(128) + b"*+", re.DOTALL).match


def other_than_map(data: Buffer) -> tuple[int, bytes] | None:
    """The first value of a list that is no map, after its index; None where all are maps."""
    count, body = split_list(data)
    done = position = 0
    while done < count:
        some = min(count - done, _VALUES_AT_ONCE)
        whole = some == count - done
        end = len(body) if whole else scanner.end_of(body, position, some)
        part = list_header(some) + body[position:end]
        try:
            _maps(part)
        except FAILURES:  # also of a map with other keys than texts
            for index, item in enumerate(_items(part)):
                if not is_map(memoryview(item)[0]):
                    return done + index, bytes(item)
        done, position = done + some, end
    return None


class _Map(msgspec.Struct, gc=False):
    """Any map with nothing but texts as keys, none of which is kept."""


_maps = msgspec.msgpack.Decoder(list[_Map]).decode


def list_header(count: int) -> bytes:
    """The bytes that begin a list of `count` values, in the shortest form."""
    if count < 16:
        return bytes([0x90 | count])
    return struct.pack(">BH", 0xDC, count) if count < 1 << 16 else struct.pack(">BI", 0xDD, count)


def split_list(data: Buffer) -> tuple[int, bytes]:
    """How many values a list has, and their bytes without its header; raises `Malformed`."""
    data = bytes(data)
    first = data[0] if data else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, data[1:]
    reader = _Reader(data)
    count = reader.list_length()
    return count, data[reader.position :]


class _Reader:
    """A recursive reader, at most `MAX_DEPTH` deep."""

    def __init__(self, data: bytes, most: float = MAX_CONTAINERS) -> None:
        self.data = data
        self.position = 0
        self.left = most

    def whole(self) -> Any:
        value = self.value(0)
        if self.position < len(self.data):
            raise scanner.left_over(len(self.data) - self.position)
        return value

    def list_length(self) -> int:
        byte: int = self.number("B")
        if 0x90 <= byte <= 0x9F:
            return byte & 0x0F
        if byte in (0xDC, 0xDD):
            return int(self.number("H" if byte == 0xDC else "I"))
        raise Malformed("not a list")

    def map_length(self) -> int:
        byte: int = self.number("B")
        if 0x80 <= byte <= 0x8F:
            return byte & 0x0F
        if byte in (0xDE, 0xDF):
            return int(self.number("H" if byte == 0xDE else "I"))
        raise Malformed("not a map")

    def value(self, depth: int) -> Any:
        at = self.position
        byte: int = self.number("B")
        if byte <= 0x7F:
            return byte
        if byte >= 0xE0:
            return byte - 0x100
        if 0xA0 <= byte <= 0xBF:
            return self.text(byte & 0x1F)
        if byte <= 0x9F or byte >= 0xDC:
            return self.container(byte, at, depth + 1)
        if 0xC4 <= byte <= 0xDB:
            return self.scalar(byte)
        if byte == 0xC1:
            raise scanner.no_value(at)
        return {0xC0: None, 0xC2: False, 0xC3: True}[byte]

    def scalar(self, byte: int) -> Any:
        if byte <= 0xC6:
            return self.take(self.number("BHI"[byte - 0xC4]))
        if byte <= 0xC9:
            return self.extension(self.number("BHI"[byte - 0xC7]))
        if byte <= 0xD3:
            return self.number("fdBHIQbhiq"[byte - 0xCA])
        if byte <= 0xD8:
            return self.extension(1 << (byte - 0xD4))
        return self.text(self.number("BHI"[byte - 0xD9]))

    def container(self, byte: int, at: int, depth: int) -> Any:
        self.begin(at, depth)
        if is_list(byte):
            return [self.value(depth) for _ in range(self.list_length())]
        found: dict[Any, Any] = {}
        numbers = 0
        for _ in range(self.map_length()):
            key = self.key(depth)
            numbers += isinstance(key, int | float)
            if numbers > MAX_NUMBER_KEYS and len(self.data) > SMALL_BYTES:
                raise Malformed(f"a map with more than {MAX_NUMBER_KEYS} numbers as keys")
            found[key] = self.value(depth)
        return found

    def begin(self, at: int, depth: int) -> None:
        """Go back to where a map or list begins, if there may be one more."""
        if depth > MAX_DEPTH:
            raise scanner.too_deep(at)
        self.left -= 1
        if self.left < 0:
            raise Malformed(TOO_MANY)
        self.position = at

    def key(self, depth: int) -> Any:
        head = self.data[self.position : self.position + 1]
        if head and (is_list(head[0]) or is_map(head[0])):
            raise scanner.no_key(head[0], self.position)
        return self.value(depth)

    def text(self, length: int) -> str:
        at = self.position
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise scanner.no_text(at) from None

    def extension(self, length: int) -> "Extension":
        return Extension(self.number("b"), self.take(length))

    def number(self, code: str) -> Any:
        return struct.unpack(">" + code, self.take(struct.calcsize(">" + code)))[0]

    def take(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise scanner.cut_short(self.data)
        return self.data[start : self.position]


class _PartReader(_Reader):
    """Stops at the first fault and keeps what came before it, for people to look at."""

    fault: str | None = None

    def value(self, depth: int) -> Any:
        try:
            return super().value(depth)
        except Malformed as error:
            self.fault = str(error)
            return "…"

    def key(self, depth: int) -> Any:
        try:
            return super().key(depth)
        except Malformed as error:
            self.fault = self.fault or str(error)
            return "…"

    def container(self, byte: int, at: int, depth: int) -> Any:
        self.begin(at, depth)
        if is_list(byte):
            items: list[Any] = []
            for _ in range(self.list_length()):
                items.append(self.value(depth))
                if self.fault is not None:
                    break
            return items
        found: dict[Any, Any] = {}
        for _ in range(self.map_length()):
            key = self.key(depth)
            if self.fault is not None:
                break
            found[key] = self.value(depth)
            if self.fault is not None:
                break
        return found


class Extension(msgspec.Struct, frozen=True):
    """An extension type as stored."""

    code: int
    data: bytes
