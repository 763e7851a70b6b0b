"""`event_log` in PostgreSQL."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import psycopg

from session_projector.projections.event import (
    MAX_EVENT_BYTES,
    MAX_NAME_BYTES,
    LogRow,
    is_utf8,
    session_of,
)
from session_projector.worker.errors import InterventionRequired, LostRace, UsageError
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import (
    ANY_POSITION,
    ID_TAKEN,
    BatchReach,
    Holder,
    not_restored,
)
from session_projector.worker.storage.postgres.connection import Connection, Values
from session_projector.worker.storage.postgres.errors import first_line, psql
from session_projector.worker.storage.postgres.roles import ender_name
from session_projector.worker.storage.postgres.settled import Settled

KEY_BYTES: Final = 4096
"""What each view counts besides its row, as many small ones are no short transaction either."""
_PATIENCE_S: Final = 1.0
"""How long is waited for the transactions that may fill a gap below the newest event."""
_POLL_S: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
_HELD_BY: Final = """
SELECT coalesce(a.pid::text, 'prepared'), coalesce(a.usename::text, x.owner::text, '?'),
  coalesce(nullif(a.application_name, ''), '?'),
  extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared))::float8,
  coalesce(x.gid, '')
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_catalog.pg_locks AS t ON l.pid IS NULL AND t.pid IS NULL
  AND t.locktype = 'transactionid' AND t.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_catalog.pg_prepared_xacts AS x ON x.transaction = t.transactionid
WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.relation = %s::regclass AND l.mode = 'RowExclusiveLock'
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND coalesce(coalesce(a.xact_start, x.prepared) < clock_timestamp() - interval '1 second', true)
ORDER BY 4 DESC NULLS LAST
"""
"""Of another role's session only a member of `pg_read_all_stats` sees the program and the age."""


def _head(column: str, most: int, cut: str = "left({0}, {1})") -> str:
    """A value, and of one that is longer than any may be no more than shows that."""
    cut = cut.format(column, most + 1)
    return f"CASE WHEN octet_length({column}) > {most} THEN {cut} ELSE {column} END"


_EVENT: Final = ", ".join(
    [
        "seq",
        _head("id", MAX_NAME_BYTES),
        _head("key", MAX_NAME_BYTES),
        _head("data", MAX_EVENT_BYTES),
        _head("packed", MAX_EVENT_BYTES, "substr({0}, 1, {1})"),
        "created_at",
    ]
)
_SIZE: Final = " + ".join(
    f"coalesce(octet_length({name}), 0)" for name in ("id", "key", "data", "packed")
)


def _old(age_s: float | None) -> str:
    return "" if age_s is None else f", {age_s:,.0f} s old"


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def _unfit(row: LogRow) -> str:
    for name, value in (("id", row.id), ("key", row.key), ("data", row.data)):
        if isinstance(value, str):
            if "\0" in value:
                return f"its {name} has a NUL, which no text of PostgreSQL can have"
            if not is_utf8(value):
                return f"its {name} is a text that is not UTF-8"
        elif value is not None and not (name == "data" and isinstance(value, bytes)):
            return f"its {name} is {_KINDS.get(type(value), 'odd')}, not a text"
    if not isinstance(row.created_at, int | None):
        return f"its created_at is {_KINDS.get(type(row.created_at), 'a text')}, not an integer"
    return ""


_KINDS: Final = {bytes: "a BLOB", int: "a number", float: "a number with a fraction"}
_OF_A_ROW: Final = (
    psycopg.errors.UniqueViolation,
    psycopg.DataError,
    psycopg.errors.ProgramLimitExceeded,  # of an index: an id or key is too long for it
)


def _possible(keys: Sequence[Any]) -> list[str]:
    """The keys that an event can have."""
    return [key for key in keys if isinstance(key, str) and "\0" not in key]


def event_of(row: Sequence[Any]) -> LogRow:
    """The event in the columns of `_EVENT`."""
    seq, id_, key, data, packed, created_at = row
    return LogRow(seq, id_, key, packed if data is None else data, created_at)


