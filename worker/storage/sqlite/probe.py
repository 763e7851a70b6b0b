"""What a daemon's health checks and metrics ask of the file, on connections of their own."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from session_projector.worker.errors import RetryLater, translated
from session_projector.worker.storage.sqlite.connection import connect

ENGINE: Final = {"sqlite": sqlite3.sqlite_version}


def newest(path: Path, busy_timeout_s: float) -> int:
    """The seq of the newest event, 0 where there is none.

    Raises `Unavailable` while another process holds the database, and any other `ProjectorError`
    where it cannot be read.
    """
    with (
        translated(path),
        closing(connect(path, mode="ro", busy_timeout_s=busy_timeout_s)) as connection,
    ):
        try:
            return int(connection.execute("SELECT max(seq) FROM event_log").fetchone()[0] or 0)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_IOERR:
                raise
            hint = "see why with `dmesg | tail`"  # a disk that fails is held by nobody
            raise RetryLater(f"{path} cannot be read ({error})", hint) from error


def wal_bytes(path: Path) -> int:
    """The size of the write-ahead log file, 0 where there is none."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except OSError:
        return 0
