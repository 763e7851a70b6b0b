"""The rows that projections keep in PostgreSQL, and the scratch table of a full scan."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from psycopg.pq import TransactionStatus

from session_projector.projections import BUILT_IN
from session_projector.projections.event import LogRow
from session_projector.projections.projection import Projection, Table
from session_projector.worker.errors import InterventionRequired, LostRace, ProjectionFailed
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Among, Checkpoint, LoadedViews, other_table
from session_projector.worker.storage.postgres import roles, tables
from session_projector.worker.storage.postgres.checkpoints import PostgresCheckpoints, forget
from session_projector.worker.storage.postgres.commit import Statement
from session_projector.worker.storage.postgres.connection import Connection, is_pooled
from session_projector.worker.storage.postgres.errors import psql
from session_projector.worker.storage.postgres.locks import PREPARE_CLASS
from session_projector.worker.storage.postgres.log import KEY_BYTES, PostgresLog, event_of
from session_projector.worker.storage.postgres.sql import column, columns, owned, row_of
from session_projector.worker.storage.postgres.tables import named
from session_projector.worker.storage.postgres.text import escaped, unescaped

ONE_MOMENT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresViews:
    """Implements `worker.storage.port.Views`."""

    def __init__(
        self, connection: Connection, limits: Limits, checkpoints: PostgresCheckpoints
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._checkpoints = checkpoints
        self._p = connection.prefix

    def prepare(self, projection: Projection) -> Checkpoint:
        if self._lacking(projection):
            with self._connection.writing(), self._connection.errors(projection.name):
                lock = "SELECT pg_catalog.pg_advisory_xact_lock(%s::int4, %s::regclass::oid::int4)"
                self._connection.rows(lock, (PREPARE_CLASS, self._connection.log_name))
                for statement, values in self._lacking(projection):
                    self._connection.rows(statement, values, projection=projection.name)
                if not projection.table.prefix:
                    roles.let_readers_read(self._connection, projection.table.name)
        found = self._checkpoints.get(projection.name)
        if found is None:
            raise LostRace  # another process dropped it at once
        return found

    def load(self, projection: Projection, keys: Sequence[str]) -> LoadedViews:
        try:
            return self._load(projection, columns(projection.table), keys)
        except ProjectionFailed:
            if self._checkpoints.get(projection.name) is None:
                raise LostRace from None
            # In a dry run of a newer version those that it adds are not there yet.
            present = tables.columns_of(self._connection, projection.table.name)
            known = [
                column(name)
                if name in present
                else f"NULL::{tables.TYPES[kind.upper()]} AS {column(name)}"
                for name, kind in projection.table.columns.items()
            ]
            return self._load(projection, ", ".join(known), keys)

    def _load(self, projection: Projection, selected: str, keys: Sequence[str]) -> LoadedViews:
        table = projection.table
        at, key = named(self._connection, table.name), column(table.key)
        sizes = [
            f"coalesce(octet_length({column(name)}), 0)"
            for name, kind in table.columns.items()
            if kind.upper() in ("TEXT", "BLOB") and f"AS {column(name)}" not in selected
        ]
        size = " + ".join([str(KEY_BYTES), *sizes])
        rows = (
            f"SELECT _n, _key, {columns(table)} FROM (SELECT *, sum(_size) OVER"
            f" (ORDER BY _n ROWS UNBOUNDED PRECEDING) - _size AS _before FROM (SELECT k.n AS _n,"
            f" v.*, coalesce(_bytes, {KEY_BYTES}) AS _size"
            " FROM unnest(%(keys)s::text[]) WITH ORDINALITY AS k (wanted, n)"
            f" LEFT JOIN (SELECT {key} AS _key, {size} AS _bytes, {selected}"
            f" FROM {at} WHERE {owned(table)}) AS v ON v._key = k.wanted) AS sized) AS counted"
            " WHERE _before <= %(most)s ORDER BY _n"
        )
        values = {"keys": [escaped(key) for key in keys], "most": self._limits.view_bytes}
        statements: list[Statement] = [self._checkpoints.one(projection.name), (rows, values)]
        stored, found = self._read(statements, projection.name)
        checkpoint = self._checkpoints.sound(projection.name, stored)
        if checkpoint is None:
            raise LostRace
        loaded = {keys[row[0] - 1]: row_of(row[2:]) for row in found if row[1] is not None}
        return LoadedViews(loaded, len(found), checkpoint)

    def _read(self, statements: Sequence[Statement], name: str) -> list[list[tuple[Any, ...]]]:
        """The rows of statements, all of one moment."""
        if self._connection.raw.info.transaction_status is TransactionStatus.IDLE:
            return self._connection.together(statements, ONE_MOMENT, projection=name)
        return [self._connection.rows(*one, projection=name) for one in statements]

    def row(self, projection: Projection, key: str) -> tuple[Any, ...] | None:
        table = projection.table
        row = self._connection.row(
            f"SELECT {columns(table)} FROM {named(self._connection, table.name)}"
            f" WHERE {owned(table)} AND {column(table.key)} = %s",
            (escaped(key),),
        )
        return row_of(row) if row else None

    def select(
        self,
        projection: Projection,
        *,
        where: Mapping[str, Sequence[Any]],
        above: tuple[str, int] | None = None,
        order: Sequence[str],
    ) -> Iterator[tuple[Any, ...]]:
        table = projection.table
        conditions = [f"{column(name)} = ANY(%s)" for name in where]
        values: list[Any] = [[*map(escaped, wanted)] for wanted in where.values()]
        if above is not None:
            conditions.append(f"{column(above[0])} > %s")
            values.append(above[1])
        rows = self._connection.rows(
            f"SELECT {columns(table)} FROM {named(self._connection, table.name)}"
            f" WHERE {' AND '.join(conditions) or 'TRUE'}"
            f" ORDER BY {', '.join(map(_ordered, order))}",
            values,
        )
        yield from map(row_of, rows)

    def latest(
        self,
        projection: Projection,
        among: Among,
        *,
        order: Sequence[str],
        below: Sequence[Any] | None = None,
        limit: int,
    ) -> list[tuple[Any, ...]]:
        table = projection.table
        where, values = _condition(among)
        if below is not None:
            by = ", ".join(map(column, order))
            where += f" AND ({by}) < ({', '.join(['%s'] * len(order))})"
            values += map(escaped, below)
        rows = self._connection.rows(
            f"SELECT {columns(table)} FROM {named(self._connection, table.name)} WHERE {where}"
            f" ORDER BY {', '.join(f'{column(name)} DESC' for name in order)} LIMIT %s",
            (*values, limit),
        )
        return [row_of(row) for row in rows]

    def tally(self, projection: Projection, among: Among, column_name: str) -> dict[Any, int]:
        where, values = _condition(among)
        rows = self._connection.rows(
            f"SELECT {column(column_name)}, count(*)"
            f" FROM {named(self._connection, projection.table.name)} WHERE {where} GROUP BY 1",
            values,
        )
        return {unescaped(value): count for value, count in rows}

    def highest(self, projection: Projection, column_name: str) -> int:
        at = named(self._connection, projection.table.name)
        return int(
            self._connection.value(f"SELECT coalesce(max({column(column_name)}), 0) FROM {at}")
        )

    def keys(self, projection: Projection, *, after: str | None) -> list[str]:
        table, key = projection.table, column(projection.table.key)
        rows = self._connection.rows(
            f"SELECT {key} FROM {named(self._connection, table.name)} WHERE {owned(table)}"
            f"{'' if after is None else f' AND {key} > %(after)s'} ORDER BY {key} LIMIT %(page)s",
            {"after": escaped(after), "page": self._limits.page_keys},
            projection=projection.name,
        )
        return [unescaped(key) for (key,) in rows]

    def count(self, table: Table) -> int:
        if table.key not in tables.columns_of(self._connection, table.name):
            return 0
        sql = f"SELECT count(*) FROM {named(self._connection, table.name)} WHERE {owned(table)}"
        return int(self._connection.value(sql))

    def drop(self, name: str) -> None:
        with self._connection.writing():
            stored = self._checkpoints.all().get(name)
            if stored and self.owns(name):
                at = named(self._connection, stored.table.name)
                if stored.table.prefix:
                    self._connection.rows(f"DELETE FROM {at} WHERE {owned(stored.table)}")
                else:
                    self._connection.rows(f"DROP TABLE {at}")
            for statement in self._forget(name):
                self._connection.rows(*statement)
            self._connection.rows(f"DELETE FROM {self._p}checkpoint WHERE name = %s", (name,))

    def exists(self, table: Table) -> bool:
        return bool(tables.columns_of(self._connection, table.name))

    def owns(self, name: str) -> bool:
        stored = self._checkpoints.all().get(name)
        if stored is None:
            return False
        table = stored.table
        present = tables.columns_of(self._connection, table.name)
        if built_in := next((one for one in BUILT_IN if one.name == name), None):
            known = built_in.table
            same = (known.name, known.key, known.prefix) == (table.name, table.key, table.prefix)
            return same and bool(present)
        comment = "SELECT obj_description(to_regclass(%s), 'pg_class') = %s"
        at = tables.value_of(self._connection, table.name)
        return bool(
            self._connection.value(comment, (at, tables.OURS))
            and [name for name, (_, is_key) in present.items() if is_key] == [table.key]
            and not table.prefix
            and not self._other_owner(table, name)
        )

    def _other_owner(self, table: Table, name: str) -> tuple[Any, ...] | None:
        """The name of another projection whose checkpoint says that it is kept in a table."""
        other = f"SELECT name FROM {self._p}checkpoint WHERE kept_in = %s AND name <> %s"
        return self._connection.row(other, (table.name, name))

    def _forget(self, name: str) -> list[Statement]:
        return [
            forget(self._connection, name),
            (f"DELETE FROM {self._p}deferred WHERE projection = %s", (name,)),
            (f"DELETE FROM {self._p}quarantine WHERE projection = %s", (name,)),
        ]

    def _lacking(self, projection: Projection) -> list[Statement]:
        """The statements that a projection's table and checkpoint lack."""
        table, name = projection.table, projection.name
        stored_in = (table.name, table.key, table.prefix)
        row = self._connection.row(
            f"SELECT version, kept_in, key_column, prefix FROM {self._p}checkpoint WHERE name = %s",
            (name,),
        )
        if row and abs(row[0]) > projection.version:
            return []
        present = tables.columns_of(self._connection, table.name)
        newer = row is not None and row[0] < projection.version
        try:
            known = tables.indexes_of(self._connection, table.name)
            lacking = (
                []
                if table.prefix
                else tables.changes(self._connection, table, present, known, newer=newer)
            )
        except ValueError as error:
            raise ProjectionFailed(
                name,
                f"the table {table.name} exists and does not fit version {projection.version}:"
                f" {error}"
                if present
                else f"the table {table.name} cannot be made: {error}",
                other_table(name, folded=bool(present and row and row[1] == table.name)),
            ) from None
        if present and not projection.built_in:
            self._require_own(projection, known=row is not None)
        todo: list[Statement] = [(statement, ()) for statement in lacking]
        if row is None:
            todo.append((f"DELETE FROM {self._p}deferred WHERE projection = %s", (name,)))
            todo.append(
                (
                    f"INSERT INTO {self._p}checkpoint (name, version, position, generation,"
                    " digest, skipped, kept_in, key_column, prefix)"
                    " VALUES (%s, %s, 0, 0, '', 0, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (name, projection.version, *stored_in),
                )
            )
        elif not present or row[1:] != stored_in:
            # Views that are gone are built again, and a view in another table is one that is gone.
            todo += self._forget(name)
            todo.append(
                (
                    f"UPDATE {self._p}checkpoint SET version = %s, position = 0, digest = '',"
                    " skipped = 0, generation = generation + 1, kept_in = %s, key_column = %s,"
                    " prefix = %s WHERE name = %s",
                    (projection.version, *stored_in, name),
                )
            )
        return todo

    def _require_own(self, projection: Projection, *, known: bool) -> None:
        """Raises `ProjectionFailed` for a table of another owner: its rows would be deleted."""
        table, name = projection.table, projection.name
        other = self._other_owner(table, name)
        whose = f"is of the projection {other[0]}" if other else ""
        at = named(self._connection, table.name)
        filled = self._connection.row(f"SELECT 1 FROM {at} LIMIT 1", projection=name)
        if not known and filled:
            whose = whose or "exists with rows that no checkpoint explains"
        if whose:
            drop = psql(self._connection.name, f"DROP TABLE {at.replace('%%', '%')}")
            raise ProjectionFailed(
                name,
                f"the table {table.name} {whose}",
                "give the projection's table another name; or drop that table, if nothing needs it:"
                f" `{drop}`",
            )