class PostgresLog:
    """Implements `worker.storage.port.Log`."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._table = f"{connection.prefix}event_log"
        self._settled = Settled(connection)

    @property
    def gap(self) -> bool:
        """Whether events are held back."""
        return self._settled.gap

    def forget(self) -> None:
        """Take no position for settled because it once was."""
        self._settled.forget()

    def newest(self) -> int:
        return int(self._connection.value(f"SELECT coalesce(max(seq), 0) FROM {self._table}"))

    def settled(self) -> int:
        newest, began = self.newest(), time.monotonic()
        polls = iter(_POLL_S)
        while not self._settled.newest(newest):
            if time.monotonic() - began > _PATIENCE_S:
                return self._contiguous()
            time.sleep(next(polls, _POLL_S[-1]))
        return newest

    def _contiguous(self) -> int:
        """The last position before the first gap that may be filled."""
        last = self._settled.upto
        while (rows := self.page(start=last)) and rows[-1].seq > last:
            last = rows[-1].seq
        return last

    def held_back_by(self) -> list[Holder]:
        self.page(start=self._settled.upto)
        if not self.gap:
            return []
        ender = partial(ender_name, self._connection)
        rows = self._connection.rows(_HELD_BY, (self._connection.log_name,))
        return [
            Holder(
                f"the prepared transaction {gid} of {role}{_old(age_s)}",
                f"`{psql(ender(role), f'ROLLBACK PREPARED {literal(gid)}')}`, with the role {role}"
                " or a superuser",
            )
            if gid
            else Holder(
                f"the transaction of {application} ({role}, process {pid} of the server)"
                f"{_old(age_s)}",
                f"`{psql(ender(role), f'SELECT pg_terminate_backend({pid})')}`",
            )
            for pid, role, application, age_s, gid in rows
        ]

    def page(self, *, start: int, until: int = ANY_POSITION, events: int = 0) -> list[LogRow]:
        return self.page_with(self._connection.rows, start=start, until=until, events=events)

    def page_with(
        self,
        rows: Callable[[str, Values], list[tuple[Any, ...]]],
        *,
        start: int,
        until: int,
        events: int,
    ) -> list[LogRow]:
        """The same; `rows` runs the statement, as often as it takes."""
        most = (events or self._limits.page_events) + (start > 0)  # the one at `start`
        statement = self._statement(
            f"{self._table} WHERE seq >= %(position)s AND seq <= %(until)s",
            "seq",
            {"position": start, "until": until},
            (most, self._limits.page_bytes),
        )
        return self._settled.page(start, lambda: [event_of(row[:-1]) for row in rows(*statement)])

    def event(self, seq: int, *, whole: bool = False) -> LogRow | None:
        columns = "seq, id, key, data, packed, created_at" if whole else _EVENT
        row = self._connection.row(f"SELECT {columns} FROM {self._table} WHERE seq = %s", (seq,))
        return event_of(row) if row else None

    def size(self, seq: int) -> int:
        size = "coalesce(octet_length(data), octet_length(packed), 0)"
        return int(
            self._connection.value(f"SELECT {size} FROM {self._table} WHERE seq = %s", (seq,)) or 0
        )

    def of(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        where = ["key = ANY(%(keys)s::text[]) AND seq > %(position)s AND seq <= %(until)s"]
        values = {"keys": _possible(keys), "position": after, "until": until}
        return self._page(where, "seq", values, self._limits.page_events)

    def latest(self, keys: Sequence[Any], *, until: int, events: int) -> list[LogRow]:
        where = ["key = ANY(%(keys)s::text[]) AND seq <= %(until)s"]
        values = {"keys": _possible(keys), "position": 0, "until": until}
        return self._page(where, "seq DESC", values, min(events, self._limits.page_events))

    def by_session(
        self, *, after: LogRow | None, until: int, end: LogRow | None = None
    ) -> list[LogRow]:
        values = {"position": after.seq if after else 0, "until": until, "end": end and end.seq}
        same = "key IS NULL" if after is None or after.key is None else f"key = {self._key_at()}"
        within = self._above(after) + (f" AND key <= {self._key_at('end')}" if end else "")
        where = [f"{same} AND seq > %(position)s", within]
        return self._page(
            [f"{some} AND seq <= %(until)s" for some in where],
            *("key NULLS FIRST, seq", values, self._limits.page_events),
        )

    def _key_at(self, of: str = "position") -> str:
        return f"(SELECT key FROM {self._table} WHERE seq = %({of})s)"

    def _above(self, after: LogRow | None) -> str:
        """The events whose key is after that of one, which is at `position`."""
        if after is None or after.key is None:
            return "key IS NOT NULL"
        return f"key > {self._key_at()}"

    def range_end(self, *, after: LogRow | None, until: int) -> LogRow | None:
        select = f"SELECT {{}} FROM {self._table} WHERE {{}} AND seq <= %(until)s"
        values = {"position": after.seq if after else 0, "until": until}
        if after is None:
            last = self._connection.value(select.format("max(seq)", "key IS NULL"), values)
            if last is not None:
                return self.event(last)
        row = self._connection.row(
            f"{select.format('seq', self._above(after))} ORDER BY key, seq"
            f" OFFSET {self._limits.range_events - 1} LIMIT 1",
            values,
        )
        if row is None:
            return None
        of_key = select.format("max(seq)", f"key = {self._key_at()}")
        return self.event(self._connection.value(of_key, {**values, "position": row[0]}))

    def check_keys(self, projection: str, *, after: int) -> int | None:
        del projection, after
        return None  # the server keeps its indexes

    def present(
        self, keys: Sequence[str], *, until: int = ANY_POSITION, unless_quarantined: str = ""
    ) -> set[str]:
        unless = ""
        if unless_quarantined:
            unless = (
                f" AND NOT EXISTS (SELECT 1 FROM {self._connection.prefix}quarantine AS q"
                " WHERE q.projection = %(name)s AND q.seq = e.seq)"
            )
        rows = self._connection.rows(
            "SELECT asked.key FROM unnest(%(keys)s::text[]) AS asked (key) WHERE EXISTS"
            f" (SELECT 1 FROM {self._table} AS e WHERE e.key = asked.key AND e.seq <= %(until)s"
            f"{unless})",
            {
                "keys": _possible(keys),
                "until": until,
                "name": unless_quarantined,
            },
        )
        return {key for (key,) in rows}

    def count(self, *, after: int = 0) -> int:
        count = f"SELECT count(*) FROM {self._table} WHERE seq > %s"
        return int(self._connection.value(count, (after,)))

    def batch_reach(self, *, start: int, events: int) -> BatchReach | None:
        keys = self._connection.rows(
            f"SELECT min(seq), key, avg(size) FROM (SELECT seq, key, {_SIZE} AS size"
            f" FROM {self._table} WHERE seq >= %s ORDER BY seq LIMIT %s) AS events"
            " WHERE key IS NOT NULL GROUP BY key ORDER BY 1",
            (start, events),
        )
        counts = dict(
            self._connection.rows(
                f"SELECT key, count(*) FROM {self._table} WHERE key = ANY(%s::text[]) GROUP BY key",
                ([key for _, key, _ in keys],),
            )
        )
        size = 0.0
        for seq, key, average in keys:
            size += KEY_BYTES + counts[key] * float(average)
            if size > self._limits.view_bytes:
                size_of_log = "SELECT pg_catalog.pg_total_relation_size(%s::regclass)"
                log_bytes = self._connection.value(size_of_log, (self._connection.log_name,))
                before = f"SELECT count(*) FROM {self._table} WHERE seq >= %s AND seq < %s"
                number = self._connection.value(before, (start, seq))
                return BatchReach(max(number, 1), int(log_bytes))
        return None

    def position_of(self, event_id: str) -> int | None:
        if not _possible([event_id]):
            return None
        known = f"SELECT seq FROM {self._table} WHERE id = %s"
        found = self._connection.value(known, (event_id,))
        return None if found is None else int(found)

    def append(self, row: LogRow) -> int:
        column = "packed" if isinstance(row.data, bytes) else "data"
        insert = (
            f"INSERT INTO {self._table} (id, key, {column}, created_at)"
            " VALUES (%s, %s, %s, %s) RETURNING seq"
        )
        values = (row.id, row.key, row.data, row.created_at)
        with self._connection.errors():
            try:
                with self._connection.raw.transaction():
                    found = self._connection.raw.execute(insert.encode(), values).fetchone()
            except psycopg.errors.UniqueViolation:
                found = None
        if found:
            return int(found[0])
        # The log ignores an event that it has already, and refuses one that came at the same time.
        known = f"SELECT seq FROM {self._table} WHERE id = %s"
        same = f"{known} AND key IS NOT DISTINCT FROM %s AND {column} IS NOT DISTINCT FROM %s"
        if (seq := self._connection.value(same, values[:3])) is not None:
            return int(seq)
        if (seq := self._connection.value(known, values[:1])) is None:
            raise InterventionRequired(
                f"{self._connection.name}: the next position of event_log.seq is taken: somebody"
                " set its sequence back; nothing was written",
                "put it above the newest event: `projector db setup`",
            )
        raise UsageError(
            f"the id {row.id} is that of another event: position {seq} in {self._connection.name}"
            " has another session, type or data",
            "nothing was written; a new event needs a new id",
        )

    def known(self, ids: Sequence[str]) -> set[str]:
        asked = f"SELECT id FROM {self._table} WHERE id = ANY(%s::text[])"
        return {one for (one,) in self._connection.rows(asked, (_possible(ids),))}

    unfit = staticmethod(_unfit)

    def restore(self, rows: Sequence[LogRow], *, after: int) -> None:
        for row in rows:
            if why := _unfit(row):
                raise not_restored(self._connection.name, row, why)
        with self._connection.errors():
            try:
                with self._alone(after):
                    self._restore(rows)
            except _OF_A_ROW:
                self._tell_which(rows, after)
                raise

    @contextmanager
    def _alone(self, after: int) -> Iterator[None]:
        """One transaction; nobody else draws a position within it."""
        raw = self._connection.raw
        with raw.transaction():
            raw.execute(f"LOCK TABLE {self._table} IN SHARE ROW EXCLUSIVE MODE".encode())
            if self.newest() != after:
                raise LostRace
            yield

    def _restore(self, rows: Sequence[LogRow]) -> None:
        # The trigger takes the position that was drawn last, which setval makes this one.
        cursor = self._connection.raw.execute(
            f"INSERT INTO {self._table} (seq, id, key, data, packed, created_at)"
            " OVERRIDING SYSTEM VALUE SELECT"
            " pg_catalog.setval(pg_catalog.pg_get_serial_sequence(%s, 'seq')::regclass, r.seq),"
            " r.id, r.key, r.data, r.packed, r.created_at FROM unnest(%b::bigint[], %b::text[],"
            " %b::text[], %b::text[], %b::bytea[], %b::bigint[])"
            " AS r (seq, id, key, data, packed, created_at)".encode(),
            (
                self._connection.log_name,
                [row.seq for row in rows],
                [row.id for row in rows],
                [row.key for row in rows],
                [row.data if isinstance(row.data, str) else None for row in rows],
                [row.data if isinstance(row.data, bytes) else None for row in rows],
                [row.created_at for row in rows],
            ),
        )
        if cursor.rowcount != len(rows):  # the log ignores an event that it has already
            raise psycopg.errors.UniqueViolation

    def _tell_which(self, rows: Sequence[LogRow], after: int) -> None:
        """Raises `InterventionRequired` for the first that cannot be written."""
        with self._alone(after):
            for row in rows:
                try:
                    self._restore([row])
                except _OF_A_ROW as error:
                    taken = isinstance(error, psycopg.errors.UniqueViolation)
                    why = ID_TAKEN if taken else first_line(error)
                    raise not_restored(self._connection.name, row, why) from None

    def highest_number(self, prefix: str) -> int:
        highest = 0
        for start in (prefix, f"session:{prefix}"):
            # One step through the index for each key, however many events it has.
            step = f"SELECT min(key) FROM {self._table} WHERE key {{}} AND key < %(to)s"
            rows = self._connection.rows(
                f"WITH RECURSIVE keys (key) AS (SELECT ({step.format('>= %(from)s')})"
                f" UNION ALL SELECT ({step.format('> keys.key')}) FROM keys WHERE key IS NOT NULL)"
                " SELECT key FROM keys WHERE key IS NOT NULL",
                {"from": start, "to": start[:-1] + chr(ord(start[-1]) + 1)},
            )
            for (key,) in rows:
                number = session_of(key).removeprefix(prefix)
                if number.isascii() and number.isdigit():
                    highest = max(highest, int(number[:18]))
        return highest

    def _page(
        self, wheres: Sequence[str], order: str, values: dict[str, Any], most: int
    ) -> list[LogRow]:
        sources = [f"{self._table} WHERE {where}" for where in wheres]
        return [event_of(row) for row in self.rows(sources, order, values, most)]

    def rows(
        self, sources: Sequence[str], order: str, values: dict[str, Any], most: int, extra: str = ""
    ) -> list[tuple[Any, ...]]:
        """Rows of the first source, then of the next: `most` of them, and about `page_bytes`
        without the event at `position`. Each row is `extra` columns and those of an event."""
        found: list[tuple[Any, ...]] = []
        left = self._limits.page_bytes
        for source in sources:
            most_left = (most - len(found), left)
            for row in self._connection.rows(
                *self._statement(source, order, values, most_left, extra)
            ):
                left -= row[-1]
                found.append(row[:-1])
            if left < 0 or len(found) == most:
                break
        return found

    @staticmethod
    def _statement(
        source: str, order: str, values: dict[str, Any], most: tuple[int, int], extra: str = ""
    ) -> tuple[str, Values]:
        """Reads rows of a source, `most` of them and of their bytes; the last column is the bytes
        of each."""
        page = f"SELECT *, {_SIZE} AS size FROM {source} ORDER BY {order} LIMIT %(most)s"
        counted = "CASE WHEN seq = %(position)s THEN 0 ELSE size END"
        sql = (
            f"SELECT {extra}{_EVENT}, {counted} FROM (SELECT *, sum({counted}) OVER"
            f" (ORDER BY {order} ROWS UNBOUNDED PRECEDING) - {counted} AS before"
            f" FROM ({page}) AS page) AS page WHERE before <= %(left)s ORDER BY {order}"
        )
        return sql, {**values, "most": most[0], "left": most[1]}
