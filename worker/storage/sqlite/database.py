"""A SQLite file as a database: implements `worker.storage.port.Database`."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Final

from session_projector.worker.errors import TransientError, UsageError
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import (
    Check,
    Checks,
    Holder,
    Leadership,
    Setup,
    Sizes,
    Store,
    Thread,
    Wakeup,
)
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.errors import is_read_only, translated
from session_projector.worker.storage.sqlite.identity import FileIdentity
from session_projector.worker.storage.sqlite.lock import LOCK_SUFFIX, DaemonLock
from session_projector.worker.storage.sqlite.schema import migrate
from session_projector.worker.storage.sqlite.store import PATIENCE_S, SqliteStore
from session_projector.worker.storage.sqlite.wal import WARNING_BYTES

_HURRIED_S: Final = 2.0


class SqliteDatabase:
    """The database at a path, not opened yet."""

    engine = ("sqlite", sqlite3.sqlite_version)

    def __init__(self, path: Path, limits: Limits | None = None, given: Path | None = None) -> None:
        """`given`: the name that the path was resolved from, where that is another."""
        self._given = given
        self._patience_s = PATIENCE_S
        self.file = path
        self.name = str(path)
        self._path = path
        self._limits = limits or Limits()

    def owner_name(self) -> str:
        return self.name

    @property
    def is_served(self) -> bool:
        return False

    def exists(self) -> bool:
        return _bytes(self._path) > 0

    def setup(
        self, *, group: str | None = None, writer: str | None = None, reader: str | None = None
    ) -> Setup:
        if writer is not None or reader is not None:
            raise UsageError(
                f"{self.name} is a file, which has no roles",
                "share it with a group: `projector db setup --group NAME`",
            )
        return migrate.setup(self._path, group=group)

    def migrations(self) -> list[tuple[str, bool]]:
        return migrate.status(self._path)

    def open(self, *, writable: bool = False) -> AbstractContextManager[Store]:
        return closing(
            SqliteStore.open(self._path, self._limits, writable=writable, given=self._given)
        )

    def open_thread(self, *, writable: bool = True) -> AbstractAsyncContextManager[Thread]:
        from session_projector.worker.storage import thread  # commands need no aiosqlite

        def open_store() -> Store:
            # Where nothing can be written it can still be compared.
            can_write = writable and not is_read_only(self._path)
            return SqliteStore.open(
                self._path, self._limits, for_daemon=can_write, given=self._given
            )

        return thread.opened(open_store, lambda: self._patience_s)

    def hurry(self) -> None:
        self._patience_s = _HURRIED_S

    def newest(self, *, busy_timeout_s: float) -> int:
        connection = connect(self._path, mode="ro", busy_timeout_s=busy_timeout_s)
        with translated(self._path), closing(connection):
            try:
                return int(connection.execute("SELECT max(seq) FROM event_log").fetchone()[0] or 0)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_IOERR:
                    raise
                # A disk that fails is held by nobody.
                hint = "see why with `dmesg | tail`"
                raise TransientError(f"{self._path} cannot be read ({error})", hint) from error

    def leadership(self, running: Mapping[str, int] | None = None) -> Leadership:
        return DaemonLock(self._path, running)

    def wakeup(self) -> Wakeup:
        from session_projector.worker.storage.sqlite.wakeup import InotifyWakeup

        return InotifyWakeup(self._path)

    def view_wakeup(self) -> Wakeup:
        return self.wakeup()  # of the file, whatever is written to it

    def watch_identity(self) -> Callable[[], None]:
        return FileIdentity(self._path, self._given).check

    def sizes(self) -> Sizes:
        from session_projector.worker.storage.sqlite.doctor import beside

        wal_bytes = self.wal_bytes()
        pinning = beside.pinned_by(self._path) if wal_bytes > WARNING_BYTES else set()
        return Sizes(_bytes(self._path), wal_bytes, WARNING_BYTES, sorted(pinning))

    def wal_bytes(self) -> int:
        return _bytes(self._path.with_name(self._path.name + "-wal"))

    def checks(
        self, code_versions: Mapping[str, int]
    ) -> AbstractContextManager[tuple[Checks, Checks]]:
        from session_projector.worker.storage.sqlite.doctor import (
            beside,
            checks,
            old_writers,
            rights,
        )

        path = self._path
        found: list[Check] = []  # by the first check that asks, for all of them

        def allowed() -> Iterator[Check]:
            found.extend(() if found else rights.rights(path))
            return iter(found)

        inside: Checks = {
            "database": lambda: checks.opens(
                path, [one for one in allowed() if LOCK_SUFFIX not in one.found]
            ),
            "schema": lambda: checks.schema(path),
            "journal mode": lambda: checks.journal_mode(path),
            "files": lambda: beside.files(path),
            "seq": lambda: checks.autoincrement(path),
            "triggers": lambda: checks.triggers(path),
            "indexes": lambda: checks.indexes(path),
            "checkpoint": lambda: checks.checkpoint(path, code_versions),
            "old writers": lambda: old_writers.old_writers(path),
        }
        around: Checks = {
            "sqlite": checks.sqlite_version,
            "rights": allowed,
            "wal": lambda: beside.wal(path),
        }
        return nullcontext((inside, around))

    def locked_by(self, *, but: int = 0) -> list[Holder]:
        from session_projector.worker.storage.sqlite.doctor import beside

        return beside.locked_by(self._path, but=but)

    def who_locks_it(self, *, but: int = 0) -> str:
        from session_projector.worker.storage.sqlite.doctor import beside

        return beside.who_locks_it(self._path, but=but)


def _bytes(file: Path) -> int:
    """The size of a file, 0 where there is none to be seen."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
