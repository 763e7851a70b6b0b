"""What commands append to the log: exactly what any process would INSERT."""

import itertools
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from session_projector.projections.decode import decode
from session_projector.projections.event import PREFIX, LogRow, Unfoldable, keys_of
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import BadUsage, Finding
from session_projector.worker.sessions.timeline import exists
from session_projector.worker.storage.port import Store


def queue(store: Store, project: str, message: str) -> tuple[str, int]:
    """A new session with its first message: its id, which is the project's next free number, and
    the position of the event."""
    if not project or not project.isprintable():
        raise BadUsage(
            "the project is empty, or holds characters that cannot be seen", "name it: -p PROJECT"
        )
    # Seen outside the write lock: a number to begin to try from.
    guess = store.log.highest_number(f"{project}-") + 1
    with store.transaction():
        numbers = itertools.count(guess)
        session_id = next(
            f"{project}-{n}" for n in numbers if not store.log.present(keys_of(f"{project}-{n}"))
        )
        now = now_ms()
        first = {"role": "user", "content": message, "timestamp": now}
        data = {"project": project, "messages": [first], "status": "ready", "createdAt": now}
        seq = _append(store, session_id, "session_created", data, now)
    return session_id, seq


def append(store: Store, session_id: str, messages: bytes, *, stop: bool) -> int:
    """Messages at the end of a session, given as a JSON list; the position of the last event."""
    said = _parse_messages(messages)
    _require_session(store, session_id)
    with store.transaction():
        now = now_ms()
        seq = _append(store, session_id, "session_append", {"messages": said}, now)
        if stop:
            seq = _append(store, session_id, "session_status_update", {"status": "ready"}, now)
    return seq


def set_status(store: Store, session_id: str, new_status: str) -> int:
    """The position of the event."""
    _require_session(store, session_id)
    with store.transaction():
        return _append(store, session_id, "session_status_update", {"status": new_status}, now_ms())


def _append(store: Store, session_id: str, kind: str, data: Mapping[str, Any], now_ms: int) -> int:
    """Exactly what a foreign process does, once it is known to fold."""
    event = {"type": kind, "sessionId": session_id, "data": data, "timestamp": now_ms}
    row = LogRow(0, uuid.uuid4().hex, PREFIX + session_id, msgspec.msgpack.encode(event), now_ms)
    try:
        decode(row)
    except Unfoldable as error:
        raise BadUsage(f"the event would not fold: {error}", "nothing was written") from None
    return store.log.append(row)


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


def _require_session(store: Store, session_id: str) -> None:
    """Outside the write lock, as it may take a while; in the log, what is there stays."""
    if not session_id or not exists(store, session_id):
        raise Finding(
            f"there is no session {session_id} in {store.name}",
            "queue one with `projector session queue -p PROJECT MESSAGE`",
        )
