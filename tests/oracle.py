"""A second, naive implementation of the session fold, written from the contract alone.

The tests hold the product against it, so it shares no code with the product: one event after the
other, every message a `bytes` in a plain list, every row encoded once at the end.
"""

import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgpack

EVENT_LIMIT_BYTES = 16 * 1024 * 1024  # of `data` as stored
VIEW_LIMIT_BYTES = 256 * 1024 * 1024  # of the view's encoded `data`; a test may lower it
LEVEL_LIMIT = 256  # the event's own map is level 1
APPENDS = ("session_append", "session_append_messages")
OUR_TYPES = (*APPENDS, "session_created", "session_status_update", "session_updated")

Row = tuple[int, object, object, object, object]  # seq, id, key, data, created_at
ViewRow = tuple[str, str, bytes, str, int, int]


@dataclass
class Result:
    """What the log folds to: view rows by key, reasons by `seq`, and how many were skipped."""

    views: dict[str, ViewRow] = field(default_factory=dict)
    quarantine: dict[int, str] = field(default_factory=dict)
    skipped: int = 0


class Refused(Exception):
    """The event cannot be folded."""


@dataclass
class Session:
    id: str
    project: str
    messages: list[bytes]
    status: str
    created_at: int
    updated_at: int
    last_offset_id: str

    def encoded(self) -> list[bytes]:
        """Return the view's `data` in pieces: a map of six, each message as its own bytes."""
        header = msgpack.Packer().pack_array_header(len(self.messages))
        parts = [b"\x86", pack("id"), pack(self.id), pack("project"), pack(self.project)]
        parts += [pack("messages"), header, *self.messages, pack("status"), pack(self.status)]
        parts += [pack("createdAt"), pack(self.created_at)]
        return [*parts, pack("updatedAt"), pack(self.updated_at)]


def fold(rows: Iterable[Row]) -> Result:
    """Fold the rows of `event_log`, in `seq` order, from nothing."""
    result = Result()
    sessions: dict[str, Session] = {}
    for seq, row_id, key, data, created_at in rows:
        try:
            event = decode(data)
            if event["type"] not in OUR_TYPES:
                result.skipped += 1
                continue
            name = session_named(key, event.get("sessionId"))
            time = event_time(event.get("timestamp"), created_at)
            changed = apply(event, sessions.get(name), name, time, text(row_id, "id"))
            if sum(map(len, changed.encoded())) > VIEW_LIMIT_BYTES:
                raise Refused("view over the size limit")
            sessions[name] = changed
        except Refused as refused:
            result.quarantine[seq] = str(refused)
    for s in sessions.values():
        key, data = f"session:{s.id}", b"".join(s.encoded())
        result.views[key] = (key, key, data, s.last_offset_id, s.created_at, s.updated_at)
    return result


def apply(
    event: dict[str, object], old: Session | None, name: str, time: int, row_id: str
) -> Session:
    """Return the session after the event; the old one stays as it was."""
    kind, body = event["type"], event.get("data")
    if not isinstance(body, dict):
        raise Refused("data is not a map")
    project, status, messages = body.get("project"), body.get("status"), body.get("messages")
    if kind == "session_created":
        if old is not None:
            raise Refused("session created twice")
        created = body.get("createdAt")
        created_at = time if created is None else event_time(created, None)
        new = Session(name, text(project, "project"), [], "ready", created_at, time, row_id)
    elif old is None:
        raise Refused("session never created")
    else:
        new = replace(old, updated_at=time, last_offset_id=row_id)

    if kind in APPENDS:
        added = message_list(messages)
        if not added:
            raise Refused("no message to append")
        new.messages = new.messages + added
    elif kind == "session_status_update":
        new.status = text(status, "status", may_be_empty=False)
    else:  # session_created, session_updated
        if messages is not None:
            new.messages = message_list(messages)
        if status is not None:
            new.status = text(status, "status", may_be_empty=False)
        if project is not None:
            new.project = text(project, "project")
    return new


def text(value: object, name: str, *, may_be_empty: bool = True) -> str:
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Refused(f"{name} is not text")
    if value == "" and not may_be_empty:
        raise Refused(f"{name} is empty")
    return value


def session_named(key: object, session_id: object) -> str:
    named = text(text(key, "key").removeprefix("session:"), "session id", may_be_empty=False)
    if session_id is not None and text(session_id, "sessionId") != named:
        raise Refused("key and sessionId disagree")
    return named


def message_list(value: object) -> list[bytes]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused("messages is not a list of maps")
    return [bytes(item.raw) if isinstance(item, RawMap) else pack(item) for item in value]


