"""One connection to a PostgreSQL database: implements `worker.storage.port.Store`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, NamedTuple, Self

import psycopg

from session_projector.projections.projection import Table
from session_projector.worker.errors import LostRace, ProjectionFailed
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import ANY_POSITION, Change, CommitStats, Read
from session_projector.worker.storage.postgres import migrate
from session_projector.worker.storage.postgres.checkpoints import (
    PostgresCheckpoints,
    PostgresQuarantine,
)
from session_projector.worker.storage.postgres.commit import all_at_once, move, rest
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.errors import is_lost, psql
from session_projector.worker.storage.postgres.locks import TRANSACTION_CLASS
from session_projector.worker.storage.postgres.log import PostgresLog
from session_projector.worker.storage.postgres.sql import column, owned
from session_projector.worker.storage.postgres.tables import columns_of, named
from session_projector.worker.storage.postgres.target import Target
from session_projector.worker.storage.postgres.views import PostgresScratch, PostgresViews
from session_projector.worker.storage.postgres.words import PostgresWords

PATIENCE_S: Final = 60.0
"""How long a statement may take."""


class _News(NamedTuple):
    """What shows that somebody committed: the newest position, and where each checkpoint is."""

    newest: int
    moved: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Self:
        moved = {name: tuple(at) for _, name, *at in rows if name is not None}
        return cls(rows[0][0], moved)


class PostgresStore:
    """Open it with `open`; all of it is used by one thread at a time."""

    exclusive = False
    answers_at_once = False  # the server does

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self.connection = connection
        self.name = connection.name
        self.log = PostgresLog(connection, limits)
        self.checkpoints = PostgresCheckpoints(connection)
        self.views = PostgresViews(connection, limits, self.checkpoints)
        self.quarantine = PostgresQuarantine(connection, limits)
        self.scratch = PostgresScratch(connection, limits, self.log)
        self.words = PostgresWords(connection, limits)
        p = connection.prefix
        self._news = (
            "SELECT newest, name, version, position, generation"
            f" FROM (SELECT coalesce(max(seq), 0) AS newest FROM {p}event_log) AS log"
            f" LEFT JOIN {p}checkpoint ON true"
        )
        self._known = _News.of(self.connection.rows(self._news))
        """As of the last question, or of the last commit."""

    @classmethod
    def open(cls, target: Target, limits: Limits, *, writable: bool = False) -> Self:
        """A store on a database whose schema is this program's; raises `ProjectorError`."""
        connection = Connection(
            target,
            busy_timeout_s=limits.busy_timeout_s,
            writable=writable,
        )
        try:
            migrate.check(connection)
            return cls(connection, limits)
        except BaseException:
            connection.close()
            raise

    def commit(self, changes: Sequence[Change], *, bulk: bool = False) -> CommitStats:
        del bulk
        asked = time.perf_counter()
        try:
            self._commit_together(changes)
        except (psycopg.Error, OverflowError, ValueError) as error:
            if isinstance(error, psycopg.Error) and is_lost(error):
                with self.connection.errors():
                    raise
            self._commit_one_by_one(changes)  # which tells what is wrong
        for change in changes:
            after = change.after
            self._known.moved[after.name] = (after.version, after.complete, after.generation)
        return CommitStats(0.0, time.perf_counter() - asked, False)

    def _commit_together(self, changes: Sequence[Change]) -> None:
        """All of it in one round trip."""
        statements = all_at_once(self.connection, changes)
        begin = "BEGIN" if len(statements) > 1 else ""
        self.connection.together(statements, begin, plain=True)

    def _commit_one_by_one(self, changes: Sequence[Change]) -> None:
        with self.connection.writing():
            for change in changes:
                if not self.connection.rows(*move(self.connection, change)):
                    raise LostRace
                self._apply(change)

    def _apply(self, change: Change) -> None:
        """All but the checkpoint of a change."""
        raw, name = self.connection.raw, change.before.name
        with self.connection.errors(name):
            try:
                with raw.transaction():
                    for sql, values in rest(self.connection, change):
                        raw.execute(sql.encode(), values)
                return
            except psycopg.errors.UniqueViolation:
                if not change.table.prefix:
                    raise
            # A corrupt row of ours has the id of another one, and is met when that is written.
            try:
                with raw.transaction():
                    self._free_ids(change)
                    for sql, values in rest(self.connection, change):
                        raw.execute(sql.encode(), values)
            except psycopg.errors.UniqueViolation as error:
                look = f"SELECT id, {change.table.key} FROM {change.table.name}"
                raise ProjectionFailed(
                    name,
                    f"a row of {change.table.name} cannot be written ({error.diag.message_detail}):"
                    " another program's row has the id that it must have",
                    "see which, and let who wrote it take another id (or `UPDATE` it in the same"
                    f" shell): `{psql(self.name, look)}`",
                ) from None

    def _free_ids(self, change: Change) -> None:
        table, names = change.table, [*change.table.columns]
        id_at, key_at = names.index("id"), names.index(table.key)
        key = f"v.{column(table.key)}"
        sql = (
            f"UPDATE {named(self.connection, table.name)} AS v SET id = {key}"
            " FROM unnest(%b::text[], %b::text[]) AS r (id, key)"
            f" WHERE {owned(table, 'v.')} AND v.id = r.id AND {key} <> r.key"
        )
        ids = ([row[id_at] for row in change.rows], [row[key_at] for row in change.rows])
        self.connection.raw.execute(sql.encode(), ids)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        lock = "SELECT pg_catalog.pg_advisory_xact_lock(%s::int4, %s::regclass::oid::int4)"
        with self.connection.writing():
            self.connection.rows(lock, (TRANSACTION_CLASS, self.connection.log_name))
            yield

    def snapshot(self) -> AbstractContextManager[None]:
        return self.connection.reading()

    def changed(self) -> bool:
        return self._learn(self.connection.rows(self._news)) or self.log.gap

    def read(self, *, start: int, until: int = ANY_POSITION, events: int = 0) -> Read:
        touched = False

        def rows(*page: Any) -> list[tuple[Any, ...]]:
            nonlocal touched
            news, found = self.connection.together([(self._news, ()), page])
            touched = self._learn(news) or touched
            return found

        found = self.log.page_with(rows, start=start, until=until, events=events)
        newest = max(self._known.newest, found[-1].seq if found else 0)
        return Read(touched or self.log.gap, found, newest)

    def _learn(self, rows: Sequence[tuple[Any, ...]]) -> bool:
        """Whether others committed since the last question."""
        before, self._known = self._known, _News.of(rows)
        if self._known.newest < before.newest:
            self.log.forget()  # restored in place: lower positions will be drawn again
        return before != self._known

    def check_identity(self) -> None:
        """The server keeps it: what follows a restart or a failover is checked by its rows."""

    def check_schema(self) -> None:
        migrate.check(self.connection)

    def check_indexes(self, of: Sequence[Table]) -> None:
        """The server keeps its indexes; amcheck, an extension, checks them."""
        for table in of:
            if table.words and columns_of(self.connection, table.name):
                self.words.check()

    def release_memory(self) -> None:
        import ctypes  # once, and not at every start

        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc would keep it

    def interrupt(self, after_s: float) -> None:
        if self.connection.is_overdue(after_s):
            self.connection.cancel()

    def close(self) -> None:
        self.connection.close()
