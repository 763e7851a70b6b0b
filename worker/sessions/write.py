"""What commands append to the log: exactly what any process would INSERT."""

import itertools
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from session_projector.projections.decode import decode
from session_projector.projections.event import PREFIX, LogRow, Unfoldable, keys_of, session_of
from session_projector.projections.messagepack import Malformed, decode_exact
from session_projector.worker import registry
from session_projector.worker.errors import BadUsage, Finding
from session_projector.worker.operations import event_check as foldable
from session_projector.worker.sessions.timeline import exists
from session_projector.worker.storage.sqlite.client import Client


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
    _require_session(client, session_id)
    with client.transaction():
        now = _now_ms()
        seq = _append(client, session_id, "session_append", {"messages": said}, now)
        if stop:
            seq = _append(client, session_id, "session_status_update", {"status": "ready"}, now)
    return seq


def set_status(client: Client, session_id: str, new_status: str) -> int:
    """The position of the event."""
    _require_session(client, session_id)
    with client.transaction():
        return _append(
            client, session_id, "session_status_update", {"status": new_status}, _now_ms()
        )


def check(path: Path, data: bytes) -> str:
    """What would become of an event, MessagePack or JSON; raises `Finding` if it would not fold."""
    text = as_data(data)
    stated = stated_key(text)
    row = LogRow(0, "checked", stated or PREFIX + _UNSTATED, text, 0)
    known = registry.known()
    if stated is not None and path.exists():
        with Client.reading(path) as client:
            found = foldable.verdicts(client, row, known)
    else:
        found = foldable.verdicts(None, row, known)
    require_foldable(found, "mend it, and check it again")
    if not found:
        return "would be skipped: its type is none that a projection here folds"
    of = "the session that its row's key names" if stated is None else session_of(stated)
    return f"would fold into {', '.join(found)}: {of}"


def require_foldable(found: Mapping[str, str | None], hint: str) -> None:
    """Raises `Finding` for the first of `foldable.verdicts` that says no."""
    for name, reason in found.items():
        if reason is not None:
            raise Finding(f"would not fold into {name}: {reason}", hint)


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
    """Outside the write lock, as it may take a while; in the log, what is there stays."""
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
