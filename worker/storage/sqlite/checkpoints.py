"""Checkpoints, what projections say they are doing, and the quarantine in SQLite."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from session_projector.projections.projection import Table
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import ProjectionFailed
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import (
    Checkpoint,
    Deferred,
    ProjectionStatus,
    QuarantineCount,
    QuarantineEntry,
    QuarantineReason,
    StoredProjection,
)
from session_projector.worker.storage.sqlite.connection import Connection
from session_projector.worker.storage.sqlite.sql import (
    IS_NAME,
    IS_SOUND_JOINED,
    MOST_DEFERRED,
    READ_POSITION,
    is_count,
    shown,
)

FORGET_STATUS: Final = "DELETE FROM projection_state WHERE projection = ?"
# In one statement, as the position and what is deferred must be of one moment.
_SELECT: Final = (
    "SELECT name, version, coalesce(read_position, position), generation, digest, skipped,"
    f" kept_in, key_column, prefix, {IS_SOUND_JOINED}, key, folded_position, bytes, cost_ms, since"
    " FROM checkpoint LEFT JOIN deferred ON projection = name WHERE "
)
_ONE: Final = f"{_SELECT} name = ?"
_ALL: Final = f"{_SELECT} {IS_NAME} ORDER BY name"
_STATUS: Final = "state, version, why, events, total, since, updated_at"

_IS_STATUS: Final = " AND ".join(  # as anybody may write any row
    [
        "typeof(projection) = 'text' AND state IN ('rebuilding', 'failed')",
        "typeof(why) = 'text'",
        *map(is_count, ("version", "events", "total", "since", "updated_at")),
    ]
)


class SqliteCheckpoints:
    """Implements `worker.storage.port.Checkpoints`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> Checkpoint | None:
        rows = self._connection.rows(_ONE, (name,))
        found = _sound(rows)
        if rows and not found:
            raise ProjectionFailed(
                name,
                "its checkpoint is no position: somebody wrote to it",
                "let it begin at the first event again: `projector db setup`",
            )
        return found.get(name)

    def all(self) -> dict[str, StoredProjection]:
        rows = self._connection.rows(_ALL)
        tables = {row[0]: Table(row[6], {}, row[7], row[8]) for row in rows}
        return {
            name: StoredProjection(checkpoint, tables[name])
            for name, checkpoint in _sound(rows).items()
        }

    def report(self, name: str, status: ProjectionStatus | None) -> None:
        reported = "SELECT 1 FROM projection_state WHERE projection = ?"
        if status is None and not self._connection.row(reported, (name,)):
            return
        with self._connection.writing():
            self._connection.raw.execute(FORGET_STATUS, (name,))
            if status:
                self._connection.raw.execute(
                    f"INSERT INTO projection_state (projection, {_STATUS})"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, *msgspec.structs.astuple(status)),
                )

    def reports(self) -> dict[str, ProjectionStatus]:
        rows = self._connection.rows(
            f"SELECT projection, {_STATUS} FROM projection_state WHERE {_IS_STATUS}"
            " ORDER BY projection"
        )
        return {row[0]: ProjectionStatus(*row[1:]) for row in rows}


def _sound(rows: Sequence[tuple[Any, ...]]) -> dict[str, Checkpoint]:
    """By name, the checkpoints in the rows that `_SELECT` gives: one for each view that is
    deferred, and one at least."""
    found: dict[str, Checkpoint] = {}
    for row in rows:
        checkpoint = found.setdefault(row[0], Checkpoint(*row[:6]))
        if row[10] is not None:
            checkpoint.deferred[row[10]] = Deferred(*row[11:])
    for row in rows:
        if not row[9]:
            found.pop(row[0], None)
    return {name: one for name, one in found.items() if len(one.deferred) <= MOST_DEFERRED}


