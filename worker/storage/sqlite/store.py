"""The embedded engine: the storage port on SQLite."""

import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiosqlite
import anyio
import msgspec

from session_projector.projections.event import MAX_EVENT_BYTES, LogRow
from session_projector.projections.projection import Projection, Table
from session_projector.worker.errors import LostRace, ProjectionFailed, quoted, translated
from session_projector.worker.storage.port import (
    Change,
    Checkpoint,
    Committed,
    Loaded,
    Look,
    Reach,
    State,
    size_of,
)
from session_projector.worker.storage.sqlite import tables
from session_projector.worker.storage.sqlite.commit import (
    FORGET_STATE,
    apply,
    concerning,
    reading,
    writing,
)
from session_projector.worker.storage.sqlite.connection import (
    BUSY_TIMEOUT_S,
    EVENT_COLUMNS,
    FileIdentity,
    lossless_text,
    uri,
)
from session_projector.worker.storage.sqlite.schema import migrate as schema
from session_projector.worker.storage.sqlite.sql import bound, owned, placeholders, raw
from session_projector.worker.storage.sqlite.wal import Backfill

PAGE_EVENTS: Final = 4000
"""Of a page of the walk; the tail says itself how many it takes."""
PAGE_BYTES: Final = 8 * 1024 * 1024
VIEW_BYTES: Final = 24 * 1024 * 1024
"""What one batch may load of views, and so about what it writes under the lock."""
KEY_BYTES: Final = 4096
"""What a view counts besides its row: so many of them are no longer one short transaction."""
PAGE_KEYS: Final = 500
AGAIN_S: Final = 0.00005
"""Between two questions of a patient look."""

