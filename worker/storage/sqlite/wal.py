"""Copying the write-ahead log back into the database beside the commits that fill it."""

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from session_projector.worker.errors import ProjectorError
from session_projector.worker.storage.sqlite.connection import connect

WARNING_BYTES: Final = 64 * 1024 * 1024
"""A write-ahead log is used again from its start at about 4 MiB, unless a reader pins it."""


class Backfill:
    """SQLite does this within every commit that finds 1,000 pages to copy, and waits for the disk.

    After a large batch it is done by a thread, while the next one is folded. That one's commit
    waits for it, so that the write-ahead log is empty again by then and stays as small as one
    batch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: threading.Thread | None = None
        self._within = True

    def before_commit(self, connection: sqlite3.Connection, *, beside: bool) -> None:
        """`beside`: `after_commit` copies what this commit writes."""
        self.end()
        if self._within == beside:
            connection.execute(f"PRAGMA wal_autocheckpoint = {0 if beside else 1000}").close()
            self._within = not beside

    def after_commit(self) -> None:
        if not self._within:
            self._thread = threading.Thread(target=self._copy, name="backfill")
            self._thread.start()

    def end(self) -> None:
        """Wait until nothing is under way."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def _copy(self) -> None:
        # As within a commit, an error is nobody's concern: a later commit copies the same pages.
        with (
            suppress(sqlite3.Error, ProjectorError),
            closing(connect(self._path, mode="rw", busy_timeout_s=0)) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
