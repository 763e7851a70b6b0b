"""Copying the write-ahead log back into the database beside the commits that fill it."""

import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import structlog

from session_projector.worker.errors import ProjectorError
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.identity import FileIdentity, abandon

WARNING_BYTES: Final = 64 * 1024 * 1024
"""A write-ahead log is used again from its start at about 4 MiB, unless a reader pins it or writers
commit so often that no copy of it is ever complete: then it is emptied at this size."""
QUIET_S: Final = 0.5
"""Time between a commit and the copy of the WAL. What is older is in the database file, whatever
happens to the files beside it."""
_EMPTY_WITHIN_S: Final = 0.1
"""How long emptying it may wait for readers while it holds the writers' lock."""
_RETRY_S: Final = (1.0, 60.0)
"""Between two attempts to empty it: the first, and at most."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Backfill:
    """SQLite does this within every commit that finds 1,000 pages to copy, and waits for the disk.

    After a large batch it is done by a thread, while the next one is folded. The commit of another
    large one waits for it, so that the write-ahead log is empty again by then and stays as small as
    one batch. After others a thread does it a moment later, and nobody waits.
    """

    def __init__(self, path: Path, identity: FileIdentity) -> None:
        self._path = path
        self._identity = identity
        self._thread: threading.Thread | None = None
        self._within = True
        self._quiet: threading.Thread | None = None
        self._lock = threading.Lock()
        self._committed = False
        """Since the quiet copy that is under way, or will be, began."""
        self._ends = threading.Event()
        self._empty_at = 0.0
        self._retry_s = _RETRY_S[0]

    def before_commit(self, connection: sqlite3.Connection, *, beside: bool) -> None:
        """`beside`: `after_commit` copies what this commit writes."""
        if beside:
            self._join()
        if self._within == beside:
            connection.execute(f"PRAGMA wal_autocheckpoint = {0 if beside else 1000}").close()
            self._within = not beside

    def after_commit(self) -> None:
        if not self._within:
            try:
                self._thread = threading.Thread(target=self._copy, name="backfill")
                self._thread.start()
            except RuntimeError:  # the process may have no more threads
                self._thread = None
                self._copy()
            return
        with self._lock:
            self._committed = True
            if self._quiet is None:
                self._quiet = threading.Thread(target=self._copy_later, name="backfill")
                try:
                    self._quiet.start()
                except RuntimeError:
                    self._quiet = None  # a later commit does it

    def end(self) -> None:
        """Wait until nothing is under way."""
        self._ends.set()
        self._join()
        with self._lock:
            quiet = self._quiet
        if quiet:
            quiet.join()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def _copy_later(self) -> None:
        while not self._ends.wait(QUIET_S):
            with self._lock:
                if not self._committed:
                    self._quiet = None
                    return
                self._committed = False
            self._copy()

    def _copy(self) -> None:
        # As within a commit, an error is nobody's concern: a later commit copies the same pages.
        with (
            suppress(sqlite3.Error, OSError, ProjectorError),
            closing(self._connect()) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()
            size = self._path.with_name(f"{self._path.name}-wal").stat().st_size
            if size > WARNING_BYTES and time.monotonic() >= self._empty_at:
                self._empty(connection, size)

    def _connect(self) -> sqlite3.Connection:
        """A connection to the same files; one to others is never closed, which would copy."""
        self._identity.check()
        connection = connect(self._path, mode="rw", busy_timeout_s=0)
        try:
            with suppress(sqlite3.Error):  # which the checkpoint meets again
                connection.execute("SELECT count(*) FROM sqlite_master").close()
            self._identity.check()  # now that it has them open
        except ProjectorError:
            abandon(connection)
            raise
        return connection

    def _empty(self, connection: sqlite3.Connection, size: int) -> None:
        """Few pages are left to copy by now, under the writers' lock."""
        connection.execute(f"PRAGMA busy_timeout = {_EMPTY_WITHIN_S * 1000:.0f}").close()
        began = time.monotonic()
        ((busy, *_),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        now = time.monotonic()
        if busy:  # a reader, and `projector doctor` says which
            self._empty_at = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, _RETRY_S[1])
        else:
            self._retry_s = _RETRY_S[0]
            log.info("wal_emptied", bytes=size, held_ms=round((now - began) * 1000, 1))