# secure_delete, on in many distributions' builds, logs the rewriting of a large row twice.
# synchronous NORMAL may lose the last commits to a power cut, views and checkpoint alike: they
# are folded again.
_PRAGMAS: Final = (
    "PRAGMA synchronous = NORMAL",
    "PRAGMA secure_delete = OFF",
    "PRAGMA cache_size = -16384",
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
_FORGET_QUARANTINE: Final = "DELETE FROM quarantine WHERE projection = ?"
_T = TypeVar("_T")


class _Connection(aiosqlite.Connection):
    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Some work in the database thread, at one go: each hop there and back costs 50 µs."""
        done: _T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return done


class SqliteStore:
    """Implements `worker.store.Store`; open with `SqliteStore.open`."""

    def __init__(self, connection: _Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._identity = FileIdentity(path)
        self._data_version = None
        """As of the last look, and of the last commit."""
        self._others: int | None = None
        self._backfill = Backfill(path)
        self._present: dict[str, frozenset[str]] = {}
        """The columns that each projection's table has."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open a database whose schema is this program's; raises `ProjectorError`."""
        schema.require_current(path)
        with translated(path):
            connect = partial(
                sqlite3.connect,
                uri(path, mode="rw"),
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
            connection = _Connection(connect, iter_chunk_size=64)
            await connection
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
            await self._connection.run(lambda _: self._backfill.end())
            await self._connection.close()

    async def changed(self) -> bool:
        self._identity.check()
        return await self._run(self._touched)

    async def newest(self) -> int:
        self._identity.check()
        return await self._run(_newest)

    async def look(
        self,
        *,
        start: int,
        until: int | None,
        events: int,
        names: Sequence[str] = (),
        patience_s: float = 0,
    ) -> Look:
        self._identity.check()
        values = {"position": start, "until": _none_is_any(until), "max": MAX_EVENT_BYTES}
        events += start > 0  # the one at `start`

        def work(connection: sqlite3.Connection) -> Look:
            known, until_s = self._data_version is not None, time.perf_counter() + patience_s
            touched = self._touched(connection) and known  # before the rows: it misses nothing
            rows = _page(connection, [_SELECT + _FROM], values, events)
            while (not rows or rows[-1][0] <= start) and time.perf_counter() < until_s:
                time.sleep(AGAIN_S)  # here, as the event loop's own timers go by milliseconds
                if self._touched(connection):
                    touched = True
                    rows = _page(connection, [_SELECT + _FROM], values, events)
            newest = max(_newest(connection), rows[-1][0] if rows else 0)
            stand = [_checkpoint(connection, name) for name in names]
            return Look([LogRow(*row) for row in rows], newest, touched, stand)

        return await self._run(work)

    def _touched(self, connection: sqlite3.Connection) -> bool:
        (now,) = connection.execute("PRAGMA data_version").fetchone()
        before, self._data_version = self._data_version, now
        return bool(before != now)

    async def checkpoint(self, projection: Projection) -> Checkpoint:
        found = await self._run(lambda connection: _checkpoint(connection, projection.name))
        return found or await self.prepare(projection)

    async def prepare(self, projection: Projection) -> Checkpoint:
        if await self._run(partial(self._preparation, projection=projection)):

            def work(connection: sqlite3.Connection) -> None:
                with writing(connection), concerning(projection.name, self._path):
                    for statement, values in self._preparation(connection, projection):
                        connection.execute(statement, values)

            await self._write(work)
            self._present.clear()
        return await self.checkpoint(projection)

    async def report(self, name: str, state: State | None) -> None:
        standing = "SELECT 1 FROM projection_state WHERE projection = ?"
        if state is None and not await self._fetch(standing, (name,)):
            return

        def work(connection: sqlite3.Connection) -> None:
            with writing(connection):
                connection.execute(FORGET_STATE, (name,))
                if state:
                    connection.execute(
                        "INSERT INTO projection_state (projection, state, version, why, events,"
                        " total, since, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (name, *msgspec.structs.astuple(state)),
                    )

        await self._write(work)

    async def read_events(self, *, start: int, until: int | None = None) -> list[LogRow]:
        return await self._read_page([_FROM], position=start, until=until)

    async def read_by_key(self, *, after: LogRow | None, until: int) -> list[LogRow]:
        key = None if after is None else after.key
        rest = f"key IS {bound(':key', key)} AND seq > :position"
        above = "key IS NOT NULL" if key is None else f"key > {bound(':key', key)}"
        return await self._read_page(
            [
                f"{rest} AND seq <= :until ORDER BY seq",
                f"{above} AND seq <= :until ORDER BY key, seq",
            ],
            position=0 if after is None else after.seq,
            until=until,
            key=raw(key),
        )

    async def reach(self, *, start: int, events: int) -> Reach | None:
        values = {"position": start, "until": _none_is_any(None), "max": MAX_EVENT_BYTES}

        def work(connection: sqlite3.Connection) -> Reach | None:
            rows = [LogRow(*row) for row in _page(connection, [_SELECT + _FROM], values, events)]
            sizes: defaultdict[Any, list[int]] = defaultdict(list)
            for row in rows:
                sizes[row.key].append(size_of((row.data,)))
            views: set[Any] = {None}
            size = 0.0
            for number, row in enumerate(rows):
                if row.key in views:
                    continue
                views.add(row.key)
                of = sizes[row.key]
                count = f"SELECT count(*) FROM event_log WHERE key IS {bound('?', row.key)}"
                (all_,) = connection.execute(count, (raw(row.key),)).fetchone()
                size += KEY_BYTES + all_ * sum(of) / len(of)
                if size > VIEW_BYTES:
                    (pages,) = connection.execute("PRAGMA page_count").fetchone()
                    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
                    return Reach(max(number, 1), pages * page_bytes)
            return None

        return await self._run(work)

    async def read_history(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        named = {f"key{index}": key for index, key in enumerate(keys)}
        asked = ", ".join(bound(f":{name}", key) for name, key in named.items())
        condition = f"key IN ({asked}) AND seq > :position AND seq <= :until ORDER BY seq"
        values = {name: raw(key) for name, key in named.items()}
        return await self._read_page([condition], position=after, until=until, **values)

    async def load_views(self, projection: Projection, keys: Sequence[str]) -> Loaded:
        table, name = projection.table, projection.name
        if name not in self._present:
            self._present[name] = frozenset(await self._run(partial(_columns, table=table)))
        # Those that a newer version adds are not there yet in a dry run.
        columns = ", ".join(c if c in self._present[name] else "NULL" for c in table.columns)
        select = f"SELECT {columns} FROM {table.name} WHERE {owned(table)} AND {table.key} = ?"

        def work(connection: sqlite3.Connection) -> Loaded:
            with reading(connection):  # the rows are of the same moment as the checkpoint
                checkpoint = _checkpoint(connection, name)
                if checkpoint is None:
                    raise LostRace
                rows: dict[str, tuple[Any, ...]] = {}
                covered = size = 0
                for key in keys:
                    row = connection.execute(select, (key,)).fetchone()
                    if row is not None:
                        rows[key] = row
                        size += size_of(row)
                    size += KEY_BYTES
                    covered += 1
                    if size > VIEW_BYTES:
                        break
            return Loaded(rows, covered, checkpoint)

        return await self._run(work, of=name)

    async def with_history(self, checkpoint: Checkpoint, keys: Sequence[str]) -> set[str]:
        unless = "NOT EXISTS (SELECT 1 FROM quarantine WHERE projection = :name AND seq = e.seq)"
        return await self._with_event(
            keys, f"e.seq <= :until AND {unless}", until=checkpoint.position, name=checkpoint.name
        )

    async def with_events(self, keys: Sequence[str], *, until: int) -> set[str]:
        return await self._with_event(keys, "e.seq <= :until", until=until)

    async def _with_event(self, keys: Sequence[str], such: str, **values: Any) -> set[str]:
        if not keys:
            return set()
        named = {f"key{number}": key for number, key in enumerate(keys)}
        asked = ", ".join(f"(:{name})" for name in named)
        rows = await self._fetch(
            f"WITH asked (key) AS (VALUES {asked}) SELECT key FROM asked WHERE EXISTS"
            f" (SELECT 1 FROM event_log AS e WHERE e.key = asked.key AND {such})",
            {**values, **named},
        )
        return {key for (key,) in rows}

    async def quarantined(self, name: str, seqs: Sequence[int]) -> dict[int, str | None]:
        def work(connection: sqlite3.Connection) -> dict[int, str | None]:
            # A seq may be text, which is above all numbers.
            bounds = "SELECT min(seq), max(seq) FROM quarantine WHERE projection = ? AND seq < ''"
            low, high = connection.execute(bounds, (name,)).fetchone()
            asked = [] if low is None else [seq for seq in seqs if low <= seq <= high]
            if not asked:
                return {}
            rows = connection.execute(
                "SELECT q.seq, iif(q.id IS e.id AND q.key IS e.key, q.reason, NULL)"
                " FROM json_each(?) AS asked CROSS JOIN quarantine AS q"
                " ON q.projection = ? AND q.seq = asked.value JOIN event_log AS e ON e.seq = q.seq",
                (str(asked), name),
            )
            return dict(rows.fetchall())

        return await self._run(work)

    async def stray_quarantine(self, name: str, *, ahead: int | None) -> list[int]:
        rows = await self._fetch(
            "SELECT seq FROM quarantine AS q WHERE projection = ? AND (NOT EXISTS ("
            "SELECT 1 FROM event_log AS e WHERE e.seq = q.seq) OR seq > coalesce(?, ("
            "SELECT position FROM checkpoint WHERE name = q.projection))) ORDER BY seq LIMIT ?",
            (name, ahead, PAGE_KEYS),
        )
        return [seq for (seq,) in rows]

    async def clear_gathered(self, name: str) -> None:
        # A file of SQLite's own that has no name: nothing is left of it, even after SIGKILL.
        await self._fetch(
            "CREATE TEMP TABLE IF NOT EXISTS gathered (projection TEXT, view_key TEXT, seq INTEGER,"
            " PRIMARY KEY (projection, view_key, seq)) WITHOUT ROWID"
        )
        await self._fetch("DELETE FROM temp.gathered WHERE projection = ?", (name,))

    async def gather(self, name: str, events: Sequence[tuple[str, int]]) -> None:
        insert = "INSERT OR IGNORE INTO temp.gathered VALUES (?, ?, ?)"

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN")
            try:
                connection.executemany(insert, [(name, key, seq) for key, seq in events])
            finally:
                connection.execute("COMMIT")

        await self._write(work)

    async def read_gathered(self, name: str, *, after: tuple[str, int]) -> list[tuple[str, LogRow]]:
        select = (
            f"SELECT view_key, {EVENT_COLUMNS} FROM"
            " (SELECT view_key, seq AS at FROM temp.gathered WHERE projection = :name"
            " AND (view_key, seq) > (:key, :position))"
            " CROSS JOIN event_log ON seq = at ORDER BY view_key, at"
        )
        values = {"name": name, "key": after[0], "position": after[1], "max": MAX_EVENT_BYTES}
        most = PAGE_EVENTS
        rows = await self._run(lambda connection: _page(connection, [select], values, most))
        return [(row[0], LogRow(*row[1:])) for row in rows]

    async def gathered(self, name: str, keys: Sequence[str]) -> set[str]:
        rows = await self._fetch(
            "SELECT DISTINCT view_key FROM temp.gathered"
            f" WHERE projection = ? AND view_key IN ({placeholders(keys)})",
            (name, *keys),
        )
        return {key for (key,) in rows}

    async def view_keys(self, projection: Projection, *, after: str | None) -> list[str]:
        table = projection.table
        above = "" if after is None else f" AND {table.key} > {bound(':after', after)}"
        rows = await self._fetch(
            f"SELECT {table.key} FROM {table.name} WHERE {owned(table)}{above}"
            f" ORDER BY {table.key} LIMIT :page",
            {"after": raw(after), "page": PAGE_KEYS},
            of=projection.name,
        )
        return [key for (key,) in rows]

    async def commit(self, changes: Sequence[Change], *, much: bool = False) -> Committed:
        def work(connection: sqlite3.Connection) -> Committed:
            self._backfill.before_commit(connection, beside=much)
            asked, others = time.perf_counter(), self._others
            with writing(connection):
                began = time.perf_counter()
                (self._others,) = connection.execute("PRAGMA data_version").fetchone()
                for change in changes:
                    apply(connection, self._path, change)
            self._backfill.after_commit()
            held_s = time.perf_counter() - began
            return Committed(began - asked, held_s, others not in (None, self._others))

        return await self._write(work)

    async def give_memory_back(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            import ctypes  # once, and not at every start

            connection.execute("PRAGMA shrink_memory")
            with suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc would keep it

        await self._run(work)

    def _preparation(
        self, connection: sqlite3.Connection, projection: Projection
    ) -> list[tuple[str, Sequence[Any]]]:
        """The statements that a projection's table and checkpoint lack."""
        table, name = projection.table, projection.name
        kept = (table.name, table.key, table.prefix)
        rows = connection.execute(
            "SELECT version, position, kept_in, key_column, prefix FROM checkpoint WHERE name = ?",
            (name,),
        ).fetchall()
        if rows and abs(rows[0][0]) > projection.version:
            return []
        standing = _columns(connection, table)
        indexes = connection.execute(
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
        if standing and not projection.built_in:
            self._require_own(connection, projection, known=bool(rows))
        todo: list[tuple[str, Sequence[Any]]] = [(statement, ()) for statement in lacking]
        if not rows:
            todo.append((_NEW_CHECKPOINT, (name, projection.version, *kept)))
        elif not standing or rows[0][2:] != kept:
            # Views that are gone are made anew, and a view in another table is one that is gone.
            todo += [(statement, (name,)) for statement in (FORGET_STATE, _FORGET_QUARANTINE)]
            todo.append((_RESET_CHECKPOINT, (projection.version, *kept, name)))
        return todo

    def _require_own(
        self, connection: sqlite3.Connection, projection: Projection, *, known: bool
    ) -> None:
        """Raises `ProjectionFailed` for a table that is another's: its rows would be deleted."""
        table, name = projection.table, projection.name
        others = connection.execute(
            "SELECT name FROM checkpoint WHERE kept_in = ? COLLATE NOCASE AND name <> ?",
            (table.name, name),
        ).fetchall()
        whose = f"of the projection {others[0][0]}" if others else ""
        with concerning(name, self._path):
            filled = connection.execute(f"SELECT 1 FROM {table.name} LIMIT 1").fetchone()
        if not known and filled:
            whose = whose or "there with rows that no checkpoint explains"
        if whose:
            raise ProjectionFailed(
                name,
                f"the table {table.name} is {whose}",
                f"if it is of no use: sqlite3 {quoted(self._path)} 'DROP TABLE {table.name}'; else"
                " give the projection's table another name",
            )

    async def _read_page(
        self, conditions: Sequence[str], *, position: int, until: int | None, **values: Any
    ) -> list[LogRow]:
        """Rows that meet the first condition, and then those that meet the next."""
        values |= {"position": position, "until": _none_is_any(until), "max": MAX_EVENT_BYTES}
        selects = [_SELECT + condition for condition in conditions]
        most = PAGE_EVENTS + 1
        rows = await self._run(lambda connection: _page(connection, selects, values, most))
        return [*starmap(LogRow, rows)]

    async def _fetch(self, sql: str, parameters: Any = (), *, of: str | None = None) -> list[Any]:
        return await self._run(lambda c: c.execute(sql, parameters).fetchall(), of=of)

    async def _run(self, work: Callable[[sqlite3.Connection], _T], *, of: str | None = None) -> _T:
        with translated(self._path), concerning(of, self._path):
            return await self._connection.run(work)

    async def _write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """The same, to its end: a cancelled task does not take back what the thread has begun."""
        with anyio.CancelScope(shield=True):
            done = await self._run(work)
        return done  # noqa: RET504


_SELECT: Final = f"SELECT {EVENT_COLUMNS} FROM event_log WHERE "
_FROM: Final = "seq >= :position AND seq <= :until ORDER BY seq"


def _page(
    connection: sqlite3.Connection, selects: Sequence[str], values: dict[str, Any], most: int
) -> list[tuple[Any, ...]]:
    """So many rows at most, and about `PAGE_BYTES` of them without the event at `position`; each
    ends with the columns of an event."""
    # Only SQLite's own way to text is quick, and only ours can read what is not UTF-8.
    connection.text_factory = str
    try:
        return _rows(connection, selects, values, most)
    except sqlite3.OperationalError:
        connection.text_factory = lossless_text
        return _rows(connection, selects, values, most)
    finally:
        connection.text_factory = lossless_text


def _rows(
    connection: sqlite3.Connection, selects: Sequence[str], values: dict[str, Any], most: int
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    left = PAGE_BYTES
    for select in selects:
        with closing(connection.execute(f"{select} LIMIT {most - len(rows)}", values)) as cursor:
            for row in cursor:
                rows.append(row)
                if type(data := row[-2]) is bytes or type(data) is str:
                    left -= len(data) if row[-5] != values["position"] else 0
                    if left < 0:
                        return rows
        if len(rows) == most:
            break
    return rows


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM event_log").fetchone()[0])


def _checkpoint(connection: sqlite3.Connection, name: str) -> Checkpoint | None:
    select = f"SELECT {_CHECKPOINT_COLUMNS} FROM checkpoint WHERE name = ?"
    row = connection.execute(select, (name,)).fetchone()
    return Checkpoint(*row) if row else None


def _columns(connection: sqlite3.Connection, table: Table) -> dict[str, tuple[str, bool]]:
    """The type of each column that stands, and whether it is the key."""
    # Through sqlite_master, because pragma_table_info alone goes on answering from the schema
    # that was read before another process changed it.
    rows = connection.execute(
        "SELECT c.name, c.type, c.pk > 0 FROM sqlite_master AS t,"
        " pragma_table_info(t.name) AS c WHERE t.type = 'table' AND t.name = ? COLLATE NOCASE",
        (table.name,),
    )
    return {name: (kind.upper(), bool(is_key)) for name, kind, is_key in rows}


def _none_is_any(until: int | None) -> int:
    return 2**63 - 1 if until is None else until


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A store for as long as the block lasts."""
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()