class SqliteQuarantine:
    """Implements `worker.storage.port.Quarantine`."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits

    def reasons(self, name: str, seqs: Sequence[int]) -> dict[int, str | None]:
        # A seq may be text, which is above all numbers.
        bounds = "SELECT min(seq), max(seq) FROM quarantine WHERE projection = ? AND seq < ''"
        low, high = self._connection.rows(bounds, (name,))[0]
        asked = [] if low is None else [seq for seq in seqs if low <= seq <= high]
        if not asked:
            return {}
        rows = self._connection.rows(
            f"SELECT q.seq, iif(q.id IS {shown('e.id')} AND q.key IS {shown('e.key')},"
            " q.reason, NULL)"
            " FROM quarantine AS q JOIN event_log AS e ON e.seq = q.seq"
            f" WHERE q.projection = ? AND q.seq IN ({str(asked)[1:-1]})",
            (name,),
        )
        return dict(rows)

    def strays(self, name: str, *, ahead: int | None) -> list[int]:
        rows = self._connection.rows(
            "SELECT seq FROM quarantine AS q WHERE projection = ? AND (NOT EXISTS ("
            "SELECT 1 FROM event_log AS e WHERE e.seq = q.seq) OR seq > coalesce(?, ("
            f"SELECT {READ_POSITION} FROM checkpoint WHERE name = q.projection)))"
            " ORDER BY seq LIMIT ?",
            (name, ahead, self._limits.page_keys),
        )
        return [seq for (seq,) in rows]

    def entries(self, seq: int | None = None) -> list[QuarantineEntry]:
        where, values = ("TRUE", ()) if seq is None else ("q.seq = ?", (seq,))
        return self._entries(where, values)

    def page(
        self,
        *,
        after: int,
        limit: int,
        projection: str | None = None,
        reason: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[QuarantineEntry]:
        given = {"projection": projection, "reason": reason}
        named = {f"key{number}": key for number, key in enumerate(keys or ())}
        where = " AND ".join(
            ["q.seq > :after", "q.seq < ''"]
            + [f"q.{name} = :{name}" for name, value in given.items() if value is not None]
            + ([] if keys is None else [f"q.key IN ({', '.join(f':{name}' for name in named)})"])
        )
        page = f"SELECT DISTINCT seq FROM quarantine AS q WHERE {where} ORDER BY seq LIMIT :limit"
        values = {**given, **named, "after": after, "limit": limit}
        return self._entries(f"{where} AND q.seq IN ({page})", values)

    def _entries(self, where: str, values: Any) -> list[QuarantineEntry]:
        rows = self._connection.rows(
            "SELECT q.projection, q.seq, q.id, q.key, q.reason, d.note FROM quarantine AS q"
            f" LEFT JOIN dismissed AS d ON d.seq = q.seq AND d.id IS q.id WHERE {where}"
            " ORDER BY q.seq, q.projection",
            values,
        )
        return [QuarantineEntry(*row) for row in rows]

    def summary(self, limit: int) -> list[QuarantineReason]:
        rows = self._connection.rows(
            "SELECT q.projection, q.reason, count(*), count(d.seq), min(q.seq), max(q.seq)"
            " FROM quarantine AS q LEFT JOIN dismissed AS d ON d.seq = q.seq AND d.id IS q.id"
            " GROUP BY q.projection, q.reason ORDER BY count(*) DESC, q.projection, q.reason"
            " LIMIT ?",
            (limit,),
        )
        return [QuarantineReason(*row) for row in rows]

    def projections(self) -> list[str]:
        names = "SELECT DISTINCT projection AS name FROM quarantine"
        rows = self._connection.rows(f"SELECT name FROM ({names}) WHERE {IS_NAME} ORDER BY name")
        return [name for (name,) in rows]

    def count(self, name: str) -> QuarantineCount:
        counts = self._connection.rows(
            "SELECT count(*), count(d.seq) FROM quarantine AS q"
            " LEFT JOIN dismissed AS d ON d.seq = q.seq AND d.id IS q.id WHERE q.projection = ?",
            (name,),
        )
        return QuarantineCount(*counts[0])

    def dismiss(self, seq: int, note: str, *, at: int | None = None) -> None:
        self._connection.rows(
            "INSERT INTO dismissed (seq, id, note, dismissed_at)"
            " SELECT seq, id, ?, ? FROM event_log WHERE seq = ? ON CONFLICT (seq) DO UPDATE"
            " SET id = excluded.id, note = excluded.note, dismissed_at = excluded.dismissed_at",
            (note, now_ms() if at is None else at, seq),
        )

    def notes(self) -> list[tuple[int, str, int]]:
        return self._connection.rows(
            "SELECT d.seq, note, dismissed_at FROM dismissed AS d"
            " JOIN event_log AS e ON e.seq = d.seq AND e.id IS d.id"
            f" WHERE typeof(note) = 'text' AND {is_count('dismissed_at')} ORDER BY d.seq"
        )
