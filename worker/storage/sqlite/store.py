"""One connection to a SQLite database: implements `worker.storage.port.Store`."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, Self

from session_projector.projections.projection import Table
from session_projector.worker.errors import (
    DatabaseUnavailable,
    InterventionRequired,
    ProjectorError,
)
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import ANY_POSITION, Change, CommitStats, Read
from session_projector.worker.storage.sqlite import sidecars, tables
from session_projector.worker.storage.sqlite.checkpoints import SqliteCheckpoints, SqliteQuarantine
from session_projector.worker.storage.sqlite.commit import apply
from session_projector.worker.storage.sqlite.connection import Connection, connect
from session_projector.worker.storage.sqlite.errors import OF_AN_INDEX, wrong_index
from session_projector.worker.storage.sqlite.identity import FileIdentity, abandon
from session_projector.worker.storage.sqlite.log import SqliteLog
from session_projector.worker.storage.sqlite.schema import migrate
from session_projector.worker.storage.sqlite.schema.integrity import put_aside
from session_projector.worker.storage.sqlite.sql import identifier
from session_projector.worker.storage.sqlite.views import SqliteScratch, SqliteViews
from session_projector.worker.storage.sqlite.wal import Backfill
from session_projector.worker.storage.sqlite.words import SqliteWords

# secure_delete, on in many distributions' builds, logs the rewriting of a large row twice.
# synchronous NORMAL may lose the last commits to a power cut, views and checkpoint alike: they
# are folded again.
_DAEMON_PRAGMAS: Final = (
    "PRAGMA synchronous = NORMAL",
    "PRAGMA secure_delete = OFF",
    "PRAGMA cache_size = -16384",
)


_MOST_FOUND: Final = 100
"""What SQLite finds wrong with a table before it looks no further."""

PATIENCE_S: Final = 10.0
"""How long a statement may take: none of a batch takes more than a moment."""
_STEPS: Final = 1_000_000
"""Of SQLite's virtual machine, some tens of milliseconds, between two questions whether to go on.
Each asks for Python's lock, so that a daemon's statements are watched from outside instead."""


class SqliteStore:
    """Open it with `open`; all of it is used by one thread at a time."""

    exclusive = True

    def __init__(
        self, connection: Connection, limits: Limits, *, writable: bool, is_wal: bool
    ) -> None:
        self.connection = connection
        self.name = str(connection.path)
        self.answers_at_once = is_wal  # otherwise it waits for who writes
        self._writable = writable
        self.log = SqliteLog(connection, limits)
        self.checkpoints = SqliteCheckpoints(connection)
        self.views = SqliteViews(connection, limits, self.checkpoints)
        self.quarantine = SqliteQuarantine(connection, limits)
        self.scratch = SqliteScratch(connection, limits, self.log)
        self.words = SqliteWords(connection, limits)
        self._backfill = Backfill(connection.path, connection.identity)
        self._data_version = self._read_data_version()
        """As of the last question, and as of the last commit."""
        self._committed_version: int | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        limits: Limits,
        *,
        writable: bool = False,
        for_daemon: bool = False,
        given: Path | None = None,
    ) -> Self:
        """A store on a database whose schema is this program's; raises `ProjectorError`.

        `for_daemon`: in WAL mode, and with settings that suit what can be folded again. `given`:
        the name that the path was resolved from.
        """
        mode = "rw" if writable or for_daemon else "ro"
        if for_daemon:  # which goes on when it is gone; others need somebody who removes it
            sidecars.check(path, DatabaseUnavailable)
        identity = FileIdentity(path, given)  # before: a file put there meanwhile is another
        opened = connect(path, mode=mode, busy_timeout_s=limits.busy_timeout_s)
        try:
            connection = Connection(opened, path, identity)
            with connection.errors():
                migrate.check(opened, path)
                if for_daemon:
                    migrate.use_wal(opened, path)
            for pragma in _DAEMON_PRAGMAS if for_daemon else ():
                connection.rows(pragma)
            if not for_daemon:
                # In a command's only thread; this also lets it be interrupted.
                limit_s = PATIENCE_S if writable else math.inf
                opened.set_progress_handler(lambda: opened.is_overdue(limit_s), _STEPS)
            is_wal = connection.value("PRAGMA journal_mode") == "wal"
            if is_wal:
                connection.rows("SELECT 1 FROM sqlite_master LIMIT 1")  # now it has them open
                identity.opened()
            return cls(connection, limits, writable=mode == "rw", is_wal=is_wal)
        except BaseException:
            opened.close()
            raise

    def commit(self, changes: Sequence[Change], *, bulk: bool = False) -> CommitStats:
        with self.connection.errors():
            self._backfill.before_commit(self.connection.raw, beside=bulk)
        asked, before = time.perf_counter(), self._committed_version
        with self.connection.writing():
            began = time.perf_counter()
            self._committed_version = self._read_data_version()
            for change in changes:
                apply(self.connection, change)
        self._backfill.after_commit()
        held_s = time.perf_counter() - began
        return CommitStats(began - asked, held_s, before not in (None, self._committed_version))

    def transaction(self) -> AbstractContextManager[None]:
        return self.connection.writing()

    def snapshot(self) -> AbstractContextManager[None]:
        return self.connection.reading()

    def changed(self) -> bool:
        self.check_identity()
        before, self._data_version = self._data_version, self._read_data_version()
        return before != self._data_version

    def read(self, *, start: int, until: int = ANY_POSITION, events: int = 0) -> Read:
        touched = self.changed()  # before the rows: it misses nothing
        rows = self.log.page(start=start, until=until, events=events)
        return Read(touched, rows, self.log.newest())

    def check_identity(self) -> None:
        self.connection.identity.check()

    def _read_data_version(self) -> int:
        return int(self.connection.value("PRAGMA data_version"))

    def check_schema(self) -> None:
        with self.connection.errors():
            migrate.check(self.connection.raw, self.connection.path)

    def check_indexes(self, of: Sequence[Table]) -> None:
        for name in dict.fromkeys(("event_log", *(table.name for table in of))):
            with self.connection.errors():
                there = tables.columns_of(self.connection.raw, name)
            check = f"PRAGMA integrity_check({identifier(name)})"  # of all before SQLite 3.33
            found = [said for (said,) in self.connection.rows(check)] if there else []
            for said in found:
                if said.startswith("row not in PRIMARY KEY order "):  # which no REINDEX sorts
                    aside = put_aside(self.connection.raw, self.connection.path, [name])
                    raise wrong_index(self.connection.path, said, fix=f"make it again: {aside}")
            for said in filter(OF_AN_INDEX.match, found):
                raise wrong_index(self.connection.path, said)
            if len(found) >= _MOST_FOUND:
                raise InterventionRequired(
                    f"{self.connection.path}: so much is wrong with {name} that its indexes cannot"
                    f" be compared with it ({found[0]})",
                    "see what, as when somebody gave it a constraint: `projector doctor`",
                )
        for table in of:
            if table.words and tables.columns_of(self.connection.raw, table.name):
                self.words.check()

    def release_memory(self) -> None:
        import ctypes  # once, and not at every start

        self.connection.rows("PRAGMA shrink_memory")
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc would keep it

    def interrupt(self, after_s: float) -> None:
        if self.connection.raw.is_overdue(after_s):
            self.connection.raw.interrupt()

    def close(self) -> None:
        self._backfill.end()
        is_said = self.connection.identity.is_said
        try:
            self.check_identity()
        except ProjectorError:
            abandon(self.connection.raw)
            if self._writable and not is_said:
                raise
        else:
            self.connection.raw.close()
