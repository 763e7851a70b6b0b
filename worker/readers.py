"""What commands read: views, the quarantine, how things stand."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from projections import BUILT_IN
from projections.event import LogRow, Unfoldable, created_ms, decode, keys_of
from projections.messagepack import Malformed, decode_exact
from projections.projection import Damaged, Projection
from projections.sessions import PREFIX, Session, Sessions
from worker import schema
from worker.client import Client
from worker.database import DaemonLock
from worker.errors import Finding, NeedsPerson

SESSIONS: Final = Sessions()


def sessions(client: Client) -> Iterator[Session | str]:
    """Every session's view, oldest first; in place of a row that no fold has written, its key."""
    columns = ", ".join(SESSIONS.table.columns)
    for row in client.rows(
        f"SELECT {columns} FROM view WHERE key >= 'session:' AND key < 'session;'"
        " ORDER BY created_at, key"
    ):
        try:
            yield SESSIONS.from_row(row)
        except Damaged:
            yield str(row[1])


def session(client: Client, session_id: str) -> dict[str, Any]:
    """A session's view as it stands; raises `Finding` where there is none."""
    rows = client.rows(
        "SELECT data FROM view WHERE key >= 'session:' AND key < 'session;' AND key = ?",
        (PREFIX + session_id,),
    )
    row = next(rows, None)
    if row is None:
        raise _no_session(client, session_id)
    try:
        view = decode_exact(row[0])
    except (Malformed, TypeError):
        view = None
    if not isinstance(view, dict) or "id" not in view:
        raise NeedsPerson(
            f"the view of session {session_id} in {client.path} was not written by projector",
            f"fold it from the log with `projector run --once -d {client.path}`",
        )
    return view


def _no_session(client: Client, session_id: str) -> Finding:
    if exists(client, session_id):
        return Finding(
            f"session {session_id} is in the log, and not yet folded into a view",
            f"is a daemon running? `projector status -d {client.path}`",
        )
    return Finding(
        f"there is no session {session_id} in {client.path}",
        f"see which there are with `projector session list -d {client.path}`",
    )


def quarantined(client: Client) -> list[dict[str, Any]]:
    """The quarantine, by position."""
    names = ("projection", "seq", "id", "key", "reason")
    found = client.rows(f"SELECT {', '.join(names)} FROM quarantine ORDER BY seq, projection")
    return [dict(zip(names, row, strict=True)) for row in found]


def status(path: Path) -> dict[str, Any]:
    """How things stand; as true when no daemon is alive."""
    with Client.reading(path) as client:
        log = client.rows("SELECT coalesce(max(seq), 0), count(*) FROM event_log")
        newest, events = next(log)
        projections = [_progress(client, projection) for projection in BUILT_IN]
        applied = [name for name, is_applied in schema.status(path) if is_applied]
    wal = path.with_name(path.name + "-wal")
    holder = DaemonLock(path).holder()
    return {
        "database": str(path),
        "daemon": {"alive": holder is not None, "pid": holder},
        "schema": applied[-1],
        "newest": newest,
        "events": events,
        "projections": projections,
        "file_bytes": path.stat().st_size,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
    }


def _progress(client: Client, projection: Projection) -> dict[str, Any]:
    table = projection.table
    row = next(
        client.rows(
            "SELECT version, position, skipped FROM checkpoint WHERE name = ?", (projection.name,)
        ),
        (None, 0, 0),
    )
    version, position, skipped = row
    return {
        "name": projection.name,
        "version": version,
        "position": position,
        "lag_events": client.value("SELECT count(*) FROM event_log WHERE seq > ?", (position,)),
        "lag_seconds": _lag_seconds(client, position),
        "views": client.value(
            f"SELECT count(*) FROM {table.name} WHERE {table.key} >= ? AND {table.key} < ?",
            table.bounds,
        ),
        "quarantined": client.value(
            "SELECT count(*) FROM quarantine WHERE projection = ?", (projection.name,)
        ),
        "skipped": skipped,
    }


def _lag_seconds(client: Client, position: int) -> float:
    """Since the oldest event that is not folded was written, by its writer's clock."""
    waiting = client.rows(
        "SELECT created_at FROM event_log WHERE seq > ? ORDER BY seq LIMIT 1", (position,)
    )
    try:
        return max(0.0, round(time.time() - created_ms(next(waiting)[0]) / 1000, 3))
    except (StopIteration, Unfoldable):
        return 0.0


def exists(client: Client, session_id: str) -> bool:
    return folded(client, session_id, first_only=True) is not None


def folded(client: Client, session_id: str, *, first_only: bool = False) -> Session | None:
    """The session as the log has it, or as the first of its events that folds leaves it."""
    view: Session | None = None
    keys = keys_of(session_id)
    for row in client.rows(
        f"SELECT seq, id, key, data, created_at FROM event_log"
        f" WHERE key IN ({', '.join('?' * len(keys))}) ORDER BY seq",
        keys,
    ):
        try:
            event = decode(LogRow(*row))
            view = view if event.body is None else SESSIONS.fold(view, event)
        except Unfoldable:
            continue
        if first_only and view is not None:
            break
    return view
