"""Writing sessions: appends to the log exactly what any process would INSERT."""

import itertools
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from session_projector.projections.decode import decode
from session_projector.projections.event import PREFIX, LogRow, Unfoldable, keys_of, session_of
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed, UsageError, argument, quoted
from session_projector.worker.sessions.timeline import exists
from session_projector.worker.storage.port import Store

# With an `event_id` of the caller's each of these may be repeated: the same call finds its event in
# the log, and `UsageError` is raised where another one has the id. No time stands in such an event
# (`created_at` counts), as it would be another each time.


def queue(
    store: Store,
    project: str,
    message: str,
    event_id: str | None = None,
    session_id: str | None = None,
) -> tuple[str, int]:
    """Start a session with its first message; returns its id and the position of the event.

    Without a `session_id` it is the project's name and its next free number; raises `CheckFailed`
    if a session has the one that is given.
    """
    if not project or not project.isprintable():
        raise UsageError(
            "the project name is empty or has unprintable characters", "give a name: -p PROJECT"
        )
    # Read outside the write lock: only the number to start trying from.
    guess = store.log.highest_number(f"{project}-") + 1
    with store.transaction():
        known = None if event_id is None else store.log.position_of(event_id)
        if session_id is None:
            numbers = (f"{project}-{n}" for n in itertools.count(guess))
            session_id = next(name for name in numbers if not store.log.present(keys_of(name)))
            if known and (event := store.log.event(known)):
                session_id = session_of(str(event.key))
        elif not known and exists(store, session_id):
            raise CheckFailed(
                f"session {session_id} is there already in {store.name}",
                f"add to it: `projector session append -m MESSAGES {argument(session_id)}`",
            )
        first: dict[str, Any] = {"role": "user", "content": message}
        data: dict[str, Any] = {"project": project, "messages": [first], "status": "ready"}
        if event_id is None:
            now = now_ms()
            first["timestamp"] = data["createdAt"] = now
        seq = _append(store, session_id, "session_created", data, event_id)
    return session_id, seq


def append(
    store: Store, session_id: str, messages: bytes, *, stop: bool, event_id: str | None = None
) -> int:
    """Append messages, given as a JSON list; returns the position of the last event.

    To `stop` is an event of its own, whose id is `event_id` with `/stop` at its end.
    """
    parsed = _parse_messages(messages)
    _require_session(store, session_id)
    with store.transaction():
        seq = _append(store, session_id, "session_append", {"messages": parsed}, event_id)
        if stop:
            event_id = event_id and f"{event_id}/stop"
            ready = {"status": "ready"}
            seq = _append(store, session_id, "session_status_update", ready, event_id)
    return seq


def set_status(store: Store, session_id: str, new_status: str, event_id: str | None = None) -> int:
    """Set the status of a session; returns the position of the event."""
    _require_session(store, session_id)
    with store.transaction():
        data = {"status": new_status}
        return _append(store, session_id, "session_status_update", data, event_id)


def _append(
    store: Store, session_id: str, kind: str, data: Mapping[str, Any], event_id: str | None
) -> int:
    now = now_ms()
    timestamp = now if event_id is None else None
    event = new_event(session_id, kind, data, now, event_id=event_id, timestamp=timestamp)
    return store.log.append(event)


def new_event(
    session_id: str,
    kind: str,
    data: Mapping[str, Any],
    created_at: int,
    *,
    event_id: str | None = None,
    timestamp: int | None = None,
) -> LogRow:
    """An event as any other process would append it; raises `UsageError` if it would not fold."""
    if not isinstance(session_id, str):
        raise UsageError(f"the session id is {session_id!r}, not a text", "nothing was written")
    event: dict[str, Any] = {"type": kind, "sessionId": session_id, "data": data}
    if timestamp is not None:
        event["timestamp"] = timestamp
    event_id = uuid.uuid4().hex if event_id is None else event_id
    try:
        encoded = msgspec.msgpack.encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        why = f"MessagePack cannot hold the event: {error}"
        raise UsageError(why, "nothing was written") from None
    row = LogRow(0, event_id, PREFIX + session_id, encoded, created_at)
    try:
        decode(row, (kind,))
    except Unfoldable as error:
        raise UsageError(f"the event would not fold: {error}", "nothing was written") from None
    return row


def _parse_messages(data: bytes) -> list[Any]:
    wanted = 'a JSON list such as [{"role": "user", "content": "…"}]'
    try:
        messages = msgspec.json.decode(data)
        msgspec.msgpack.encode(messages)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise UsageError(f"the messages are not {wanted}: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"the messages are not {wanted}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {number} has no role", f"give {wanted}")
        if message.get("content") is None:
            raise UsageError(f"message {number} has no content", f"give {wanted}")
    return messages


def _require_session(store: Store, session_id: str) -> None:
    """Raise `CheckFailed` if no event created the session; called outside the write lock, as it may
    take a while, and a session never leaves the log."""
    if not session_id or not exists(store, session_id):
        raise CheckFailed(
            f"there is no session {session_id} in {store.name}",
            creating(session_id),
        )


def creating(session_id: str) -> str:
    """The hint to create a session of this id."""
    named = f" --session {quoted(session_id)}" if session_id else ""
    return f"create it first: `projector session queue{named} -p PROJECT MESSAGE`"
