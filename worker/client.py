"""A client for other Python programs: append an event, wait until it is folded, read the view.

Each call opens the database and closes it again. It waits up to 5 seconds for a lock that another
process holds. `database` is a path or a `sqlite:` URL.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from session_projector.projections import BUILT_IN
from session_projector.projections.decode import decode
from session_projector.projections.event import PREFIX, LogRow, Unfoldable
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import BadUsage, Finding, ProjectorError, naming
from session_projector.worker.operations import wait as waiting
from session_projector.worker.sessions.read import session
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Database, Store

_Database = str | os.PathLike[str]


def append(
    database: _Database,
    session_id: str,
    type: str,  # noqa: A002
    data: dict[str, Any],
    *,
    id: str | None = None,  # noqa: A002
    timestamp: int | None = None,
) -> int:
    """Append one event about a session, and return its position in the log (its `seq`).

    With an `id` of your own the call may be repeated: as long as session and event are the same,
    it returns the position of the event that is there. `timestamp` is the event's time in Unix
    milliseconds, by default the time of the call.

    Raises `BadUsage` for an event that would not fold whatever the session says, and for an
    `id` that another event has.
    """
    event: dict[str, Any] = {"type": type, "sessionId": session_id, "data": data}
    if timestamp is not None:
        event["timestamp"] = timestamp
    try:
        row = LogRow(
            seq=0,
            id=uuid.uuid4().hex if id is None else id,
            key=PREFIX + session_id,
            data=msgspec.msgpack.encode(event),
            created_at=now_ms(),
        )
        decode(row, (type,))
    except (Unfoldable, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadUsage(f"the event would not fold: {error}", "nothing was written") from None
    with _opened(database, writable=True) as (_, store):
        return store.log.append(row)


def wait(
    database: _Database,
    seq: int,
    *,
    timeout_s: float = waiting.TIMEOUT_S,
    projection: str | None = None,
) -> None:
    """Return when the views hold all events up to a position, as `append` gave it.

    Waits for the views that `read` returns and for the table `session_index`; or for one
    `projection`, by its name. An event that went to quarantine counts as folded.

    Raises `Finding` when it takes longer than `timeout_s` seconds, and says why.
    """
    with _opened(database) as (target, store):
        if projection is not None:
            waiting.require_known(store, projection)
        names = [each.name for each in BUILT_IN] if projection is None else [projection]
        waiting.wait(target, store, seq, timeout_s=timeout_s, names=names)


def read(database: _Database, session_id: str) -> dict[str, Any] | None:
    """Return the view of a session, or None if there is none yet.

    It has `id`, `project`, `messages`, `status`, `createdAt` and `updatedAt`; times are integers in
    Unix milliseconds. Messages are as their writer encoded them; an extension type of MessagePack
    is an object with `code` and `data`.
    """
    with _opened(database) as (_, store):
        try:
            return session(store, session_id)
        except Finding:
            return None


@contextmanager
def _opened(database: _Database, *, writable: bool = False) -> Iterator[tuple[Database, Store]]:
    """The database and a store; the hints of errors name the database, as on the command line."""
    target = storage.database(os.fspath(database))
    try:
        with target.open(writable=writable) as store:
            yield target, store
    except ProjectorError as error:
        error.hint = naming(target.name, error.hint)
        raise
