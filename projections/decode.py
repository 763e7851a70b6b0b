"""From a row of the log to a typed event, or the reason why not."""

import re
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Annotated, Any, Final, TypeVar

import msgspec

from session_projector.projections import messagepack
from session_projector.projections.event import (
    MAX_EVENT_BYTES,
    MAX_NAME_BYTES,
    PREFIX,
    Body,
    Event,
    LogRow,
    Messages,
    MessagesAppended,
    Other,
    SessionCreated,
    SessionUpdated,
    Unfoldable,
    is_too_long,
    is_utf8,
    session_of,
)
from session_projector.projections.scanner import (
    FAILURES,
    MAX_CONTAINERS,
    MAX_DEPTH,
    TOO_DEEP,
    TOO_MANY,
    Malformed,
    is_list,
    is_map,
    may_be_built,
)

_MAX_MS: Final = 2**53
_SECONDS_BELOW: Final = 100_000_000_000
_T = TypeVar("_T")


def decode(row: LogRow, others: Collection[str] = ()) -> Event:
    """The event of a row; raises `Unfoldable`. `others`: further types that are folded."""
    return plain(row) or _any(row, others)


def _any(row: LogRow, others: Collection[str]) -> Event:
    for name, value in (("id", row.id), ("key", row.key)):
        if is_too_long(value):
            raise Unfoldable(f"{name} is longer than {MAX_NAME_BYTES} bytes, the most it may have")
    kind_data, stated, timestamp, data = messagepack.fields(_whole(row.data), _EVENT)
    kind = messagepack.scalar(kind_data)
    if not isinstance(kind, str):
        raise _wrong("type", kind, "text")
    read_body = _READERS.get(kind)
    if read_body is None and kind in others:
        read_body = _other
    if read_body is None:
        return Event(row.seq, "", kind, "", 0, None)
    try:
        time = time_of(messagepack.scalar(timestamp), row.created_at)
        event_id = _text("id", row.id)
        session_id = _session_id(_text("key", row.key), messagepack.scalar(stated))
        if data is None or not is_map(data[0]):
            raise _wrong("data", messagepack.scalar(data), "a map")
        return Event(row.seq, event_id, kind, session_id, time, read_body(_Data(data), time))
    except Unfoldable as error:
        raise Unfoldable(str(error), kind) from None


def time_of(timestamp: Any, created_at: Any) -> int:
    """An event's own time, else that of its row, in milliseconds; raises `Unfoldable`."""
    time = _optional_ms("timestamp", timestamp)
    return created_ms(created_at) if time is None else time


def created_ms(value: Any) -> int:
    """`event_log.created_at` in milliseconds; raises `Unfoldable`."""
    number = _integer("created_at", value)
    return _in_range("created_at", number * 1000 if number < _SECONDS_BELOW else number)


def _whole(data: Any) -> bytes:
    """The event as a map in MessagePack, whole and within the limits, in whichever encoding it was
    written. What it costs is bounded before anything of it is built."""
    if isinstance(data, str):
        data = _from_json(data)
    elif isinstance(data, bytes):
        _check_size(data)
        try:
            messagepack.check(data)
        except Malformed as error:
            raise Unfoldable(str(error)) from None
    else:
        raise _wrong("data", data, "MessagePack (a BLOB) or JSON (a TEXT)")
    if not is_map(data[0]):
        raise _wrong("the event", messagepack.scalar(data), "a map")
    return bytes(data)


