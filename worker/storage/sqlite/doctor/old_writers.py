"""The check for rows of `view` that another program wrote: Kanbatte's own writers at work."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from session_projector.projections.event import PREFIX, SESSION_EVENTS, keys_of
from session_projector.projections.fold import read
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.projections.sessions import Sessions
from session_projector.worker.errors import many
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.sqlite.doctor.checks import event, fits_log, reading
from session_projector.worker.storage.sqlite.sql import READ_POSITION

SAMPLE_ROWS: Final = 200
SAMPLE_BYTES: Final = 32 * 1024 * 1024
_BY_TIME: Final = "idx_view_updated_at"
_SESSIONS: Final = Sessions()
_EVENTS: Final = 5
"""How many of a session's newest events are looked at for the one that its row names."""


def old_writers(path: Path) -> Iterator[Check]:
    """Check that a sample of the session rows can have come from the log."""
    with reading(path) as db:
        db.execute("BEGIN")  # rows, checkpoint and log of one moment
        rows = db.execute(
            f"SELECT {READ_POSITION}, version, digest FROM checkpoint WHERE name = ?",
            (_SESSIONS.name,),
        )
        position, version, digest = next(rows, (0, _SESSIONS.version, ""))
        if why := _unsuited(db, position, version, digest):
            yield Check("old writers", "ok", f"not looked for: {why}")
            return
        select = "SELECT key, folded_position FROM deferred WHERE projection = ?"
        deferred = dict(db.execute(select, (_SESSIONS.name,)))
        looked, wrong = 0, []
        for row in _sample(db):
            looked += 1
            if said := _fault(db, row, deferred.get(row[1], position)):
                wrong.append(f"{row[1]}: {said}")
    what = f"the newest {many(looked, 'session row')} of view"
    if wrong:
        yield Check(
            "old writers",
            "fail",
            f"{len(wrong)} of {what} were written by another program ({wrong[0]}): writers must"
            " not UPDATE view",
            "stop the old writers for good, then `projector replay`",
        )
    else:
        yield Check("old writers", "ok", f"none seen in {what}")


def _unsuited(db: sqlite3.Connection, position: int, version: int, digest: str) -> str:
    """The reason why the rows need not be what the log says now, or ''."""
    if not position:
        return "nothing was folded yet; the first `projector run` replaces what is there"
    if version != _SESSIONS.version:
        return "the views are of another version, or are being rebuilt"
    return "" if fits_log(db, position, digest) else "the checkpoint does not fit the log"


def _sample(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """The newest session rows, at most SAMPLE_ROWS of them and SAMPLE_BYTES."""
    has_index = db.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = ? AND tbl_name = 'view'",
        (_BY_TIME,),
    ).fetchone()
    order, by = (f"INDEXED BY {_BY_TIME}", "updated_at") if has_index else ("", "rowid")
    sizes = db.execute(
        "SELECT r, size FROM (SELECT rowid AS r, key, length(data) AS size FROM view"
        f" {order} ORDER BY {by} DESC LIMIT 10 * :rows)"
        " WHERE key >= 'session:' AND key < 'session;' LIMIT :rows",
        {"rows": SAMPLE_ROWS},
    )
    total = 0
    columns = ", ".join(_SESSIONS.table.columns)
    for rowid, size in [*sizes]:
        total += size or 0
        if total > SAMPLE_BYTES:
            return
        yield from db.execute(f"SELECT {columns} FROM view WHERE rowid = ?", (rowid,))


def _fault(db: sqlite3.Connection, row: tuple[Any, ...], position: int) -> str:
    """What in a row no fold up to the position can have written, or ''."""
    try:
        restore(_SESSIONS, row)
    except CorruptRow as error:
        return str(error)
    named = row[3]
    seqs = _newest_events(db, row[1].removeprefix(PREFIX), position)
    for seq in seqs:
        ((event_id,),) = db.execute("SELECT id FROM event_log WHERE seq = ?", (seq,))
        if event_id == named:
            return ""
        if any(one.type in SESSION_EVENTS for one in read(event(db, seq))):
            return f"last_offset_id is not the id of its newest event, {event_id}"
    return "" if seqs else "the log has no event of it"


def _newest_events(db: sqlite3.Connection, session_id: str, position: int) -> list[int]:
    """Positions of a session's newest events that are not in quarantine, from the index alone."""
    found = (
        seq
        for key in keys_of(session_id)
        for (seq,) in db.execute(
            "SELECT seq FROM event_log AS e WHERE key = ? AND seq <= ? AND NOT EXISTS"
            " (SELECT 1 FROM quarantine AS q WHERE q.projection = ? AND q.seq = e.seq)"
            f" ORDER BY seq DESC LIMIT {_EVENTS}",
            (key, position, _SESSIONS.name),
        )
    )
    return sorted(found, reverse=True)[:_EVENTS]
