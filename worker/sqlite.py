"""The embedded engine: the storage port on SQLite."""

import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import aiosqlite
import anyio
import msgspec

from projections.event import MAX_EVENT_BYTES, LogRow, is_utf8
from projections.projection import Projection, Table
from worker import schema, tables
from worker.database import BUSY_TIMEOUT_S, EVENT_COLUMNS, FileIdentity, lossless_text, uri
from worker.errors import LostRace, ProjectionFailed, quoted, translated
from worker.store import Change, Checkpoint, Committed, Loaded, State

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
VIEW_BYTES: Final = 32 * 1024 * 1024
"""What one batch may load of views, and so about what it writes under the lock."""
PAGE_KEYS: Final = 500

# secure_delete, on in many distributions' builds, logs the rewriting of a large row twice.
# synchronous NORMAL may lose the last commits to a power cut, views and checkpoint alike: they
# are folded again.
_PRAGMAS: Final = (
    "PRAGMA synchronous = NORMAL",
    "PRAGMA secure_delete = OFF",
    "PRAGMA cache_size = -65536",
)
_CHECKPOINT_COLUMNS: Final = "name, version, position, generation, digest, skipped"
_NEW_CHECKPOINT: Final = (
    f"INSERT OR IGNORE INTO checkpoint ({_CHECKPOINT_COLUMNS}, kept_in, key_column, prefix)"
    " VALUES (?, ?, 0, 0, '', 0, ?, ?, ?)"
)
_RESET_CHECKPOINT: Final = (
    "UPDATE checkpoint SET version = ?, position = 0, digest = '', skipped = 0,"
    " generation = generation + 1, kept_in = ?, key_column = ?, prefix = ? WHERE name = ?"
)
_FORGET_STATE: Final = "DELETE FROM projection_state WHERE projection = ?"
_FORGET_QUARANTINE: Final = "DELETE FROM quarantine WHERE projection = ?"
_OF_ONE_PROJECTION: Final = {
    sqlite3.SQLITE_ERROR,  # no such table, no such column
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
}


