"""Plain connections to the database file."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from session_projector.projections.event import MAX_EVENT_BYTES
from session_projector.worker.errors import NeedsPerson, RetryLater
from session_projector.worker.storage.port import BUSY_TIMEOUT_S
from session_projector.worker.storage.sqlite import sidecars
from session_projector.worker.storage.sqlite.errors import translated

# An oversized event is quarantined by its size alone, so no more of it is read.
EVENT_COLUMNS: Final = (
    f"seq, id, key, CASE WHEN length(data) > {MAX_EVENT_BYTES}"
    f" THEN substr(data, 1, {MAX_EVENT_BYTES + 1}) ELSE data END, created_at"
)
Values = Sequence[Any] | Mapping[str, Any]


def require(path: Path) -> None:
    """Refuse a database that does not exist: a mistyped path must not start an empty log."""
    require_file_or_nothing(path)
    if not path.exists():
        raise NeedsPerson(
            f"there is no database at {path}",
            "create it with `projector db setup`, or correct the path",
        )


def require_file_or_nothing(path: Path) -> None:
    """Refuse what no database can be, a path that may not be looked at, and root among others."""
    try:
        wrong = path.exists() and not path.is_file()
    except OSError as error:
        raise NeedsPerson(
            f"{path}: {error.strerror}", "correct the path, or see who you are (`id`)"
        ) from None
    if wrong:
        raise NeedsPerson(f"{path} is not a file", "give the path of a SQLite file")
    sidecars.refuse_root(path)


def uri(path: Path, *, mode: str) -> str:
    """A SQLite URI; mode `ro`, `rw` or `rwc`."""
    return f"file:{quote(os.fsencode(path))}?mode={mode}"


def connect(path: Path, *, mode: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection outside any transaction unless it begins one."""
    if mode == "rwc":
        require_file_or_nothing(path)
    else:
        require(path)
    sidecars.check(path)
    with translated(path):
        connection = sqlite3.connect(
            uri(path, mode=mode),
            uri=True,
            isolation_level=None,
            timeout=busy_timeout_s,
        )
        connection.text_factory = lossless_text
        return connection


def lossless_text(data: bytes) -> str:
    """Text from a column; bytes that are not UTF-8 become lone surrogates instead of an error."""
    return data.decode("utf-8", "surrogateescape")


class FileIdentity:
    """Notices that the file at a path is no longer the one that was opened.

    By `stat` alone: opening and closing the file would drop SQLite's POSIX locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._identity = self._read()

    def check(self) -> None:
        """Raises `RetryLater` where the file was replaced or deleted."""
        if self._read() != self._identity:
            raise RetryLater(
                f"{self._path} was replaced or deleted while it was open",
                "start again, and the new file is read",
            )

    def _read(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


class Connection:
    """A connection whose statements raise errors of this program."""

    def __init__(self, raw: sqlite3.Connection, path: Path) -> None:
        self.raw = raw
        self.path = path

    def rows(
        self, sql: str, values: Values = (), *, projection: str | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a statement; `projection`: the one whose own rows they are."""
        with translated(self.path, projection):
            return self.raw.execute(sql, values).fetchall()

    def row(
        self, sql: str, values: Values = (), *, projection: str | None = None
    ) -> tuple[Any, ...] | None:
        """The first row, None where there is none."""
        with translated(self.path, projection):
            found: tuple[Any, ...] | None = self.raw.execute(sql, values).fetchone()
            return found

    def value(self, sql: str, values: Values = ()) -> Any:
        """The one column of the one row."""
        return (self.row(sql, values) or (None,))[0]

    def errors(self, projection: str | None = None) -> AbstractContextManager[None]:
        """The same errors for a block that uses `raw`, many statements at once."""
        return translated(self.path, projection)

    @contextmanager
    def writing(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """One transaction, its lock taken at once; nothing of it stays where the block fails."""
        with translated(self.path):
            self.raw.execute(begin)
            try:
                yield
                self.raw.execute("COMMIT")
            except BaseException:
                self.raw.rollback()
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One moment for all that is read, and the file's locks taken once."""
        with translated(self.path):
            self.raw.execute("BEGIN")
            try:
                yield
            finally:
                self.raw.rollback()  # it only read; SQLite may have ended it by itself
