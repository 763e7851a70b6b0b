"""A second, naive fold of both tables, written from the contract only, without product code."""

import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

EVENT_LIMIT_BYTES = 16 * 1024 * 1024  # of `data` as stored
VIEW_LIMIT_BYTES = 256 * 1024 * 1024  # of the view's encoded `data`; a test may lower it
NAME_LIMIT_BYTES = 64 * 1024  # of `id` and `key` each, in UTF-8
CONTAINER_LIMIT = 100_000  # maps and lists in an event; a test may lower it
LEVEL_LIMIT = 256  # the event's own map is level 1
TITLE_LIMIT = 80  # code points
APPENDS = ("session_append", "session_append_messages")
OUR_TYPES = (*APPENDS, "session_created", "session_status_update", "session_updated")

# Where the loop over JSON stops: a surrogate pair, a lone surrogate, another escape, a mark.
HIGH, LOW = r"\\u[dD][89abAB]..", r"\\u[dD][c-fC-F].."
JSON_MARKS = re.compile(rf'{HIGH}{LOW}|{HIGH}|{LOW}|\\.|["\[\]{{}}]', re.DOTALL)
pack = msgpack.packb  # writes the shortest form
Map = dict[str, object]
Row = tuple[int, object, object, object, object]  # seq, id, key, data, created_at
ViewRow = tuple[str, str, bytes, str, int, int]
# session_id, project, status, title, message_count, last_role, created_at, updated_at,
# last_event_id, last_seq
IndexRow = tuple[str, str, str, str | None, int, str | None, int, int, str, int]


@dataclass
class Result:
    """The result of folding a log: view rows by key, reasons by `seq`, and the skipped count."""

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
    last_seq: int = 0

    def encoded(self) -> list[bytes]:
        """Return the view's `data` in pieces: a map of six fields, each message as bytes."""
        header = msgpack.Packer().pack_array_header(len(self.messages))
        before = ("id", self.id, "project", self.project, "messages")
        after = ("status", self.status, "createdAt", self.created_at, "updatedAt", self.updated_at)
        return [b"\x86", *map(pack, before), header, *self.messages, *map(pack, after)]


def fold(rows: Iterable[Row]) -> Result:
    """Fold the rows of `event_log`, in `seq` order, from nothing."""
    result, sessions = run(rows, VIEW_LIMIT_BYTES)
    for s in sessions.values():
        key, data = f"session:{s.id}", b"".join(s.encoded())
        result.views[key] = (key, key, data, s.last_offset_id, s.created_at, s.updated_at)
    return result


def index(rows: Iterable[Row]) -> dict[str, IndexRow]:
    """Fold the same rows into those of `session_index`, which has no limit on a view's size."""
    return {s.id: index_row(s) for s in run(rows, None)[1].values()}


def run(rows: Iterable[Row], view_limit: int | None) -> tuple[Result, dict[str, Session]]:
    """Fold the rows into sessions, and a result that has no views yet."""
    result = Result()
    sessions: dict[str, Session] = {}
    for seq, row_id, key, data, created_at in rows:
        try:
            for name in (row_id, key):
                raw = name.encode("utf-8", "replace") if isinstance(name, str) else name
                if isinstance(raw, bytes) and len(raw) > NAME_LIMIT_BYTES:
                    raise Refused("id or key over its size limit")
            event = decode(data)
            if event["type"] not in OUR_TYPES:
                result.skipped += 1
                continue
            name = session_named(key, event.get("sessionId"))
            time = event_time(event.get("timestamp"), created_at)
            changed = apply(event, sessions.get(name), name, time, text(row_id, "id"))
            if view_limit is not None and sum(map(len, changed.encoded())) > view_limit:
                raise Refused("view over the size limit")
            sessions[name] = replace(changed, last_seq=seq)
        except Refused as refused:
            result.quarantine[seq] = str(refused)
    return result, sessions


def index_row(s: Session) -> IndexRow:
    """Compute the row from all of the session's messages, decoding them again."""
    messages: list[Any] = [MessagePack(message).whole() for message in s.messages]
    role = messages[-1].get("role") if messages else None
    last_role = role if isinstance(role, str) else None
    of_user = [message for message in messages if message.get("role") == "user"]
    first = of_user[0] if of_user else {}
    words = said(first.get("content")) or said(first.get("parts"))
    title = one_line(words) if of_user else None
    about = (s.id, s.project, s.status, title, len(messages), last_role)
    return (*about, s.created_at, s.updated_at, s.last_offset_id, s.last_seq)