class SqliteStore:
    """Implements `worker.store.Store`; open with `SqliteStore.open`."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._identity = FileIdentity(path)
        self._data_version = None
        self._present: dict[str, frozenset[str]] = {}
        """The columns that each projection's table has."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open a database whose schema is this program's; raises `ProjectorError`."""
        schema.require_current(path)
        with translated(path):
            connection = await aiosqlite.connect(
                uri(path, mode="rw"), uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S
            )
        connection.text_factory = lossless_text
        store = cls(connection, path)
        try:
            for pragma in _PRAGMAS:
                await store._fetch(pragma)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._connection.close()

    async def changed(self) -> bool:
        self._identity.check()
        rows = await self._fetch("PRAGMA data_version")
        before, self._data_version = self._data_version, rows[0][0]
        return before != self._data_version

    async def newest(self) -> int:
        self._identity.check()
        rows = await self._fetch("SELECT coalesce(max(seq), 0) FROM event_log")
        return int(rows[0][0])

    async def checkpoint(self, projection: Projection) -> Checkpoint:
        select = f"SELECT {_CHECKPOINT_COLUMNS} FROM checkpoint WHERE name = ?"
        rows = await self._fetch(select, (projection.name,))
        return Checkpoint(*rows[0]) if rows else await self.prepare(projection)

    async def prepare(self, projection: Projection) -> Checkpoint:
        if await self._preparation(projection):
            async with self._transaction():
                for statement, values in await self._preparation(projection):
                    with self._concerning(projection.name):
                        await self._connection.execute(statement, values)
            self._present.clear()
        return await self.checkpoint(projection)

    async def report(self, name: str, state: State | None) -> None:
        standing = "SELECT 1 FROM projection_state WHERE projection = ?"
        if state is None and not await self._fetch(standing, (name,)):
            return
        async with self._transaction():
            await self._connection.execute(_FORGET_STATE, (name,))
            if state:
                await self._connection.execute(
                    "INSERT INTO projection_state (projection, state, version, why, events, total,"
                    " since, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (name, *msgspec.structs.astuple(state)),
                )

    async def read_events(self, *, start: int, until: int | None = None) -> list[LogRow]:
        return await self._read_page(["seq >= :position"], position=start, until=until)

    async def read_by_key(self, *, after: LogRow | None, until: int) -> list[LogRow]:
        key = None if after is None else after.key
        of_key = f"key IS {_bound(':key', key)} AND seq > :position"
        above = "key IS NOT NULL" if key is None else f"key > {_bound(':key', key)}"
        return await self._read_page(
            [of_key, above],
            position=0 if after is None else after.seq,
            until=until,
            order="key, seq",
            key=_raw(key),
        )

    async def read_history(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        named = {f"key{index}": key for index, key in enumerate(keys)}
        asked = ", ".join(_bound(f":{name}", key) for name, key in named.items())
        conditions = [f"key IN ({asked}) AND seq > :position"]
        values = {name: _raw(key) for name, key in named.items()}
        return await self._read_page(conditions, position=after, until=until, **values)

    async def load_views(self, projection: Projection, keys: Sequence[str]) -> Loaded:
        table, name = projection.table, projection.name
        if name not in self._present:
            self._present[name] = frozenset(await self._columns(table))
        # Those that a newer version adds are not there yet in a dry run.
        present = [column for column in table.columns if column in self._present[name]]
        size = " + ".join(f"coalesce(length({column}), 0)" for column in present)
        sizes = dict(
            await self._fetch(
                f"SELECT {table.key}, {size} FROM {table.name}"
                f" WHERE {_owned(table)} AND {table.key} IN ({_placeholders(keys)})",
                tuple(keys),
                of=name,
            )
        )
        covered = _prefix_within((sizes.get(key, 0) for key in keys), VIEW_BYTES)
        columns = ", ".join(
            f"v.{column}" if column in present else "NULL" for column in table.columns
        )
        checkpoint = ", ".join(f"c.{column}" for column in _CHECKPOINT_COLUMNS.split(", "))
        # One statement, so that the rows are of the same moment as the checkpoint.
        rows = await self._fetch(
            f"SELECT {checkpoint}, {columns} FROM checkpoint AS c LEFT JOIN {table.name} AS v"
            f" ON {_owned(table, 'v.')} AND v.{table.key} IN ({_placeholders(keys[:covered])})"
            " WHERE c.name = ?",
            (*keys[:covered], name),
            of=name,
        )
        if not rows:
            raise LostRace
        width = len(rows[0]) - len(table.columns)
        key_at = width + [*table.columns].index(table.key)
        found = {row[key_at]: tuple(row[width:]) for row in rows if row[key_at] is not None}
        return Loaded(found, covered, Checkpoint(*rows[0][:width]))

    async def with_history(self, checkpoint: Checkpoint, keys: Sequence[str]) -> set[str]:
        rows = await self._fetch(
            f"WITH asked (key) AS (VALUES {', '.join('(?)' for _ in keys)})"
            " SELECT key FROM asked WHERE EXISTS ("
            "SELECT 1 FROM event_log AS e WHERE e.key = asked.key AND e.seq <= ? AND NOT EXISTS ("
            "SELECT 1 FROM quarantine AS q WHERE q.projection = ? AND q.seq = e.seq))",
            (*keys, checkpoint.position, checkpoint.name),
        )
        return {key for (key,) in rows}

    async def with_events(self, keys: Sequence[str], *, until: int) -> set[str]:
        if not keys:
            return set()
        rows = await self._fetch(
            f"WITH asked (key) AS (VALUES {', '.join('(?)' for _ in keys)})"
            " SELECT key FROM asked WHERE EXISTS ("
            "SELECT 1 FROM event_log AS e WHERE e.key = asked.key AND e.seq <= ?)",
            (*keys, until),
        )
        return {key for (key,) in rows}

    async def quarantined(self, name: str, seqs: Sequence[int]) -> dict[int, str | None]:
        rows = await self._fetch(
            "SELECT q.seq, iif(q.id IS e.id AND q.key IS e.key, q.reason, NULL)"
            " FROM json_each(?) AS asked CROSS JOIN quarantine AS q"
            " ON q.projection = ? AND q.seq = asked.value JOIN event_log AS e ON e.seq = q.seq",
            (str([*seqs]), name),
        )
        return dict(rows)

    async def stray_quarantine(self, name: str, *, ahead: int | None) -> list[int]:
        rows = await self._fetch(
            "SELECT seq FROM quarantine AS q WHERE projection = ? AND (NOT EXISTS ("
            "SELECT 1 FROM event_log AS e WHERE e.seq = q.seq) OR seq > coalesce(?, ("
            "SELECT position FROM checkpoint WHERE name = q.projection))) ORDER BY seq LIMIT ?",
            (name, ahead, PAGE_KEYS),
        )
        return [seq for (seq,) in rows]

    async def clear_gathered(self) -> None:
        # A file of SQLite's own that has no name: nothing is left of it, even after SIGKILL.
        await self._fetch(
            "CREATE TEMP TABLE IF NOT EXISTS gathered (view_key TEXT, seq INTEGER,"
            " PRIMARY KEY (view_key, seq)) WITHOUT ROWID"
        )
        await self._fetch("DELETE FROM temp.gathered")

    async def gather(self, events: Sequence[tuple[str, int]]) -> None:
        with anyio.CancelScope(shield=True), translated(self._path):
            await self._connection.execute("BEGIN")
            try:
                await self._connection.executemany(
                    "INSERT OR IGNORE INTO temp.gathered VALUES (?, ?)", events
                )
            finally:
                await self._connection.execute("COMMIT")

    async def read_gathered(self, *, after: tuple[str, int]) -> list[tuple[str, LogRow]]:
        rows = await self._fetch(
            f"SELECT view_key, {EVENT_COLUMNS} FROM ("
            "SELECT *, sum(bytes) OVER (ORDER BY view_key, at) - bytes AS bytes_before FROM ("
            "SELECT view_key, g.seq AS at, min(coalesce(length(data), 0), :max) AS bytes"
            " FROM temp.gathered AS g JOIN event_log AS e ON e.seq = g.seq"
            " WHERE (view_key = :key AND g.seq > :seq) OR view_key > :key"
            " ORDER BY view_key, g.seq LIMIT :events)) AS g"
            " JOIN event_log AS e ON e.seq = g.at WHERE bytes_before <= :page"
            " ORDER BY view_key, seq",
            {
                "key": after[0],
                "seq": after[1],
                "max": MAX_EVENT_BYTES,
                "events": PAGE_EVENTS,
                "page": PAGE_BYTES,
            },
        )
        return [(row[0], LogRow(*row[1:])) for row in rows]

    async def gathered(self, keys: Sequence[str]) -> set[str]:
        rows = await self._fetch(
            "SELECT DISTINCT view_key FROM temp.gathered"
            f" WHERE view_key IN ({_placeholders(keys)})",
            tuple(keys),
        )
        return {key for (key,) in rows}

    async def view_keys(self, projection: Projection, *, after: str | None) -> list[str]:
        table = projection.table
        above = "" if after is None else f" AND {table.key} > {_bound(':after', after)}"
        rows = await self._fetch(
            f"SELECT {table.key} FROM {table.name} WHERE {_owned(table)}{above}"
            f" ORDER BY {table.key} LIMIT :page",
            {"after": _raw(after), "page": PAGE_KEYS},
            of=projection.name,
        )
        return [key for (key,) in rows]

    async def commit(self, changes: Sequence[Change]) -> Committed:
        asked = time.perf_counter()
        async with self._transaction():
            began = time.perf_counter()
            for change in changes:
                await self._apply(change)
        return Committed(began - asked, time.perf_counter() - began)

    async def _apply(self, change: Change) -> None:
        before, after, table = change.before, change.after, change.table
        cursor = await self._connection.execute(
            "UPDATE checkpoint SET version = ?, position = ?, generation = ?, digest = ?,"
            " skipped = ? WHERE name = ? AND version = ? AND position = ? AND generation = ?"
            " AND digest = ?",
            (
                *(after.version, after.position, after.generation, after.digest, after.skipped),
                *(before.name, before.version, before.position, before.generation, before.digest),
            ),
        )
        if cursor.rowcount != 1:
            raise LostRace
        if (after.version, after.position) != (before.version, before.position):
            await self._connection.execute(_FORGET_STATE, (before.name,))
        with self._concerning(before.name):
            if change.rows:
                await self._write(before.name, table, change.rows)
            for key in change.removed:
                await self._connection.execute(
                    f"DELETE FROM {table.name} WHERE {_owned(table)}"
                    f" AND {table.key} = {_bound('?', key)}",
                    (_raw(key),),
                )
        if change.quarantined:
            await self._connection.executemany(
                "INSERT INTO quarantine (projection, seq, id, key, reason)"
                " SELECT ?, seq, id, key, ? FROM event_log WHERE seq = ?"
                " ON CONFLICT (projection, seq) DO UPDATE"
                " SET id = excluded.id, key = excluded.key, reason = excluded.reason",
                [(before.name, event.reason, event.seq) for event in change.quarantined],
            )
        for seq in change.cleared:
            await self._connection.execute(
                f"DELETE FROM quarantine WHERE projection = ? AND seq = {_bound('?', seq)}",
                (before.name, _raw(seq)),
            )

    async def _write(self, name: str, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            await self._connection.executemany(_upsert(table), rows)
        except sqlite3.IntegrityError:
            if not table.prefix:
                raise
            # A row of ours bears the id of another one: damaged, and met when that is written.
            columns = [*table.columns]
            id_at, key_at = columns.index("id"), columns.index(table.key)
            await self._connection.executemany(
                f"UPDATE OR IGNORE {table.name} SET id = {table.key}"
                f" WHERE {_owned(table)} AND id = ? AND {table.key} <> ?",
                [(row[id_at], row[key_at]) for row in rows],
            )
            await self._write_anew(name, table, rows)

    async def _write_anew(self, name: str, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            await self._connection.executemany(_upsert(table), rows)
        except sqlite3.IntegrityError as error:
            raise ProjectionFailed(
                name,
                f"{self._path}: a row of {table.name} cannot be written ({error}): another"
                " program's row has the id that it must have",
                f"find it: SELECT id, {table.key} FROM {table.name} WHERE id LIKE '{table.prefix}%'"
                f" AND {table.key} NOT LIKE '{table.prefix}%'",
            ) from None

    async def _preparation(self, projection: Projection) -> list[tuple[str, Sequence[Any]]]:
        """The statements that a projection's table and checkpoint lack."""
        table, name = projection.table, projection.name
        kept = (table.name, table.key, table.prefix)
        rows = await self._fetch(
            "SELECT version, position, kept_in, key_column, prefix FROM checkpoint WHERE name = ?",
            (name,),
        )
        if rows and abs(rows[0][0]) > projection.version:
            return []
        standing = await self._columns(table)
        indexes = await self._fetch(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ? COLLATE NOCASE",
            (table.name,),
        )
        try:
            known = [index for (index,) in indexes]
            newer = bool(rows) and rows[0][0] < projection.version
            lacking = [] if table.prefix else tables.changes(table, standing, known, newer=newer)
        except ValueError as error:
            raise ProjectionFailed(
                name,
                f"the table {table.name} is there and does not fit version {projection.version}:"
                f" {error}",
                "raise the version where columns are added; where they change otherwise, also give"
                " the table another name",
            ) from None
        await self._require_own(projection, known=bool(rows), standing=bool(standing))
        todo: list[tuple[str, Sequence[Any]]] = [(statement, ()) for statement in lacking]
        if not rows:
            todo.append((_NEW_CHECKPOINT, (name, projection.version, *kept)))
        elif not standing or rows[0][2:] != kept:
            # Views that are gone are made anew, and a view in another table is one that is gone.
            todo += [(statement, (name,)) for statement in (_FORGET_STATE, _FORGET_QUARANTINE)]
            todo.append((_RESET_CHECKPOINT, (projection.version, *kept, name)))
        return todo

    async def _require_own(self, projection: Projection, *, known: bool, standing: bool) -> None:
        """Raises `ProjectionFailed` for a table that is another's: its rows would be deleted."""
        table, name = projection.table, projection.name
        if projection.trusted or not standing:
            return
        others = await self._fetch(
            "SELECT name FROM checkpoint WHERE kept_in = ? COLLATE NOCASE AND name <> ?",
            (table.name, name),
        )
        whose = f"of the projection {others[0][0]}" if others else ""
        if not known and await self._fetch(f"SELECT 1 FROM {table.name} LIMIT 1", of=name):
            whose = whose or "there with rows that no checkpoint explains"
        if whose:
            raise ProjectionFailed(
                name,
                f"the table {table.name} is {whose}",
                f"if it is of no use: sqlite3 {quoted(self._path)} 'DROP TABLE {table.name}'; else"
                " give the projection's table another name",
            )

    async def _columns(self, table: Table) -> dict[str, tuple[str, bool]]:
        """The type of each column that stands, and whether it is the key."""
        # Through sqlite_master, because pragma_table_info alone goes on answering from the schema
        # that was read before another process changed it.
        rows = await self._fetch(
            "SELECT c.name, c.type, c.pk > 0 FROM sqlite_master AS t,"
            " pragma_table_info(t.name) AS c WHERE t.type = 'table' AND t.name = ? COLLATE NOCASE",
            (table.name,),
        )
        return {name: (kind.upper(), bool(is_key)) for name, kind, is_key in rows}

    @contextmanager
    def _concerning(self, name: str | None) -> Iterator[None]:
        """Tell what is wrong with one projection's rows from what is wrong with the database."""
        try:
            yield
        except (sqlite3.Error, OverflowError, ValueError) as error:  # the latter two: a value
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if name is None or code & 0xFF not in _OF_ONE_PROJECTION:
                raise
            hint = (
                f"make its views anew: `projector projection drop {name} -d {quoted(self._path)}`,"
                " then run again"
            )
            if code & 0xFF == sqlite3.SQLITE_CONSTRAINT:
                hint = (
                    "a trigger or an index on its table refuses the row: SELECT sql FROM"
                    " sqlite_master WHERE tbl_name ="
                    f" (SELECT kept_in FROM checkpoint WHERE name = '{name}')"
                )
            raise ProjectionFailed(name, f"SQLite says: {error}", hint) from error

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        # A cancelled task does not cancel a statement that waits in the database thread: a
        # BEGIN IMMEDIATE would open the transaction later and lock every writer out.
        with anyio.CancelScope(shield=True), translated(self._path):
            try:
                await self._connection.execute("BEGIN IMMEDIATE")
                yield
                await self._connection.execute("COMMIT")
            except BaseException:
                await self._connection.rollback()
                raise

    async def _read_page(
        self,
        conditions: Sequence[str],
        *,
        position: int,
        until: int | None,
        order: str = "seq",
        **values: Any,
    ) -> list[LogRow]:
        """Rows that meet any of the conditions (each served by an index), in this order."""
        bytes_read = (
            "CASE WHEN seq = :position THEN 0 ELSE min(coalesce(length(data), 0), :max) END"
        )
        sized = " UNION ALL ".join(
            f"SELECT key, seq, {bytes_read} AS bytes FROM event_log"
            f" WHERE {condition} AND seq <= :until"
            for condition in conditions
        )
        rows = await self._fetch(
            f"SELECT {EVENT_COLUMNS} FROM event_log WHERE seq IN (SELECT seq FROM ("
            f"SELECT seq, sum(bytes) OVER (ORDER BY {order}) - bytes AS bytes_before"
            f" FROM ({sized} ORDER BY {order} LIMIT :events)) WHERE bytes_before <= :page)"
            f" ORDER BY {order}",
            {
                "position": position,
                "until": 2**63 - 1 if until is None else until,
                "max": MAX_EVENT_BYTES,
                "events": PAGE_EVENTS + 1,
                "page": PAGE_BYTES,
                **values,
            },
        )
        return [LogRow(*row) for row in rows]

    async def _fetch(self, sql: str, parameters: Any = (), *, of: str | None = None) -> list[Any]:
        with translated(self._path), self._concerning(of):
            return list(await self._connection.execute_fetchall(sql, parameters))


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A store for as long as the block lasts."""
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


def _upsert(table: Table) -> str:
    columns = ", ".join(table.columns)
    updates = ", ".join(f"{column} = excluded.{column}" for column in table.columns)
    return (
        f"INSERT INTO {table.name} ({columns}) VALUES ({_placeholders([*table.columns])})"
        f" ON CONFLICT ({table.key}) WHERE {_owned(table)} DO UPDATE SET {updates}"
    )


def _owned(table: Table, alias: str = "") -> str:
    """Only a projection's own rows, in the words of the index on them, so that it is used."""
    if not table.prefix:
        return "TRUE"
    low, high = table.bounds
    return f"{alias}{table.key} >= '{low}' AND {alias}{table.key} < '{high}'"


def _bound(parameter: str, value: Any) -> str:
    """How a value is bound: text that is not UTF-8 can only go in as its bytes."""
    return f"CAST({parameter} AS TEXT)" if isinstance(_raw(value), _Bytes) else parameter


def _raw(value: Any) -> Any:
    if isinstance(value, str) and not is_utf8(value):
        return _Bytes(value.encode("utf-8", "surrogateescape"))
    return value


class _Bytes(bytes):
    """The bytes of a text, where a plain `bytes` is a BLOB."""


def _placeholders(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _prefix_within(sizes: Iterable[int], budget: int) -> int:
    """How many of the first sizes fit the budget, at least one."""
    total = count = 0
    for size in sizes:
        total += size
        if count and total > budget:
            break
        count += 1
    return count