def _condition(among: Among) -> tuple[str, list[Any]]:
    """The rows that are meant, in SQL, and the values in it."""
    parts, values = ["TRUE"], list[Any]()
    for wanted, word in ((among.having, "= ANY(%s)"), (among.lacking, "<> ALL(%s)")):
        for name, some in wanted.items():
            parts.append(f"{column(name)} {word}")
            values.append([*map(escaped, some)])
    for bounds, sign in ((among.above, ">"), (among.at_most, "<=")):
        for name, number in bounds.items():
            parts.append(f"{column(name)} {sign} %s")
            values.append(number)
    for word in among.words:
        found = [
            f'position(lower(%s::text COLLATE "C") IN lower({column(name)} COLLATE "C")) > 0'
            for name in among.texts
        ]
        parts.append(f"({' OR '.join(found) or 'FALSE'})")
        values += [escaped(word)] * len(found)
    return " AND ".join(parts), values


def _ordered(order: str) -> str:
    """A column to sort by, where NULL is below everything, as in SQLite."""
    name, _, descending = order.partition(" ")
    return f"{column(name)} {'DESC NULLS LAST' if descending else 'NULLS FIRST'}"


class PostgresScratch:
    """Implements `worker.storage.port.Scratch` by a temporary table, made for what is added."""

    def __init__(self, connection: Connection, limits: Limits, log: PostgresLog) -> None:
        self._connection = connection
        self._limits = limits
        self._log = log
        self._made_on = 0
        """The number of the connection whose table it is."""

    def clear(self, name: str) -> None:
        if self._is_made():
            self._connection.rows("DELETE FROM pg_temp.gathered WHERE projection = %s", (name,))

    def add(self, name: str, pairs: Sequence[tuple[str, int]]) -> None:
        if not self._is_made():
            self._make()
        self._connection.rows(
            "INSERT INTO pg_temp.gathered SELECT %s, * FROM unnest(%b::text[], %b::bigint[])"
            " ON CONFLICT DO NOTHING",
            (name, [escaped(key) for key, _ in pairs], [seq for _, seq in pairs]),
        )

    def page(self, name: str, *, after: tuple[str, int]) -> list[tuple[str, LogRow]]:
        if not self._is_made():
            return []
        source = (
            "(SELECT g.view_key, e.* FROM pg_temp.gathered AS g"
            f" JOIN {self._connection.prefix}event_log AS e ON e.seq = g.seq"
            " WHERE g.projection = %(name)s AND (g.view_key, g.seq) > (%(key)s, %(position)s))"
            " AS g"
        )
        values = {"name": name, "key": escaped(after[0]), "position": after[1]}
        rows = self._log.rows(
            [source], "view_key, seq", values, self._limits.page_events, extra="view_key, "
        )
        return [(unescaped(row[0]), event_of(row[1:])) for row in rows]

    def present(self, name: str, keys: Sequence[str]) -> set[str]:
        if not self._is_made():
            return set()
        rows = self._connection.rows(
            "SELECT DISTINCT view_key FROM pg_temp.gathered"
            " WHERE projection = %s AND view_key = ANY(%b::text[])",
            (name, [escaped(key) for key in keys]),
        )
        return {unescaped(key) for (key,) in rows}

    def _is_made(self) -> bool:
        """Raises `LostRace` where it went with its connection: the scan begins again."""
        _ = self._connection.raw
        if self._made_on and self._made_on != self._connection.number:
            self._made_on = 0
            raise LostRace
        return bool(self._made_on)

    def _make(self) -> None:
        if is_pooled(self._connection.raw):
            raise InterventionRequired(
                f"{self._connection.name} is behind a pooler, such as PgBouncer, which hands the"
                " session of this scan, and its temporary table, to others",
                "give the server's own address",
            )
        self._connection.rows(
            'CREATE TEMP TABLE gathered (projection text COLLATE "C", view_key text COLLATE "C",'
            " seq bigint, PRIMARY KEY (projection, view_key, seq))"
        )
        self._made_on = self._connection.number
