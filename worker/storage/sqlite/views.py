"""The rows that projections keep in SQLite, and the scratch table of a full scan."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.projections.event import LogRow
from session_projector.projections.projection import Projection, Table
from session_projector.worker.errors import LostRace, ProjectionFailed, quoted
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import (
    Among,
    Checkpoint,
    LoadedViews,
    other_table,
    size_of,
)
from session_projector.worker.storage.sqlite import tables, words
from session_projector.worker.storage.sqlite.checkpoints import FORGET_STATUS, SqliteCheckpoints
from session_projector.worker.storage.sqlite.connection import EVENT_COLUMNS, Connection
from session_projector.worker.storage.sqlite.log import KEY_BYTES, SqliteLog
from session_projector.worker.storage.sqlite.schema import integrity as objects
from session_projector.worker.storage.sqlite.sql import (
    FORGET_DEFERRED,
    bound,
    identifier,
    owned,
    placeholders,
    raw,
)

_NEW_CHECKPOINT: Final = (
    "INSERT OR IGNORE INTO checkpoint"
    " (name, version, position, generation, digest, skipped, kept_in, key_column, prefix)"
    " VALUES (?, ?, 0, 0, '', 0, ?, ?, ?)"
)
_RESET_CHECKPOINT: Final = (
    "UPDATE checkpoint SET version = ?, position = 0, digest = '', skipped = 0,"
    " generation = generation + 1, kept_in = ?, key_column = ?, prefix = ? WHERE name = ?"
)
_MADE_HERE: Final = re.compile(r"^CREATE TABLE .*\) WITHOUT ROWID$", re.DOTALL)
"""How `tables.statements` ends, as few others make a table."""
_FORGET: Final = (FORGET_STATUS, FORGET_DEFERRED, "DELETE FROM quarantine WHERE projection = ?")
_DELETE_CHECKPOINT: Final = "DELETE FROM checkpoint WHERE name = ?"


class SqliteViews:
    """Implements `worker.storage.port.Views`."""

    def __init__(
        self, connection: Connection, limits: Limits, checkpoints: SqliteCheckpoints
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._checkpoints = checkpoints

    def prepare(self, projection: Projection) -> Checkpoint:
        if self._lacking(projection):
            with self._connection.writing(), self._connection.errors(projection.name):
                for statement, values in self._lacking(projection):
                    self._connection.raw.execute(statement, values)
        found = self._checkpoints.get(projection.name)
        if found is None:
            raise LostRace  # another process dropped it at once
        return found

    def load(self, projection: Projection, keys: Sequence[str]) -> LoadedViews:
        columns = [*projection.table.columns]
        try:
            return self._load(projection, columns, keys)
        except ProjectionFailed:
            # In a dry run of a newer version those that it adds are not there yet.
            present = self._columns(projection.table)
            columns = [column if column in present else "NULL" for column in columns]
            return self._load(projection, columns, keys)

    def _load(
        self, projection: Projection, columns: Sequence[str], keys: Sequence[str]
    ) -> LoadedViews:
        table, name = projection.table, projection.name
        select = (
            f"SELECT {', '.join(columns)} FROM {table.name}"
            f" WHERE {owned(table)} AND {table.key} = ?"
        )
        execute = self._connection.raw.execute
        # The rows are of the same moment as the checkpoint.
        with self._connection.reading(), self._connection.errors(name):
            checkpoint = self._checkpoints.get(name)
            if checkpoint is None:
                raise LostRace
            rows: dict[str, tuple[Any, ...]] = {}
            covered = size = 0
            for key in keys:
                row = execute(select, (raw(key),)).fetchone()
                if row is not None:
                    rows[key] = row
                    size += size_of(row)
                size += KEY_BYTES
                covered += 1
                if size > self._limits.view_bytes:
                    break
        return LoadedViews(rows, covered, checkpoint)

    def row(self, projection: Projection, key: str) -> tuple[Any, ...] | None:
        table = projection.table
        return self._connection.row(
            f"SELECT {', '.join(table.columns)} FROM {table.name}"
            f" WHERE {owned(table)} AND {table.key} = {bound('?', key)}",
            (raw(key),),
        )

    def select(
        self,
        projection: Projection,
        *,
        where: Mapping[str, Sequence[Any]],
        above: tuple[str, int] | None = None,
        order: Sequence[str],
    ) -> Iterator[tuple[Any, ...]]:
        table = projection.table
        conditions = [f"{column} IN ({placeholders(values)})" for column, values in where.items()]
        values = [value for wanted in where.values() for value in wanted]
        if above is not None:
            conditions.append(f"{above[0]} > ?")
            values.append(above[1])
        with self._connection.errors():
            for row in self._connection.raw.execute(  # noqa: UP028
                f"SELECT {', '.join(table.columns)} FROM {table.name}"
                f" WHERE {' AND '.join(conditions) or 'TRUE'} ORDER BY {', '.join(order)}",
                values,
            ):
                yield row  # `yield from` would close the cursor, maybe after the connection

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
            where += f" AND ({', '.join(order)}) < ({placeholders(below)})"
            values += below
        return self._connection.rows(
            f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {where}"
            f" ORDER BY {', '.join(f'{column} DESC' for column in order)} LIMIT ?",
            (*values, limit),
        )

    def tally(self, projection: Projection, among: Among, column: str) -> dict[Any, int]:
        where, values = _condition(among)
        return dict(
            self._connection.rows(
                f"SELECT {column}, count(*) FROM {projection.table.name} WHERE {where}"
                f" GROUP BY {column}",
                values,
            )
        )

    def highest(self, projection: Projection, column: str) -> int:
        sql = f"SELECT coalesce(max({column}), 0) FROM {projection.table.name}"
        sql += f" WHERE typeof({column}) = 'integer'"  # as anybody may write any row
        return int(self._connection.value(sql))

    def keys(self, projection: Projection, *, after: str | None) -> list[str]:
        table = projection.table
        above = "" if after is None else f" AND {table.key} > {bound(':after', after)}"
        rows = self._connection.rows(
            f"SELECT {table.key} FROM {table.name} WHERE {owned(table)}{above}"
            f" ORDER BY {table.key} LIMIT :page",
            {"after": raw(after), "page": self._limits.page_keys},
            projection=projection.name,
        )
        return [key for (key,) in rows]

    def count(self, table: Table) -> int:
        if not self._columns(table):
            return 0
        key = identifier(table.key)
        owned = f"{key} >= ? AND {key} < ?" if table.prefix else "? <> ?"
        sql = f"SELECT count(*) FROM {identifier(table.name)} WHERE {owned}"
        return int(self._connection.value(sql, table.bounds))

    def drop(self, name: str) -> None:
        with self._connection.writing():
            execute = self._connection.raw.execute
            stored = self._checkpoints.all().get(name)
            if stored and self.owns(name):
                table, key = identifier(stored.table.name), identifier(stored.table.key)
                if stored.table.prefix:
                    where = f"{key} >= ? AND {key} < ?"
                    execute(f"DELETE FROM {table} WHERE {where}", stored.table.bounds)
                else:
                    of_words = words.drop(stored.table.name) if name == SEARCH.name else []
                    for statement in of_words or [f"DROP TABLE {table}"]:
                        execute(statement)
            for statement in (*_FORGET, _DELETE_CHECKPOINT):
                execute(statement, (name,))

    def exists(self, table: Table) -> bool:
        return bool(self._columns(table))

    def owns(self, name: str) -> bool:
        stored = self._checkpoints.all().get(name)
        if stored is None:
            return False
        table = stored.table
        if built_in := next((one for one in BUILT_IN if one.name == name), None):
            known = built_in.table
            same = (known.name, known.key, known.prefix) == (table.name, table.key, table.prefix)
            return same and bool(self._columns(table))
        row = self._connection.row(
            "SELECT type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE", (table.name,)
        )
        columns = self._columns(table)
        return bool(
            row
            and row[0] == "table"
            and _MADE_HERE.search(str(row[1]))
            and [column for column, (_, is_key) in columns.items() if is_key] == [table.key]
            and not table.prefix
            and not self._other_owner(table, name)
            and not objects.is_of_the_schema(table.name)
        )

    def _other_owner(self, table: Table, name: str) -> tuple[Any, ...] | None:
        """The name of another projection whose checkpoint says that it is kept in a table."""
        other = "SELECT name FROM checkpoint WHERE kept_in = ? COLLATE NOCASE AND name <> ?"
        return self._connection.row(other, (table.name, name))

    def _columns(self, table: Table) -> dict[str, tuple[str, bool]]:
        with self._connection.errors():
            return tables.columns_of(self._connection.raw, table.name)

    def _lacking(self, projection: Projection) -> list[tuple[str, Sequence[Any]]]:
        """The statements that a projection's table and checkpoint lack."""
        table, name = projection.table, projection.name
        stored_in = (table.name, table.key, table.prefix)
        row = self._connection.row(
            "SELECT version, kept_in, key_column, prefix FROM checkpoint WHERE name = ?", (name,)
        )
        if row and abs(row[0]) > projection.version:
            return []
        present = self._columns(table)
        of_words = self._lacking_words(projection)
        is_lost = bool(of_words and present and row and row[1:] == stored_in)
        if is_lost:  # what the rows were found by: they are built again
            present = {}
        indexes = self._connection.rows(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ? COLLATE NOCASE",
            (table.name,),
        )
        try:
            known = [index for (index,) in indexes]
            newer = row is not None and row[0] < projection.version
            lacking = [] if table.prefix else tables.changes(table, present, known, newer=newer)
        except ValueError as error:
            raise ProjectionFailed(
                name,
                f"the table {table.name} exists and does not fit version {projection.version}:"
                f" {error}",
                other_table(name, folded=bool(present and row and row[1] == table.name)),
            ) from None
        if present and not projection.built_in:
            self._require_own(projection, known=row is not None)
        if is_lost:
            lacking = [*words.drop(table.name), *tables.statements(table)]
            of_words = [*tables.index_of_words(table).values()]
        todo: list[tuple[str, Sequence[Any]]] = [(sql, ()) for sql in (*lacking, *of_words)]
        if row is None:
            todo.append((FORGET_DEFERRED, (name,)))
            todo.append((_NEW_CHECKPOINT, (name, projection.version, *stored_in)))
        elif not present or row[1:] != stored_in:
            # Views that are gone are built again, and a view in another table is one that is gone.
            todo += [(statement, (name,)) for statement in _FORGET]
            todo.append((_RESET_CHECKPOINT, (projection.version, *stored_in, name)))
        return todo

    def _lacking_words(self, projection: Projection) -> list[str]:
        """The statements that its index by words lacks."""
        if not projection.table.words:
            return []
        with self._connection.errors():
            if not words.is_available(self._connection.raw):
                raise ProjectionFailed(projection.name, words.WHY_NOT, words.USE_ANOTHER)
            return words.lacking(self._connection.raw, projection.table)

    def _require_own(self, projection: Projection, *, known: bool) -> None:
        """Raises `ProjectionFailed` for a table of another owner: its rows would be deleted."""
        table, name = projection.table, projection.name
        other = self._other_owner(table, name)
        whose = f"is of the projection {other[0]}" if other else ""
        filled = self._connection.row(f"SELECT 1 FROM {table.name} LIMIT 1", projection=name)
        if not known and filled:
            whose = whose or "exists with rows that no checkpoint explains"
        if whose:
            raise ProjectionFailed(
                name,
                f"the table {table.name} {whose}",
                "give the projection's table another name; or drop that table, if nothing needs it:"
                f" `sqlite3 -safe {quoted(self._connection.path)} 'DROP TABLE {table.name}'`",
            )


