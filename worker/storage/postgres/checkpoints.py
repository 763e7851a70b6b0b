"""Checkpoints, what projections say they are doing, and the quarantine in PostgreSQL."""

import re
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
from session_projector.worker.storage.postgres.connection import Connection, Values
from session_projector.worker.storage.postgres.text import escaped, unescaped

_STATUS: Final = "state, version, why, events, total, since, updated_at"
_LONGEST_NAME: Final = 200
_NAME: Final = re.compile(rf"[a-zA-Z0-9_]{{1,{_LONGEST_NAME}}}", re.ASCII)
"""Of a projection."""
_HIGHEST_VERSION: Final = 2**31
_MOST_COUNTED: Final = 2**62
_LONGEST_KEY: Final = 2**17
_MOST_DEFERRED: Final = 4096
READ_POSITION: Final = (
    "coalesce((SELECT max(read_position) FROM {0}deferred WHERE projection = name), position)"
)
"""Of a row of `checkpoint`: the position of the event whose digest it has. Its `position` says what
all views hold, also those that are deferred."""


class PostgresCheckpoints:
    """Implements `worker.storage.port.Checkpoints`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        p = connection.prefix
        self._state = f"{p}projection_state"
        # In one statement, as the position and what is deferred must be of one moment.
        self._select = (
            "SELECT name, version, coalesce(read_position, position), generation, digest, skipped,"
            " kept_in, key_column, prefix, key, folded_position, bytes, cost_ms, since, position"
            f" FROM {p}checkpoint LEFT JOIN {p}deferred ON projection = name"
        )

    def one(self, name: str) -> tuple[str, Sequence[Any]]:
        """The statement that reads a checkpoint, whose rows `sound` takes."""
        return f"{self._select} WHERE name = %s ORDER BY key", (name,)

    def sound(self, name: str, rows: Sequence[tuple[Any, ...]]) -> Checkpoint | None:
        """A checkpoint of its rows, None where there are none."""
        found = _sound(rows)
        if rows and not found:
            raise ProjectionFailed(
                name,
                "its checkpoint is no position: somebody wrote to it",
                "let it begin at the first event again: `projector db setup`",
            )
        return found.get(name)

    def get(self, name: str) -> Checkpoint | None:
        return self.sound(name, self._connection.rows(*self.one(name)))

    def all(self) -> dict[str, StoredProjection]:
        rows = self._connection.rows(f"{self._select} ORDER BY name, key")
        tables = {row[0]: Table(row[6], {}, row[7], row[8]) for row in rows}
        return {
            name: StoredProjection(checkpoint, tables[name])
            for name, checkpoint in _sound(rows).items()
            if _NAME.fullmatch(name)
        }

    def unsound(self, *, strays: bool = True) -> list[str]:
        """The names of those that are no position, and with `strays` those that are no names."""
        rows = self._connection.rows(f"{self._select} ORDER BY name")
        sound = _sound(rows)
        names = dict.fromkeys(row[0] for row in rows)
        odd = {name for name in names if not _NAME.fullmatch(name)}
        return [name for name in names if (strays if name in odd else name not in sound)]

    def report(self, name: str, status: ProjectionStatus | None) -> None:
        if status is None:
            reported = f"SELECT 1 FROM {self._state} WHERE projection = %s"
            if self._connection.row(reported, (name,)):
                self._connection.rows(*forget(self._connection, name))
            return
        values = [escaped(value) for value in msgspec.structs.astuple(status)]
        updates = ", ".join(f"{one} = excluded.{one}" for one in _STATUS.split(", "))
        self._connection.rows(
            f"INSERT INTO {self._state} (projection, {_STATUS})"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
            f" ON CONFLICT (projection) DO UPDATE SET {updates}",
            (name, *values),
        )

    def reports(self) -> dict[str, ProjectionStatus]:
        rows = self._connection.rows(
            f"SELECT projection, {_STATUS} FROM {self._state} ORDER BY projection"
        )
        return {row[0]: ProjectionStatus(*map(unescaped, row[1:])) for row in rows}


def forget(connection: Connection, name: str) -> tuple[str, Sequence[Any]]:
    """The statement that ends what a projection says of itself."""
    return f"DELETE FROM {connection.prefix}projection_state WHERE projection = %s", (name,)


def _sound(rows: Sequence[tuple[Any, ...]]) -> dict[str, Checkpoint]:
    """By name, the checkpoints in some rows: one for each view that is deferred, and one at least;
    without those that somebody else made what none of ours can be."""
    found: dict[str, Checkpoint] = {}
    odd = set()
    for row in rows:
        name, version, read, generation, digest, skipped, kept_in, key_column, prefix = row[:9]
        key, folded, *costs, position = row[9:]
        checkpoint = found.setdefault(name, Checkpoint(*row[:6]))
        counts = [position, generation, skipped]
        if key is not None:
            checkpoint.deferred[unescaped(key)] = Deferred(folded, *costs)
            counts += [folded, read, *costs]
            if not position <= folded <= read or len(key) > _LONGEST_KEY:
                odd.add(name)
        if (
            any(not 0 <= count <= _MOST_COUNTED for count in counts)
            or abs(version) > _HIGHEST_VERSION
            or prefix not in ("", "session:")
            or max(map(len, (digest, kept_in, key_column))) > _LONGEST_NAME
            or len(checkpoint.deferred) > _MOST_DEFERRED
        ):
            odd.add(name)
    return {name: one for name, one in found.items() if name not in odd}


class PostgresQuarantine:
    """Implements `worker.storage.port.Quarantine`."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._p = connection.prefix

    def reasons(self, name: str, seqs: Sequence[int]) -> dict[int, str | None]:
        if not seqs:
            return {}
        rows = self._connection.rows(
            "SELECT q.seq, CASE WHEN q.id IS NOT DISTINCT FROM e.id"
            " AND q.key IS NOT DISTINCT FROM e.key THEN q.reason END"
            f" FROM {self._p}quarantine AS q JOIN {self._p}event_log AS e ON e.seq = q.seq"
            " WHERE q.projection = %s AND q.seq = ANY(%s)",
            (name, [*seqs]),
        )
        return {seq: unescaped(reason) for seq, reason in rows}

    def strays(self, name: str, *, ahead: int | None) -> list[int]:
        rows = self._connection.rows(
            f"SELECT seq FROM {self._p}quarantine AS q WHERE projection = %s AND (NOT EXISTS ("
            f"SELECT 1 FROM {self._p}event_log AS e WHERE e.seq = q.seq) OR seq > coalesce(%s, ("
            f"SELECT {READ_POSITION.format(self._p)} FROM {self._p}checkpoint"
            " WHERE name = q.projection))) ORDER BY seq LIMIT %s",
            (name, ahead, self._limits.page_keys),
        )
        return [seq for (seq,) in rows]

    def entries(self, seq: int | None = None) -> list[QuarantineEntry]:
        where, values = ("TRUE", ()) if seq is None else ("q.seq = %s", (seq,))
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
        given = {"projection": projection, "reason": escaped(reason)}
        where = " AND ".join(
            ["q.seq > %(after)s"]
            + [f"q.{name} = %({name})s" for name, value in given.items() if value is not None]
            + ([] if keys is None else ["q.key = ANY(%(keys)s::text[])"])
        )
        page = (
            f"SELECT DISTINCT seq FROM {self._p}quarantine AS q WHERE {where}"
            " ORDER BY seq LIMIT %(limit)s"
        )
        values = {**given, "after": after, "limit": limit, "keys": [*(keys or ())]}
        return self._entries(f"{where} AND q.seq IN ({page})", values)

    def _entries(self, where: str, values: Values) -> list[QuarantineEntry]:
        rows = self._connection.rows(
            "SELECT q.projection, q.seq, q.id, q.key, q.reason, d.note"
            f" FROM {self._p}quarantine AS q LEFT JOIN {self._p}dismissed AS d"
            f" ON d.seq = q.seq AND d.id IS NOT DISTINCT FROM q.id WHERE {where}"
            " ORDER BY q.seq, q.projection",
            values,
        )
        return [QuarantineEntry(*row[:4], *map(unescaped, row[4:])) for row in rows]

    def summary(self, limit: int) -> list[QuarantineReason]:
        rows = self._connection.rows(
            "SELECT q.projection, q.reason, count(*), count(d.seq), min(q.seq), max(q.seq)"
            f" FROM {self._p}quarantine AS q LEFT JOIN {self._p}dismissed AS d"
            " ON d.seq = q.seq AND d.id IS NOT DISTINCT FROM q.id"
            " GROUP BY q.projection, q.reason ORDER BY count(*) DESC, q.projection, q.reason"
            " LIMIT %s",
            (limit,),
        )
        return [QuarantineReason(name, unescaped(reason), *rest) for name, reason, *rest in rows]

    def projections(self) -> list[str]:
        names = f"SELECT DISTINCT projection FROM {self._p}quarantine ORDER BY projection"
        return [name for (name,) in self._connection.rows(names) if _NAME.fullmatch(name)]

    def count(self, name: str) -> QuarantineCount:
        counts = self._connection.rows(
            f"SELECT count(*), count(d.seq) FROM {self._p}quarantine AS q"
            f" LEFT JOIN {self._p}dismissed AS d ON d.seq = q.seq"
            " AND d.id IS NOT DISTINCT FROM q.id WHERE q.projection = %s",
            (name,),
        )
        return QuarantineCount(*counts[0])

    def dismiss(self, seq: int, note: str, *, at: int | None = None) -> None:
        self._connection.rows(
            f"INSERT INTO {self._p}dismissed (seq, id, note, dismissed_at)"
            f" SELECT seq, id, %s, %s FROM {self._p}event_log WHERE seq = %s"
            " ON CONFLICT (seq) DO UPDATE"
            " SET id = excluded.id, note = excluded.note, dismissed_at = excluded.dismissed_at",
            (escaped(note), now_ms() if at is None else at, seq),
        )

    def notes(self) -> list[tuple[int, str, int]]:
        rows = self._connection.rows(
            f"SELECT d.seq, note, dismissed_at FROM {self._p}dismissed AS d"
            f" JOIN {self._p}event_log AS e ON e.seq = d.seq AND e.id IS NOT DISTINCT FROM d.id"
            " ORDER BY d.seq"
        )
        return [(seq, unescaped(note), at) for seq, note, at in rows]
