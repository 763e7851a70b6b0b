"""What commands append to the log: exactly what any process would INSERT."""

import itertools
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from projections.event import Event, LogRow, Unfoldable, decode, keys_of, session_of
from projections.messagepack import Malformed, decode_exact
from projections.sessions import PREFIX, Sessions
from worker.client import Client
from worker.errors import BadUsage, Finding
from worker.history import exists, folded


def queue(client: Client, project: str, message: str) -> str:
    """A new session with its first message; its id is the project's next free number."""
    if not project or not project.isprintable():
        raise BadUsage(
            "the project is empty, or holds characters that cannot be seen", "name it: -p PROJECT"
        )
    guess = _next_number(client, project)
    with client.transaction():
        numbers = itertools.count(guess)
        session_id = next(
            f"{project}-{n}" for n in numbers if not _has_events(client, f"{project}-{n}")
        )
        now = _now_ms()
        first = {"role": "user", "content": message, "timestamp": now}
        data = {"project": project, "messages": [first], "status": "ready", "createdAt": now}
        _append(client, session_id, "session_created", data, now)
    return session_id


def append(client: Client, session_id: str, messages: bytes, *, stop: bool) -> int:
    """Messages at the end of a session, given as a JSON list; the position of the last event."""
    said = _parse_messages(messages)
    with client.transaction():
        _require_session(client, session_id)
        now = _now_ms()
        seq = _append(client, session_id, "session_append", {"messages": said}, now)
        if stop:
            seq = _append(client, session_id, "session_status_update", {"status": "ready"}, now)
    return seq


def set_status(client: Client, session_id: str, new_status: str) -> int:
    """The position of the event."""
    with client.transaction():
        _require_session(client, session_id)
        return _append(
            client, session_id, "session_status_update", {"status": new_status}, _now_ms()
        )


def check(path: Path, data: bytes) -> str:
    """What would become of an event, MessagePack or JSON; raises `Finding` if it would not fold."""
    text = as_data(data)
    key = stated_key(text) or PREFIX + _UNSTATED
    try:
        envelope = decode(LogRow(0, "checked", key, text, 0))
    except Unfoldable as error:
        raise Finding(f"would not fold: {error}", "mend it, and check it again") from None
    if envelope.body is None:
        return f"would be skipped: {envelope.type} is not a type of ours"
    if envelope.session_id == _UNSTATED:
        return f"would fold into the session that its row's key names: {envelope.type}"
    if path.exists():
        with Client.reading(path) as client:
            _check_against_log(client, envelope)
    return f"would fold: {envelope.type} of session {envelope.session_id}"


_UNSTATED: Final = "\x00unstated"


def as_data(data: bytes) -> str | bytes:
    """What a writer would bind: JSON as a TEXT, MessagePack as a BLOB."""
    try:
        return data.decode()  # no MessagePack map begins as UTF-8 does
    except UnicodeDecodeError:
        return data


def stated_key(data: str | bytes) -> str | None:
    """The key that an event's own `sessionId` gives its row."""
    try:
        event = msgspec.json.decode(data) if isinstance(data, str) else decode_exact(data)
        stated = event.get("sessionId")
    except (msgspec.MsgspecError, Malformed, AttributeError, UnicodeError, RecursionError):
        return None
    return PREFIX + stated if isinstance(stated, str) and stated else None


def _check_against_log(client: Client, event: Event) -> None:
    view = folded(client, event.session_id)
    try:
        Sessions().fold(view, event)
    except Unfoldable as error:
        raise Finding(
            f"would not fold into {client.path}: {error}", "mend it, and check it again"
        ) from None


def _append(
    client: Client, session_id: str, kind: str, data: Mapping[str, Any], now_ms: int
) -> int:
    """Exactly what a foreign process does, once it is known to fold."""
    event = {"type": kind, "sessionId": session_id, "data": data, "timestamp": now_ms}
    row = LogRow(0, uuid.uuid4().hex, PREFIX + session_id, msgspec.msgpack.encode(event), now_ms)
    try:
        decode(row)
    except Unfoldable as error:
        raise BadUsage(f"the event would not fold: {error}", "nothing was written") from None
    cursor = client.connection.execute(
        "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)",
        (row.id, row.key, row.data, row.created_at),
    )
    return cursor.lastrowid or 0


def _parse_messages(data: bytes) -> list[Any]:
    wanted = 'a JSON list such as [{"role": "user", "content": "…"}]'
    try:
        said = msgspec.json.decode(data)
        msgspec.msgpack.encode(said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise BadUsage(f"the messages are not {wanted}: {error}") from None
    if not isinstance(said, list) or not said:
        raise BadUsage(f"the messages are not {wanted}")
    for number, message in enumerate(said):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadUsage(f"message {number} has no role", f"give {wanted}")
        if message.get("content") is None:
            raise BadUsage(f"message {number} has no content", f"give {wanted}")
    return said


def _require_session(client: Client, session_id: str) -> None:
    if not session_id or not exists(client, session_id):
        raise Finding(
            f"there is no session {session_id} in {client.path}",
            "queue one with `projector session queue -p PROJECT MESSAGE`",
        )


def _has_events(client: Client, session_id: str) -> bool:
    return any(
        client.value("SELECT EXISTS (SELECT 1 FROM event_log WHERE key = ?)", (key,))
        for key in keys_of(session_id)
    )


def _next_number(client: Client, project: str) -> int:
    """One above the highest in use, seen outside the write lock: a number to begin to try from."""
    highest = 0
    for prefix in (f"{project}-", f"{PREFIX}{project}-"):
        # One step through the index for each key, however many events it has.
        for (key,) in client.rows(
            "WITH RECURSIVE keys (key) AS ("
            "SELECT (SELECT min(key) FROM event_log WHERE key >= :from AND key < :to)"
            " UNION ALL SELECT (SELECT min(key) FROM event_log WHERE key > keys.key AND key < :to)"
            " FROM keys WHERE key IS NOT NULL) SELECT key FROM keys WHERE key IS NOT NULL",
            {"from": prefix, "to": prefix[:-1] + "."},
        ):
            number = session_of(key).removeprefix(f"{project}-")
            if number.isascii() and number.isdigit():
                highest = max(highest, int(number[:18]))
    return highest + 1


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
