"""From a row of the log to a typed event, or the reason why not."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

from session_projector.projections import messagepack
from session_projector.projections.event import (
    MAX_EVENT_BYTES,
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
    is_utf8,
    session_of,
)

_MAX_MS: Final = 2**53
_SECONDS_BELOW: Final = 100_000_000_000
_T = TypeVar("_T")


def decode(row: LogRow, others: Collection[str] = ()) -> Event:
    """The event of a row; raises `Unfoldable`. `others`: further types that are folded."""
    return plain(row) or _any(row, others)


def _any(row: LogRow, others: Collection[str]) -> Event:
    data, event = _whole(row.data)
    kind = event.get("type")
    if not isinstance(kind, str):
        raise _wrong("type", kind, "text")
    read_body = _READERS.get(kind)
    if read_body is None and kind in others:
        read_body = _other
    if read_body is None:
        return Event(row.seq, "", kind, "", 0, None)
    try:
        return _typed(row, kind, _Data(event, data), read_body)
    except Unfoldable as error:
        raise Unfoldable(str(error), kind) from None


def _typed(
    row: LogRow, kind: str, data: "_Data", read_body: "Callable[[_Data, int], Body]"
) -> Event:
    event = data.event
    time = time_of(event, row.created_at)
    event_id = _text("id", row.id)
    session_id = _session_id(_text("key", row.key), event.get("sessionId"))
    if not isinstance(event.get("data"), dict):
        raise _wrong("data", event.get("data"), "a map")
    return Event(row.seq, event_id, kind, session_id, time, read_body(data, time))


def time_of(event: Mapping[Any, Any], created_at: Any) -> int:
    """An event's own time, else that of its row, in milliseconds; raises `Unfoldable`."""
    time = _optional_ms(event, "timestamp")
    return created_ms(created_at) if time is None else time


def created_ms(value: Any) -> int:
    """`event_log.created_at` in milliseconds; raises `Unfoldable`."""
    number = _integer("created_at", value)
    return _in_range("created_at", number * 1000 if number < _SECONDS_BELOW else number)


def _whole(data: Any) -> tuple[bytes, dict[Any, Any]]:
    """The event in MessagePack and its values, whichever encoding the writer chose."""
    if isinstance(data, str):
        value = _decode_json(data)
        data = _encode(value)
    elif isinstance(data, bytes):
        _check_size(data)
        try:
            value = messagepack.decode(data)
        except messagepack.Malformed as error:
            raise Unfoldable(str(error)) from None
    else:
        raise _wrong("data", data, "MessagePack (a BLOB) or JSON (a TEXT)")
    if not isinstance(value, dict):
        raise _wrong("the event", value, "a map")
    return data, value


def _decode_json(text: str) -> Any:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise Unfoldable("not JSON: the text is not UTF-8") from None
    _check_size(data)
    if _json_depth(text) > messagepack.MAX_DEPTH:
        raise Unfoldable(f"JSON nested deeper than {messagepack.MAX_DEPTH} levels")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unfoldable(
            "not JSON (RFC 8259: UTF-8, no byte-order mark, no NaN, no lone surrogate, no number"
            " beyond float64)"
        ) from None


def _encode(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        raise Unfoldable(
            "JSON with an integer beyond 64 bits, which MessagePack cannot hold"
        ) from None


def _json_depth(text: str) -> int:
    """The deepest nesting, exact where it could be beyond the limit: there, as the library's own
    limit differs between Pythons, it is counted before the text is decoded."""
    if text.count("[") + text.count("{") <= messagepack.MAX_DEPTH:
        return 0
    # Each step is linear in the text, however malformed: without its strings it is every other
    # piece between its quotes.
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    depth = deepest = 0
    for bracket in _BRACKETS.findall("".join(unescaped.split('"')[::2])):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


_BRACKETS: Final = re.compile(r"[\[\]{}]")


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


class _Data(msgspec.Struct, frozen=True):
    """The fields of an event's own `data`."""

    event: dict[Any, Any]
    encoded: bytes

    def optional_text(self, name: str) -> str | None:
        value = self.event["data"].get(name)
        return None if value is None else _text(name, value)

    def status(self) -> str | None:
        status = self.optional_text("status")
        if status == "":
            raise Unfoldable("status is empty")
        return status

    def messages(self) -> Messages | None:
        values = self.event["data"].get("messages")
        if values is None:
            return None
        if not isinstance(values, list):
            raise _wrong("messages", values, "a list")
        for index, message in enumerate(values):
            if not isinstance(message, dict):
                raise _wrong(f"message {index}", message, "a map")
        data = messagepack.fields(self.encoded)["data"]
        return Messages(*messagepack.split_list(messagepack.fields(data)["messages"]))


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
    if len(data) > MAX_EVENT_BYTES or not (key.isascii() and event_id.isascii()):
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
    except (*messagepack.FAILURES, Unfoldable):
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
    created_at = _optional_ms(data.event["data"], "createdAt")
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
    return Other(data.event["data"])


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


def _optional_ms(fields: Mapping[Any, Any], name: str) -> int | None:
    value = fields.get(name)
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
