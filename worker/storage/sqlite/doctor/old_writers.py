"""Rows of `view` that another program wrote: Kanbatte's own writers, still at work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from session_projector.projections.event import (
    MAX_EVENT_BYTES,
    PREFIX,
    SESSION_EVENTS,
    LogRow,
    keys_of,
)
from session_projector.projections.fold import read
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.projections.sessions import Sessions
from session_projector.worker.doctor.check import Checked
from session_projector.worker.errors import quoted
from session_projector.worker.operations.projections import fits_log
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import EVENT_COLUMNS

SAMPLE_ROWS: Final = 200
SAMPLE_BYTES: Final = 32 * 1024 * 1024
_BY_TIME: Final = "idx_view_updated_at"
_SESSIONS: Final = Sessions()
_EVENTS: Final = 5
"""How many of a session's newest events are looked at for the one that its row names."""


def old_writers(client: Client) -> Iterator[Checked]:
    with _snapshot(client):
        rows = client.rows(
            "SELECT position, version, digest FROM checkpoint WHERE name = ?", (_SESSIONS.name,)
        )
        position, version, digest = next(rows, (0, _SESSIONS.version, ""))
        if why := _unsuited(client, position, version, digest):
            yield Checked("old writers", "ok", f"not looked for: {why}")
            return
        looked, wrong = 0, []
        for row in _sample(client):
            looked += 1
            if said := _fault(client, row, position):
                wrong.append(f"{row[1]}: {said}")
    what = f"the {looked} newest session rows of view"
    if not wrong:
        yield Checked("old writers", "ok", f"none seen in {what}")
        return
    yield Checked(
        "old writers",
        "fail",
        f"{len(wrong)} of {what} were written by another program ({wrong[0]}): writers must not"
        " UPDATE view",
        f"stop the old writers for good, then `projector replay -d {quoted(client.path)}`",
    )


def _unsuited(client: Client, position: int, version: int, digest: str) -> str:
    """Why the rows need not be what the log says just now."""
    if not position:
        return "nothing was folded yet; the first `projector run` replaces what stands"
    if version != _SESSIONS.version:
        return "the views are of another version, or are being rebuilt"
    return "" if fits_log(client, position, digest) else "the checkpoint does not fit the log"


@contextmanager
def _snapshot(client: Client) -> Iterator[None]:
    """Rows, checkpoint and log of one moment, beside a daemon that goes on."""
    client.connection.execute("BEGIN")
    try:
        yield
    finally:
        if client.connection.in_transaction:
            client.connection.execute("ROLLBACK")


def _sample(client: Client) -> Iterator[tuple[Any, ...]]:
    """The newest rows, at most so many and so many bytes of them."""
    has_index = client.value(
        "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name = ?"
        " AND tbl_name = 'view'",
        (_BY_TIME,),
    )
    order, by = (f"INDEXED BY {_BY_TIME}", "updated_at") if has_index else ("", "rowid")
    sizes = client.rows(
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
        yield from client.rows(f"SELECT {columns} FROM view WHERE rowid = ?", (rowid,))


def _fault(client: Client, row: tuple[Any, ...], position: int) -> str:
    """What no fold up to the position can have written."""
    try:
        restore(_SESSIONS, row)
    except CorruptRow as error:
        return str(error)
    named = row[3]
    seqs = _newest_events(client, row[1].removeprefix(PREFIX), position)
    for seq in seqs:
        ((event_id,),) = client.rows("SELECT id FROM event_log WHERE seq = ?", (seq,))
        if event_id == named:
            return ""
        columns = f"SELECT {EVENT_COLUMNS} FROM event_log WHERE seq = :seq"
        (event,) = client.rows(columns, {"seq": seq, "max": MAX_EVENT_BYTES})
        if any(one.type in SESSION_EVENTS for one in read([LogRow(*event)])):
            return f"last_offset_id is not the id of its newest event, {event_id}"
    return "" if seqs else "the log has no event of it"


def _newest_events(client: Client, session_id: str, position: int) -> list[int]:
    """Positions of a session's newest events that are not in quarantine, from the index alone."""
    found = (
        seq
        for key in keys_of(session_id)
        for (seq,) in client.rows(
            "SELECT seq FROM event_log AS e WHERE key = ? AND seq <= ? AND NOT EXISTS"
            " (SELECT 1 FROM quarantine AS q WHERE q.projection = ? AND q.seq = e.seq)"
            f" ORDER BY seq DESC LIMIT {_EVENTS}",
            (key, position, _SESSIONS.name),
        )
    )
    return sorted(found, reverse=True)[:_EVENTS]