def _condition(among: Among) -> tuple[str, list[Any]]:
    """The rows that are meant, in SQL, and the values in it."""
    parts, values = ["TRUE"], list[Any]()
    for wanted, word in ((among.having, "IN"), (among.lacking, "NOT IN")):
        for column, some in wanted.items():
            parts.append(f"{column} {word} ({placeholders(some)})")
            values += some
    for bounds, sign in ((among.above, ">"), (among.at_most, "<=")):
        for column, number in bounds.items():
            parts.append(f"{column} {sign} ?")
            values.append(number)
    for word in among.words:
        found = [f"instr(lower({column}), lower(?))" for column in among.texts]
        parts.append(f"({' OR '.join(found) or 'FALSE'})")
        values += [word] * len(found)
    return " AND ".join(parts), values


class SqliteScratch:
    """Implements `worker.storage.port.Scratch` by a temporary table.

    It is a file of SQLite's own without a name: nothing is left of it, even after SIGKILL.
    """

    def __init__(self, connection: Connection, limits: Limits, log: SqliteLog) -> None:
        self._connection = connection
        self._limits = limits
        self._log = log

    def clear(self, name: str) -> None:
        self._connection.rows(
            "CREATE TEMP TABLE IF NOT EXISTS gathered (projection TEXT, view_key TEXT, seq INTEGER,"
            " PRIMARY KEY (projection, view_key, seq)) WITHOUT ROWID"
        )
        self._connection.rows("DELETE FROM temp.gathered WHERE projection = ?", (name,))

    def add(self, name: str, pairs: Sequence[tuple[str, int]]) -> None:
        insert = "INSERT OR IGNORE INTO temp.gathered VALUES (?, ?, ?)"
        with self._connection.writing("BEGIN"):  # which locks nobody out
            self._connection.raw.executemany(insert, [(name, *pair) for pair in pairs])

    def page(self, name: str, *, after: tuple[str, int]) -> list[tuple[str, LogRow]]:
        select = (
            f"SELECT view_key, {EVENT_COLUMNS} FROM"
            " (SELECT view_key, seq AS at FROM temp.gathered WHERE projection = :name"
            " AND (view_key, seq) > (:key, :position))"
            " CROSS JOIN event_log ON seq = at ORDER BY view_key, at"
        )
        values = {"name": name, "key": after[0], "position": after[1]}
        most = self._limits.page_events
        return self._log.rows([select], values, most, lambda key, *row: (key, LogRow(*row)))

    def present(self, name: str, keys: Sequence[str]) -> set[str]:
        rows = self._connection.rows(
            "SELECT DISTINCT view_key FROM temp.gathered"
            f" WHERE projection = ? AND view_key IN ({placeholders(keys)})",
            (name, *keys),
        )
        return {key for (key,) in rows}
