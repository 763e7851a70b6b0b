"""A client for other Python programs: append an event, wait until it is folded, read the view.

Each call opens the database and closes it again. It waits up to 5 seconds for a lock that another
process holds. `database` is a path or `sqlite://PATH`.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from session_projector.projections import BUILT_IN
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed, ProjectorError, UsageError, naming
from session_projector.worker.operations import wait as waiting
from session_projector.worker.sessions.read import session
from session_projector.worker.sessions.write import new_event
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
    milliseconds, by default the time of the call. `session_id` is without `session:`, which the key
    in the log begins with.

    Raises `UsageError` for an event that would not fold whatever the session says, and for an
    `id` that another event has.
    """
    row = new_event(session_id, type, data, now_ms(), event_id=id, timestamp=timestamp)
    with _opened(database, writable=True) as (_, store):
        return store.log.append(row)


def wait(
    database: _Database,
    seq: int,
    *,
    timeout_s: float = waiting.TIMEOUT_S,
    projection: str | None = None,
) -> None:
    """Return when the views hold the event at a position, as `append` gave it, and those before it,
    except views of other sessions that are deferred because they cost much to write.

    Waits for the views that `read` returns and for the table `session_index`; or for one
    `projection`, by its name. An event that went to quarantine counts as folded.

    Raises `CheckFailed` when it takes longer than `timeout_s` seconds, and says why.
    """
    if not isinstance(seq, int) or not 0 <= timeout_s < math.inf:
        raise UsageError(
            f"cannot wait {timeout_s!r} seconds for position {seq!r}",
            "give the position that append returned, and seconds of 0 or more",
        )
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
        except CheckFailed:
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
