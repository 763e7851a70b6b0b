"""What commands read: views, the quarantine, how things stand."""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from session_projector.projections.decode import created_ms
from session_projector.projections.event import PREFIX, Unfoldable, is_utf8, keys_of
from session_projector.projections.messagepack import Malformed, decode_exact
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.projections.session_index import Entry, SessionIndex
from session_projector.worker import linux as proc
from session_projector.worker.errors import NeedsPerson, quoted
from session_projector.worker.operations.projections import Listed, fits_log, listing
from session_projector.worker.sessions.timeline import SESSIONS, no_session
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import DaemonLock
from session_projector.worker.storage.sqlite.schema import migrate as schema

_INDEX: Final = SessionIndex()
WATCH_POLL_S: Final = 0.02
CLOCKS: Final = 100
"""Of so many events that wait, one may have a time that can be."""
WAL_WARNING_BYTES: Final = 64 * 1024 * 1024
"""A write-ahead log is reused from its start at about 4 MiB, unless a reader pins it."""


def sessions(
    client: Client,
    *,
    project: str | None = None,
    statuses: Sequence[str] | None = None,
    after: int | None = None,
) -> Iterator[Entry]:
    """The sessions of a project and of some statuses, oldest first.

    With `after`: those changed by events after that position, in the order of the changes.
    """
    conditions: list[tuple[str, Any]] = []
    if project is not None:
        conditions.append(("project = ?", [project]))
    if statuses is not None:
        conditions.append((f"status IN ({', '.join('?' * len(statuses))})", statuses))
    if after is not None:
        conditions.append(("last_seq > ?", [after]))
    where = " AND ".join(condition for condition, _ in conditions) or "TRUE"
    order = "created_at, session_id" if after is None else "last_seq"
    for row in client.rows(
        f"SELECT {', '.join(_INDEX.table.columns)} FROM session_index WHERE {where}"
        f" ORDER BY {order}",
        [value for _, values in conditions for value in values],
    ):
        yield Entry(*row)


def watch(client: Client, project: str | None) -> Iterator[Entry]:
    """Each change of a session as it becomes visible, for ever."""
    seen = _newest_change(client)
    while True:
        # A log that was restored to fewer events goes on from where it is.
        seen = min(seen, _newest_change(client))
        for entry in sessions(client, after=seen):
            seen = entry.last_seq
            if project in (None, entry.project):
                yield entry
        time.sleep(WATCH_POLL_S)


def _newest_change(client: Client) -> int:
    return int(client.value("SELECT coalesce(max(last_seq), 0) FROM session_index"))


def session(client: Client, session_id: str) -> dict[str, Any]:
    """A session's view as it stands; raises `Finding` where there is none."""
    rows = client.rows(
        f"SELECT {', '.join(SESSIONS.table.columns)} FROM view"
        " WHERE key >= 'session:' AND key < 'session;' AND key = ?",
        (PREFIX + session_id,),
    )
    row = next(rows, None)
    if row is None:
        raise no_session(client, session_id)
    try:
        restore(SESSIONS, row)
        view: dict[str, Any] = decode_exact(row[2])
    except (CorruptRow, Malformed):
        view = {"messages": [None]}
    if not all(isinstance(message, dict) for message in view["messages"]):
        path = quoted(client.path)
        adopted = not client.value("SELECT coalesce(max(position), 0) FROM checkpoint")
        raise NeedsPerson(
            f"the view of session {session_id} in {client.path} was not written by projector",
            f"fold it from the log: `projector run -d {path}`"
            if adopted
            else f"mend it: `projector replay --session {shlex.quote(session_id)} -d {path}`",
        )
    return view


def status(path: Path) -> dict[str, Any]:
    """How things stand; as true when no daemon is alive."""
    with Client.reading(path) as client:
        log = client.rows("SELECT coalesce(max(seq), 0), count(*) FROM event_log")
        newest, events = next(log)
        projections = [_progress(client, listed) for listed in listing(client)]
        applied = [name for name, is_applied in schema.status(path) if is_applied]
    wal = path.with_name(path.name + "-wal")
    lock = DaemonLock(path)
    holder = lock.holder()
    return {
        "database": str(path),
        "daemon": {
            "alive": holder is not None,
            "pid": holder,
            "stopped": holder is not None and proc.is_stopped(holder),
            "running": [*lock.running()],
        },
        "schema": applied[-1],
        "newest": newest,
        "events": events,
        "projections": projections,
        "file_bytes": path.stat().st_size,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
        "wal_warning_bytes": WAL_WARNING_BYTES,
    }


def _progress(client: Client, projection: Listed) -> dict[str, Any]:
    position = projection.position
    return {
        "name": projection.name,
        "version": projection.version,
        "code_version": projection.code_version,
        "state": _state(client, projection),
        "position": position,
        "lag_events": client.value("SELECT count(*) FROM event_log WHERE seq > ?", (position,)),
        "lag_seconds": _lag_seconds(client, position),
        "views": projection.rows,
        "quarantined": projection.quarantined,
        "dismissed": client.value(
            "SELECT count(*) FROM quarantine AS q JOIN dismissed AS d"
            " ON d.seq = q.seq AND d.id IS q.id WHERE q.projection = ?",
            (projection.name,),
        ),
        "skipped": projection.skipped,
        "fits_log": fits_log(client, position, projection.digest),
    }


def _state(client: Client, projection: Listed) -> dict[str, Any]:
    """What it is doing: tailing, or as its daemon reports; `since` and `updated_at` in Unix ms."""
    names = ("state", "version", "why", "events", "total", "since", "updated_at")
    row = next(
        client.rows(
            f"SELECT {', '.join(names)} FROM projection_state WHERE projection = ?",
            (projection.name,),
        ),
        None,
    )
    if row is not None:
        return dict(zip(names, row, strict=True))
    older = (projection.version or 0) < (projection.code_version or 0)
    return {"state": "old" if projection.version is not None and older else "tailing"}


def _lag_seconds(client: Client, position: int) -> float | None:
    """Since the oldest event that is not folded was written, by its writer's clock.

    One whose clock is ahead, or says no time, says nothing: then those after it count, then the
    last that was folded. None where none of them says it.
    """
    around = "SELECT created_at FROM event_log WHERE seq {} ? ORDER BY seq {} LIMIT ?"
    waiting = [*client.rows(around.format(">", ""), (position, CLOCKS))]
    if not waiting:
        return 0.0
    for (created_at,) in (*waiting, *client.rows(around.format("<=", "DESC"), (position, 1))):
        with suppress(Unfoldable):
            age_s = time.time() - created_ms(created_at) / 1000
            if age_s >= 0:
                return round(age_s, 3)
    return None


def require_known(client: Client, session_id: str) -> None:
    """Raises `Finding` where neither the log nor a row names a session."""
    bare, key = keys_of(session_id)[0], PREFIX + session_id
    if is_utf8(session_id) and client.value(
        "SELECT EXISTS (SELECT 1 FROM event_log WHERE key IN (?, ?))"
        " OR EXISTS (SELECT 1 FROM view WHERE key >= 'session:' AND key < 'session;' AND key = ?)"
        " OR EXISTS (SELECT 1 FROM session_index WHERE session_id = ?)",
        (bare, key, key, session_id),
    ):
        return
    raise no_session(client, session_id)
