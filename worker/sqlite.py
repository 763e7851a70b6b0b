"""The embedded engine: the storage port on SQLite."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import aiosqlite
import anyio

from projections.event import MAX_EVENT_BYTES, LogRow, is_utf8
from projections.projection import Projection, Table
from worker import schema
from worker.database import BUSY_TIMEOUT_S, FileIdentity, lossless_text, uri
from worker.errors import LostRace, translated
from worker.store import Change, Checkpoint, Loaded

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
# An oversized event is quarantined by its size alone, so no more of it is read.
_EVENT_COLUMNS: Final = (
    "seq, id, key, CASE WHEN length(data) > :max THEN substr(data, 1, :max + 1) ELSE data END,"
    " created_at"
)
_CHECKPOINT_COLUMNS: Final = "name, version, position, generation, digest, skipped"


class SqliteStore:
    """Implements `worker.store.Store`; open with `SqliteStore.open`."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._identity = FileIdentity(path)
        self._data_version = None

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
        rows = await self._fetch("SELECT coalesce(max(seq), 0) FROM event_log")
        return int(rows[0][0])

    async def checkpoint(self, projection: Projection) -> Checkpoint:
        select = f"SELECT {_CHECKPOINT_COLUMNS} FROM checkpoint WHERE name = ?"
        rows = await self._fetch(select, (projection.name,))
        if not rows:
            await self._make(projection)
            rows = await self._fetch(select, (projection.name,))
        return Checkpoint(*rows[0])

    async def read_events(self, *, start: int, until: int | None = None) -> list[LogRow]:
        return await self._read_page(["seq >= :position"], position=start, until=until)

    async def read_history(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        named = {f"key{index}": key for index, key in enumerate(keys)}
        conditions = [
            f"key IS {_bound(f':{name}', key)} AND seq > :position" for name, key in named.items()
        ]
        values = {name: _raw(key) for name, key in named.items()}
        return await self._read_page(conditions, position=after, until=until, **values)

    async def load_views(self, table: Table, keys: Sequence[str]) -> Loaded:
        if not keys:
            return Loaded({}, 0)
        size = " + ".join(f"coalesce(length({column}), 0)" for column in table.columns)
        sizes = dict(
            await self._fetch(
                f"SELECT {table.key}, {size} FROM {table.name}"
                f" WHERE {_owned(table)} AND {table.key} IN ({_placeholders(keys)})",
                tuple(keys),
            )
        )
        covered = _prefix_within((sizes.get(key, 0) for key in keys), VIEW_BYTES)
        present = [key for key in keys[:covered] if key in sizes]
        if not present:
            return Loaded({}, covered)
        rows = await self._fetch(
            f"SELECT {', '.join(table.columns)} FROM {table.name}"
            f" WHERE {_owned(table)} AND {table.key} IN ({_placeholders(present)})",
            tuple(present),
        )
        key_at = [*table.columns].index(table.key)
        return Loaded({row[key_at]: tuple(row) for row in rows}, covered)

    async def with_history(self, checkpoint: Checkpoint, keys: Sequence[str]) -> set[str]:
        rows = await self._fetch(
            f"WITH asked (key) AS (VALUES {', '.join('(?)' for _ in keys)})"
            " SELECT key FROM asked WHERE EXISTS ("
            "SELECT 1 FROM event_log AS e WHERE e.key = asked.key AND e.seq <= ? AND NOT EXISTS ("
            "SELECT 1 FROM quarantine AS q WHERE q.projection = ? AND q.seq = e.seq))",
            (*keys, checkpoint.position, checkpoint.name),
        )
        return {key for (key,) in rows}

    async def log_keys(self, *, after: Any) -> list[Any]:
        # One step through the index for each key, however many events it has.
        above = "" if after is None else f"WHERE key > {_bound(':after', after)}"
        rows = await self._fetch(
            "WITH RECURSIVE keys (key, n) AS ("
            f"SELECT (SELECT min(key) FROM event_log {above}), 1"
            " UNION ALL SELECT (SELECT min(key) FROM event_log WHERE key > keys.key), n + 1"
            " FROM keys WHERE key IS NOT NULL AND n < :page)"
            " SELECT key FROM keys WHERE key IS NOT NULL",
            {"after": _raw(after), "page": PAGE_KEYS},
        )
        return [key for (key,) in rows]

    async def view_keys(self, table: Table, *, after: str) -> list[str]:
        rows = await self._fetch(
            f"SELECT {table.key} FROM {table.name} WHERE {_owned(table)}"
            f" AND {table.key} > {_bound('?', after)} ORDER BY {table.key} LIMIT ?",
            (_raw(after), PAGE_KEYS),
        )
        return [key for (key,) in rows]

    async def commit(self, changes: Sequence[Change]) -> None:
        async with self._transaction():
            for change in changes:
                await self._apply(change)

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
        if change.rows:
            await self._connection.executemany(_upsert(table), change.rows)
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
                " ON CONFLICT (projection, seq) DO UPDATE SET reason = excluded.reason",
                [(before.name, event.reason, event.seq) for event in change.quarantined],
            )

    async def _make(self, projection: Projection) -> None:
        """The table and the checkpoint of a projection that runs for the first time."""
        table = projection.table
        async with self._transaction():
            for statement in schema.table_statements(table):
                await self._connection.execute(statement)
            await self._connection.execute(
                f"INSERT OR IGNORE INTO checkpoint ({_CHECKPOINT_COLUMNS}, kept_in, key_column,"
                " prefix) VALUES (?, ?, 0, 0, '', 0, ?, ?, ?)",
                (projection.name, projection.version, table.name, table.key, table.prefix),
            )

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
        self, conditions: Sequence[str], *, position: int, until: int | None, **values: Any
    ) -> list[LogRow]:
        """Rows that meet any of the conditions (each served by an index, in seq order)."""
        bytes_read = (
            "CASE WHEN seq = :position THEN 0 ELSE min(coalesce(length(data), 0), :max) END"
        )
        sized = " UNION ALL ".join(
            f"SELECT seq, {bytes_read} AS bytes FROM event_log WHERE {condition} AND seq <= :until"
            for condition in conditions
        )
        rows = await self._fetch(
            f"SELECT {_EVENT_COLUMNS} FROM event_log WHERE seq IN (SELECT seq FROM ("
            "SELECT seq, sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before"
            f" FROM ({sized} ORDER BY seq LIMIT :events)) WHERE bytes_before <= :page)"
            " ORDER BY seq",
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

    async def _fetch(self, sql: str, parameters: Any = ()) -> list[Any]:
        with translated(self._path):
            return list(await self._connection.execute_fetchall(sql, parameters))


def _upsert(table: Table) -> str:
    columns = ", ".join(table.columns)
    updates = ", ".join(f"{column} = excluded.{column}" for column in table.columns)
    return (
        f"INSERT INTO {table.name} ({columns}) VALUES ({_placeholders([*table.columns])})"
        f" ON CONFLICT ({table.key}) WHERE {_owned(table)} DO UPDATE SET {updates}"
    )


def _owned(table: Table) -> str:
    """Only a projection's own rows, in the words of the index on them, so that it is used."""
    if not table.prefix:
        return "TRUE"
    low, high = table.bounds
    return f"{table.key} >= '{low}' AND {table.key} < '{high}'"


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