def said(content: object) -> str:
    """Return the text of a message's `content`, or of its first part that has text."""
    if isinstance(content, str):
        return content
    for part in content if isinstance(content, list) else []:
        kinds = (None, "text", "input_text", "output_text")
        words = part.get("text") if isinstance(part, dict) and part.get("type") in kinds else None
        if isinstance(words, str):
            return words
    return ""


def one_line(words: str) -> str:
    line = re.sub(r"[ \t\n\r\f\v]+", " ", words).strip(" ")
    return line if len(line) <= TITLE_LIMIT else line[: TITLE_LIMIT - 1] + "…"


def apply(event: Map, old: Session | None, name: str, time: int, row_id: str) -> Session:
    """Return the session after the event, without changing the old one."""
    kind, body = event["type"], event.get("data")
    if not isinstance(body, dict):
        raise Refused("data is not a map")
    project, status, messages = body.get("project"), body.get("status"), body.get("messages")
    if (old is None) != (kind == "session_created"):
        raise Refused("session created twice, or never")
    if old is None:
        created = body.get("createdAt")
        created_at = time if created is None else event_time(created, None)
        new = Session(name, text(project, "project"), [], "ready", created_at, time, row_id)
    else:
        new = replace(old, updated_at=time, last_offset_id=row_id)

    if kind in APPENDS:
        new.messages = new.messages + message_list(messages, may_be_empty=False)
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
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        raise Refused(f"{name} is not text")
    if value == "" and not may_be_empty:
        raise Refused(f"{name} is empty")
    return value


def session_named(key: object, session_id: object) -> str:
    named = text(text(key, "key").removeprefix("session:"), "session id", may_be_empty=False)
    if session_id is not None and text(session_id, "sessionId") != named:
        raise Refused("key and sessionId disagree")
    return named


def message_list(value: object, *, may_be_empty: bool = True) -> list[bytes]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused("messages is not a list of maps")
    if not value and not may_be_empty:
        raise Refused("messages is empty")
    return [bytes(item.raw) if isinstance(item, RawMap) else pack(item) for item in value]


def event_time(value: object, created_at: object) -> int:
    """Read milliseconds from `value` or, if it is null, from the row's `created_at`."""
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


def decode(data: object) -> Map:
    """Decode the whole event, a map with a text `type`, even if the type is not ours."""
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
    level, containers, in_string = (
        0,
        0,
        False,
    )  # up to its first error JSON has the same strings as this loop
    for match in JSON_MARKS.finditer(source):
        if len(match[0]) == 6:
            raise Refused("lone surrogate")
        if match[0] == '"':
            in_string = not in_string
        elif not in_string and match[0] in "[]{}":
            level += 1 if match[0] in "[{" else -1
            containers += match[0] in "[{"
            if level > LEVEL_LIMIT or containers > CONTAINER_LIMIT:
                raise Refused("nested too deeply, or too many lists and maps")
    return json.loads(source, parse_int=integer, parse_float=real, parse_constant=real)


def integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise Refused("integer beyond 64 bits")
    return int(digits)


def real(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise Refused(f"{digits} is not JSON or beyond float64")
    return float(digits)


class RawMap(Map):
    """The text keys of a MessagePack map (the last one of equal keys), and its original bytes."""

    raw: memoryview


class MessagePack:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.containers = data, 0, 0

    def whole(self) -> object:
        value = self.value(level=1, in_key=False)
        if self.at < len(self.data):
            raise Refused("bytes left over")
        return value

    def take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise Refused("data ends too early")
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def value(self, *, level: int, in_key: bool) -> object:
        """Read one value; `level` is its nesting level if it is a container."""
        start, head = self.at, self.number(1)
        if head <= 0x7F or head >= 0xE0:
            return head if head <= 0x7F else head - 0x100
        if 0xA0 <= head <= 0xDB:
            return self.plain(head)
        is_map = head <= 0x8F or head >= 0xDE
        self.containers += 1
        if level > LEVEL_LIMIT or in_key or self.containers > CONTAINER_LIMIT:
            raise Refused("nested too deeply, a list or map as a key, or too many of them")
        size = head & 0x0F if head <= 0x9F else self.number(4 if head & 1 else 2)
        items, fields = [], RawMap()
        for _ in range(size):
            items.append(self.value(level=level + 1, in_key=is_map))
            if is_map:
                item = self.value(level=level + 1, in_key=False)
                if isinstance(items[-1], str):
                    fields[items[-1]] = item
        fields.raw = memoryview(self.data)[start : self.at]
        return fields if is_map else items

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
        form = ">" + "fdBHIQbhiq"[head - 0xCA]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]