def event_time(value: object, created_at: object) -> int:
    """Read milliseconds from `value` or, where it is null, from the row's `created_at`."""
    time = created_at if value is None else value
    if isinstance(time, float) and time.is_integer():
        time = int(time)
    if not isinstance(time, int) or isinstance(time, bool):
        raise Refused("time is not an integer")
    if value is None and time < 100_000_000_000:
        time *= 1000
    if not -(2**53) <= time <= 2**53:
        raise Refused("time is out of range")
    return time


def pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def decode(data: object) -> dict[str, object]:
    """Decode the whole event, a map with a text `type`, whosever it is."""
    if not isinstance(data, bytes | str):
        raise Refused("data is neither BLOB nor TEXT")
    try:
        if len(data if isinstance(data, bytes) else data.encode()) > EVENT_LIMIT_BYTES:
            raise Refused("event over the size limit")
        event = MessagePack(data).whole() if isinstance(data, bytes) else decode_json(data)
    except (UnicodeError, json.JSONDecodeError) as error:
        raise Refused(f"does not decode: {error}") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise Refused("not a map with a text type")
    return event


def decode_json(source: str) -> object:
    level, in_string = 0, False  # up to its first error JSON has the same strings as this loop
    for match in re.finditer(r'\\.|["\[\]{}]', source, re.DOTALL):
        if match[0] == '"':
            in_string = not in_string
        elif not in_string and match[0] in "[]{}":
            level += 1 if match[0] in "[{" else -1
            if level > LEVEL_LIMIT:
                raise Refused("nested too deeply")
    hooks = {"parse_float": json_float, "parse_constant": json_float, "parse_int": json_integer}
    return json.loads(source, object_pairs_hook=json_object, **hooks)


def json_integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise Refused("integer beyond 64 bits")
    return int(digits)


def json_float(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise Refused(f"{digits} is not JSON or beyond float64")
    return float(digits)


def json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unchecked: list[object] = [part for pair in pairs for part in pair]
    while unchecked:  # those that a later equal key hides too; inner objects have been here before
        part = unchecked.pop()
        if isinstance(part, str):
            part.encode()  # raises on a lone surrogate
        elif isinstance(part, list):
            unchecked += part
    return dict(pairs)


class RawMap(dict[str, object]):
    """The text keys of a MessagePack map, the last of equal ones, and its bytes as written."""

    raw: memoryview


class MessagePack:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def whole(self) -> object:
        value = self.value(level=1, in_key=False)
        if self.at != len(self.data):
            raise Refused("bytes left over")
        return value

    def take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise Refused("data ends too early")
        return self.data[self.at - size : self.at]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def value(self, *, level: int, in_key: bool) -> object:
        """Read one value; `level` is the one it is on should it be a container."""
        start, head = self.at, self.number(1)
        if head <= 0x7F or head >= 0xE0:
            return head if head <= 0x7F else head - 0x100
        if head <= 0x8F or head >= 0xDE:  # map
            count = head & 0x0F if head <= 0x8F else self.number(2 << head - 0xDE)
            if level > LEVEL_LIMIT or in_key:
                raise Refused("map in a key, or nested too deeply")
            fields = RawMap()
            for _ in range(count):
                key = self.value(level=level + 1, in_key=True)
                value = self.value(level=level + 1, in_key=False)
                if isinstance(key, str):
                    fields[key] = value
            fields.raw = memoryview(self.data)[start : self.at]
            return fields
        if head <= 0x9F or head >= 0xDC:  # list
            count = head & 0x0F if head <= 0x9F else self.number(2 << head - 0xDC)
            if level > LEVEL_LIMIT:
                raise Refused("nested too deeply")
            items = []
            for _ in range(count):
                items.append(self.value(level=level + 1, in_key=in_key))
            return items
        return self.plain(head)

    def plain(self, head: int) -> object:
        if head <= 0xBF or head >= 0xD9:  # text
            size = head & 0x1F if head <= 0xBF else self.number(1 << head - 0xD9)
            return self.take(size).decode()
        if head == 0xC1:
            raise Refused("0xc1 is not MessagePack")
        if head <= 0xC3:
            return {0xC0: None, 0xC2: False, 0xC3: True}[head]
        if head <= 0xC6:  # binary
            return self.take(self.number(1 << head - 0xC4))
        if head <= 0xC9 or head >= 0xD4:  # extension: a type byte, then the payload
            size = self.number(1 << head - 0xC7) if head <= 0xC9 else 1 << head - 0xD4
            return memoryview(self.take(1 + size))
        if head <= 0xCB:
            return struct.unpack(">f" if head == 0xCA else ">d", self.take(2 << head - 0xC9))[0]
        if head <= 0xCF:
            return self.number(1 << head - 0xCC)
        return self.number(1 << head - 0xD0, signed=True)