def _from_json(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        _check_size(text.encode("utf-8", "replace"))  # of a text that was cut in a character too
        raise Unfoldable("not JSON: the text is not UTF-8") from None
    _check_size(data)
    _check_json_limits(data)
    read = _decode_json if _EXPONENT.search(data) else msgspec.json.decode
    del data  # what is built of it takes 18 times as much
    try:
        value = read(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unfoldable(NOT_JSON) from None
    try:
        encoded = msgspec.msgpack.encode(value)
    except OverflowError:
        encoded = b""
    if (not encoded or any(number in encoded for number in _INFINITE)) and _has_infinity(value):
        raise Unfoldable(NOT_JSON)
    if not encoded:
        raise Unfoldable("JSON with an integer beyond 64 bits, which MessagePack cannot hold")
    return encoded


NOT_JSON: Final = (
    "not JSON (RFC 8259: UTF-8, no byte-order mark, no NaN, no lone surrogate, no number beyond"
    " float64)"
)
_INFINITE: Final = tuple(msgspec.msgpack.encode(number) for number in (inf, -inf))


def _has_infinity(value: Any) -> bool:
    level: list[Collection[Any]] = [[value]]
    while level and not any(inf in values or -inf in values for values in level):
        inner = (v for values in level for v in values if isinstance(v, list | dict))
        level = [v.values() if isinstance(v, dict) else v for v in inner]
    return bool(level)


# With these a number may take msgspec 50 times as long as Python.
_EXPONENT: Final = re.compile(rb"[Ee][+-]?[0-9]{2}")
_decode_json: Final = msgspec.json.Decoder(float_hook=float).decode


def _check_json_limits(data: bytes) -> None:
    """The nesting, and how many maps and lists there are, before any is built."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    # What is left of a text without brackets are its two quotes. Where texts follow each other
    # they become one, and whatever is between quotes stays there.
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = unescaped.translate(None, _NO_MARKS).replace(b'""', b"")
    count = depth = 0
    for found in _BRACKET.finditer(marks):
        if found[1] == b"[" or found[1] == b"{":
            count, depth = count + 1, depth + 1
        elif depth < -MAX_CONTAINERS or not found[1]:
            return  # no JSON, or its end
        else:
            depth -= 1
        if depth > MAX_DEPTH:
            raise Unfoldable(f"JSON {TOO_DEEP}")
        if count > MAX_CONTAINERS:
            raise Unfoldable(TOO_MANY)


# It matches at the end too: it would search on within a text that has none.
_BRACKET: Final = re.compile(rb'(?:"[^"]*+"?)*+([][}{]|\Z)')
_NO_MARKS: Final = bytes({*range(256)} - {*b'[]{}"'})


def _check_size(data: bytes) -> None:
    if len(data) > MAX_EVENT_BYTES:
        raise Unfoldable(f"larger than {MAX_EVENT_BYTES} bytes, the most an event may have")


def _session_id(key: str, stated: Any) -> str:
    if stated is not None and not isinstance(stated, str):
        raise _wrong("sessionId", stated, "text")
    if stated == "" or not session_of(key):
        raise Unfoldable("the session id is empty")
    if stated is not None and stated != session_of(key):
        raise Unfoldable("sessionId names another session than the key of the row")
    return session_of(key)


_EVENT: Final = ("type", "sessionId", "timestamp", "data")
_DATA: Final = ("messages", "status", "project", "createdAt")


class _Data:
    """The fields of an event's own `data`."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self._fields = dict(zip(_DATA, messagepack.fields(encoded, _DATA), strict=True))

    def value(self, name: str) -> Any:
        return messagepack.scalar(self._fields[name])

    def optional_text(self, name: str) -> str | None:
        value = self.value(name)
        return None if value is None else _text(name, value)

    def status(self) -> str | None:
        status = self.optional_text("status")
        if status == "":
            raise Unfoldable("status is empty")
        return status

    def messages(self) -> Messages | None:
        encoded = self._fields["messages"]
        if encoded is None:
            return None
        if not is_list(encoded[0]):
            raise _wrong("messages", self.value("messages"), "a list")
        if odd := messagepack.other_than_map(encoded):
            index, message = odd
            raise _wrong(f"message {index}", messagepack.scalar(message), "a map")
        return Messages(*messagepack.split_list(encoded))


_NO_MESSAGES: Final = Messages(0, b"")
_NONE: Final = msgspec.Raw(b"\xc0")
_Ms = Annotated[int, msgspec.Meta(ge=-_MAX_MS, le=_MAX_MS)]
_Status = Annotated[str, msgspec.Meta(min_length=1)]


class _PlainData(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: msgspec.Raw = _NONE
    status: _Status | None = None
    project: str | None = None
    createdAt: _Ms | None = None  # noqa: N815


class _PlainEvent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event of ours with nothing in it that is not ours, as nearly all are."""

    type: str
    data: _PlainData
    sessionId: str | None = None  # noqa: N815
    timestamp: _Ms | None = None


# A value in a message, so shallow that its depth need not be counted.
_SCALAR: Final = bool | int | float | str | None
_Plain: Any = _SCALAR
for _level in range(4):
    _Plain = _SCALAR | list[_Plain] | dict[str, _Plain]

_decode_plain = msgspec.msgpack.Decoder(_PlainEvent).decode
_check_messages = msgspec.msgpack.Decoder(list[dict[str, _Plain]]).decode


def plain(row: LogRow) -> Event | None:
    """What `_any` makes of a plain event, at a fourth of its cost; None leaves it to that.

    Every byte is looked at here too: nothing is skipped, for want of unknown fields.
    """
    key, data, event_id = row.key, row.data, row.id
    if type(data) is not bytes or type(key) is not str or type(event_id) is not str:
        return None
    if len(data) > MAX_CONTAINERS and not may_be_built(data):
        return None
    if not (key.isascii() and event_id.isascii()):
        return None
    if len(key) > MAX_NAME_BYTES or len(event_id) > MAX_NAME_BYTES:
        return None
    try:
        event = _decode_plain(data)
        own = event.data
        if (raw := own.messages) is not _NONE:
            _check_messages(raw)
            messages = Messages(*messagepack.split_list(raw))
        else:
            messages = _NO_MESSAGES
        time = event.timestamp
        if time is None:
            time = created_ms(row.created_at)
    except (*FAILURES, Unfoldable):
        return None
    session = key.removeprefix(PREFIX)
    if not session or event.sessionId not in (None, session):
        return None
    kind = event.type
    folded: Body
    if kind == "session_append" or kind == "session_append_messages":
        if not messages.count:
            return None
        folded = MessagesAppended(messages)
    elif kind == "session_created":
        if own.project is None:
            return None
        created_at = time if own.createdAt is None else own.createdAt
        folded = SessionCreated(own.project, messages, own.status or "ready", created_at)
    elif kind == "session_status_update":
        if own.status is None:
            return None
        folded = SessionUpdated(None, own.status, None)
    elif kind == "session_updated":
        folded = SessionUpdated(None if raw is _NONE else messages, own.status, own.project)
    else:
        return None
    return Event(row.seq, event_id, kind, session, time, folded)


def _created(data: _Data, time: int) -> SessionCreated:
    created_at = _optional_ms("createdAt", data.value("createdAt"))
    return SessionCreated(
        project=_required(data.optional_text("project"), "project"),
        messages=data.messages() or _NO_MESSAGES,
        status=data.status() or "ready",
        created_at=time if created_at is None else created_at,
    )


def _appended(data: _Data, _time: int) -> MessagesAppended:
    messages = _required(data.messages(), "messages")
    if not messages.count:
        raise Unfoldable("messages is empty")
    return MessagesAppended(messages)


def _status_updated(data: _Data, _time: int) -> SessionUpdated:
    return SessionUpdated(None, _required(data.status(), "status"), None)


def _updated(data: _Data, _time: int) -> SessionUpdated:
    return SessionUpdated(data.messages(), data.status(), data.optional_text("project"))


def _other(data: _Data, _time: int) -> Other:
    try:
        return Other(messagepack.decode(data.encoded))
    except Malformed as error:
        raise Unfoldable(str(error)) from None


_READERS: Final[Mapping[str, Callable[[_Data, int], Body]]] = {
    "session_created": _created,
    "session_append": _appended,
    "session_append_messages": _appended,
    "session_status_update": _status_updated,
    "session_updated": _updated,
}


def _required(value: _T | None, name: str) -> _T:
    if value is None:
        raise _wrong(name, None, "")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    if not is_utf8(value):
        raise Unfoldable(f"{name} is not UTF-8")
    return value


def _optional_ms(name: str, value: Any) -> int | None:
    return None if value is None else _in_range(name, _integer(name, value))


def _integer(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "an integer")
    return value


def _in_range(name: str, milliseconds: int) -> int:
    if not -_MAX_MS <= milliseconds <= _MAX_MS:
        raise Unfoldable(f"{name} is beyond 2^53 milliseconds")
    return milliseconds


def _wrong(name: str, value: Any, wanted: str) -> Unfoldable:
    if value is None:
        return Unfoldable(f"{name} is missing or null")
    return Unfoldable(f"{name} is {_KINDS.get(type(value), 'an extension type')}, not {wanted}")


_KINDS: Final[Mapping[type, str]] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    bytes: "binary",
    list: "a list",
    dict: "a map",
}
