"""MessagePack read exactly, with the same limits on every Python.

msgspec does nearly all the work. `_Reader` is the definition: it is asked where msgspec says no
(its nesting limit differs between Pythons, it rejects timestamps out of its range and extension
types as map keys) and where nesting could be beyond the limit.
"""

import struct
from collections.abc import Mapping
from typing import Any

import msgspec

Buffer = bytes | msgspec.Raw

MAX_DEPTH = 256
"""Levels of maps and lists, the outermost counted as the first; plain values do not count."""

_NOT_CONTAINERS = bytes({*range(256)} - {*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF})
FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_fields = msgspec.msgpack.Decoder(dict[Any, msgspec.Raw])
_items = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Malformed(ValueError):
    """Not one whole MessagePack value within the limits; the text says what and at which byte."""


def decode(data: bytes) -> Any:
    """One whole value, every byte of it checked; raises `Malformed`."""
    try:
        value = msgspec.msgpack.decode(data)
    except FAILURES:
        return _Reader(data).whole()
    if may_be_deep(data):
        _Reader(data).whole()
    return value


def may_be_deep(data: bytes) -> bool:
    """Whether there are as many bytes that could begin a map or list as are needed for that."""
    return len(data) > MAX_DEPTH and len(data.translate(None, _NOT_CONTAINERS)) > MAX_DEPTH


def decode_exact(data: bytes) -> Any:
    """One whole value, slower than `decode`: every extension type, time too, as `Extension`."""
    return _Reader(data).whole()


def decode_partly(data: bytes) -> tuple[Any, str | None]:
    """What decodes before the first fault, and what that is; the value it broke off in is '…'."""
    reader = _PartReader(data)
    value = reader.value(0)
    if reader.fault is None and reader.position < len(data):
        reader.fault = f"{len(data) - reader.position} bytes are left over at its end"
    return value, reader.fault


def fields(data: Buffer) -> Mapping[Any, Buffer]:
    """The entries of a map that `decode` accepts, each value as the bytes that hold it."""
    try:
        return _fields.decode(data)
    except FAILURES:
        return _Reader(bytes(data)).fields()


def items(data: Buffer) -> list[bytes]:
    """The values of a list that `decode` accepts, each as the bytes that hold it."""
    return [bytes(item) for item in _items.decode(data)]


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

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def whole(self) -> Any:
        value = self.value(0)
        if self.position < len(self.data):
            left = len(self.data) - self.position
            raise Malformed(f"not MessagePack: {left} bytes are left over at its end")
        return value

    def fields(self) -> dict[Any, bytes]:
        found = {}
        for _ in range(self.map_length()):
            key = self.value(1)
            start = self.position
            self.value(1)
            found[_frozen(key)] = self.data[start : self.position]
        return found

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
            raise Malformed(f"not MessagePack: byte {at} is 0xc1, which begins no value")
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
        if depth > MAX_DEPTH:
            raise Malformed(f"nested deeper than {MAX_DEPTH} levels (at byte {at})")
        self.position = at
        if 0x90 <= byte <= 0x9F or byte in (0xDC, 0xDD):
            return [self.value(depth) for _ in range(self.list_length())]
        found = {}
        for _ in range(self.map_length()):
            at_key = self.position
            key = self.value(depth)
            try:
                found[_frozen(key)] = self.value(depth)
            except TypeError:
                raise Malformed(f"a map is used as a map key (at byte {at_key})") from None
        return found

    def text(self, length: int) -> str:
        at = self.position
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise Malformed(f"not MessagePack: the text at byte {at} is not UTF-8") from None

    def extension(self, length: int) -> "Extension":
        return Extension(self.number("b"), self.take(length))

    def number(self, code: str) -> Any:
        return struct.unpack(">" + code, self.take(struct.calcsize(">" + code)))[0]

    def take(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise Malformed(f"not MessagePack: cut short after {len(self.data)} bytes")
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

    def container(self, byte: int, at: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            return super().container(byte, at, depth)
        self.position = at
        if 0x90 <= byte <= 0x9F or byte in (0xDC, 0xDD):
            items: list[Any] = []
            for _ in range(self.list_length()):
                items.append(self.value(depth))
                if self.fault is not None:
                    break
            return items
        found: dict[Any, Any] = {}
        for _ in range(self.map_length()):
            key = _frozen(self.value(depth))
            if self.fault is not None:
                break
            try:
                hash(key)
            except TypeError:  # a map is in it
                key = str(key)
            found[key] = self.value(depth)
            if self.fault is not None:
                break
        return found


class Extension(msgspec.Struct, frozen=True):
    """An extension type as stored."""

    code: int
    data: bytes


def _frozen(key: Any) -> Any:
    return tuple(map(_frozen, key)) if isinstance(key, list) else key
