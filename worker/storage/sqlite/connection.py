"""Plain connections to the database file."""

import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from session_projector.projections.event import MAX_EVENT_BYTES, MAX_NAME_BYTES, is_too_long
from session_projector.worker.errors import InterventionRequired, quoted
from session_projector.worker.storage.limits import BUSY_TIMEOUT_S
from session_projector.worker.storage.sqlite import sidecars
from session_projector.worker.storage.sqlite.errors import is_read_only, translated
from session_projector.worker.storage.sqlite.identity import FileIdentity

EVENT_COLUMNS: Final = "seq, id, key, data, created_at"
_READ_BYTES: Final = {"id": MAX_NAME_BYTES, "key": MAX_NAME_BYTES, "data": MAX_EVENT_BYTES}
"""How much is read of a value that is longer, and one byte more, which shows that it is."""
OLDEST: Final = (3, 32)
"""The first SQLite that has `iif`; the JSON functions, which a build may lack, are not used."""
_FIRST_POLL_S, _LAST_POLL_S = 0.0002, 0.005
"""Between two attempts to get the write lock, which take 10 µs each."""
_PATTERN_BYTES: Final = 1000
"""The longest pattern of LIKE and GLOB: a comparison is one step, which nothing can interrupt, and
that of another program's trigger could take hours. Our own patterns have a few characters."""
_ENDLESS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
Values = Sequence[Any] | Mapping[str, Any]


def require(path: Path) -> None:
    """Refuse a database that does not exist: a mistyped path must not start an empty log."""
    require_file_or_nothing(path)
    if not path.exists():
        sidecars.refuse_remnant(path)
        folder = path.parent
        make = "" if folder.parent.exists() else f"mkdir -p {quoted(folder)} && "
        raise InterventionRequired(
            f"there is no database at {path}",
            f"create it with `{make}projector db setup`, or correct the path",
        )


def require_file_or_nothing(path: Path) -> None:
    """Refuse what no database can be, a path that may not be looked at, and root among others."""
    try:
        wrong = path.exists() and not path.is_file()
    except OSError as error:
        raise InterventionRequired(
            f"{path}: {error.strerror}", "correct the path, or see who you are (`id`)"
        ) from None
    if wrong:
        raise InterventionRequired(f"{path} is not a file", "give the path of a SQLite file")
    sidecars.refuse_root(path)


def require_library() -> None:
    """Refuse a SQLite that lacks what this program needs, rather than fail at some statement."""
    if sqlite3.sqlite_version_info < OLDEST:
        wrong = f"is too old: {sqlite3.sqlite_version}, where {OLDEST[0]}.{OLDEST[1]} is needed"
    elif sqlite3.threadsafety == 0:
        wrong = "is built for programs of one thread alone (SQLITE_THREADSAFE=0)"
    else:
        return
    raise InterventionRequired(
        f"the SQLite of {sys.executable} {wrong}",
        "install projector with a Python that has another SQLite:"
        " `python3 -I -c 'import sqlite3; print(sqlite3.sqlite_version)'`",
    )


def uri(path: Path, *, mode: str) -> str:
    """A SQLite URI; mode `ro`, `rw` or `rwc`."""
    return f"file:{quote(os.fsencode(path))}?mode={mode}"


class TimedConnection(sqlite3.Connection):
    """Knows since when a statement runs that another program may have made endless, by a trigger or
    an SQL view. What only its own size makes long is none: a COMMIT, an index, a checkpoint."""

    _since: float | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self._since = time.monotonic() if sql.startswith(_ENDLESS) else None
        try:
            return super().execute(sql, parameters)
        finally:
            self._since = None

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        self._since = time.monotonic()
        try:
            return super().executemany(sql, parameters)
        finally:
            self._since = None

    def is_overdue(self, after_s: float) -> bool:
        return (since := self._since) is not None and time.monotonic() - since > after_s


def connect(path: Path, *, mode: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> TimedConnection:
    """A connection outside any transaction unless it begins one."""
    require_library()
    if mode == "rwc":
        require_file_or_nothing(path)
    else:
        require(path)
    sidecars.check(path)
    sidecars.refuse_remnant(path)
    with translated(path):
        connection = sqlite3.connect(
            uri(path, mode=mode) + ("&immutable=1" if mode == "ro" and _is_still(path) else ""),
            uri=True,
            isolation_level=None,
            factory=TimedConnection,
            timeout=busy_timeout_s,
            check_same_thread=False,  # one at a time is enough
        )
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _PATTERN_BYTES)
        connection.text_factory = lossless_text
        assert isinstance(connection, TimedConnection)
        return connection


def _is_still(path: Path) -> bool:
    """Whether nobody can write to it: a copy on a file system that is mounted read-only. A database
    in WAL mode could not even be read there, as that makes the files beside it; who has it open for
    writing from elsewhere has made them."""
    if not is_read_only(path):
        return False
    sidecars = (path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))
    return not any(map(os.path.lexists, sidecars))


def lossless_text(data: bytes) -> str:
    """Text from a column; bytes that are not UTF-8 become lone surrogates instead of an error."""
    return data.decode("utf-8", "surrogateescape")


@contextmanager
def bounded(connection: sqlite3.Connection) -> Iterator[None]:
    """In the block SQLite refuses to read a value that is larger than any event may be, and does
    not read it: `is_too_big` of the error."""
    most = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_EVENT_BYTES + 1)
    try:
        yield
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most)


def is_too_big(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_TOOBIG


def event(connection: sqlite3.Connection, seq: int) -> tuple[Any, ...] | None:
    """The columns of the event at a position, None where there is none; of a value that is larger
    than any event may be no more than shows that, and nothing behind an id or key that is."""
    select = f"SELECT {EVENT_COLUMNS} FROM event_log WHERE seq = ?"
    try:
        with bounded(connection):
            found: tuple[Any, ...] | None = connection.execute(select, (seq,)).fetchone()
            return found
    except sqlite3.DataError as error:
        if not is_too_big(error):
            raise
    types = "SELECT typeof(id), typeof(key), typeof(data) FROM event_log WHERE seq = ?"
    values: list[Any] = [seq]
    for kind, (name, most) in zip(
        connection.execute(types, (seq,)).fetchone(), _READ_BYTES.items(), strict=True
    ):
        if name == "data" and any(map(is_too_long, values)):
            return (*values, None, None)  # they stand behind what is too long
        if kind in ("text", "blob"):  # SQLite would read all of it, which a BLOB handle does not
            with connection.blobopen("event_log", name, seq, readonly=True) as blob:
                head = blob.read(most + 1)
            values.append(lossless_text(head) if kind == "text" else head)
        else:
            select = f"SELECT {name} FROM event_log WHERE seq = ?"
            values.append(connection.execute(select, (seq,)).fetchone()[0])
    select = "SELECT created_at FROM event_log WHERE seq = ?"
    return (*values, connection.execute(select, (seq,)).fetchone()[0])


class Connection:
    """A connection whose statements raise errors of this program."""

    def __init__(self, raw: TimedConnection, path: Path, identity: FileIdentity) -> None:
        self.raw = raw
        self.path = path
        self.identity = identity
        self._busy_timeout_ms = int(self.value("PRAGMA busy_timeout"))

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
            self._begin(begin)
            try:
                yield
                self.identity.check()  # what goes into a removed file must not be copied back
                self.raw.execute("COMMIT")
            except BaseException:
                self.raw.rollback()
                raise

    def _begin(self, begin: str) -> None:
        """Begin a transaction once its lock can be had. SQLite itself would ask ever more seldom,
        at last every 0.1 s, and miss the moments in which busy writers leave it free."""
        started = time.monotonic()
        self.raw.execute("PRAGMA busy_timeout = 0").close()
        try:
            while True:
                try:
                    self.raw.execute(begin)
                    return
                except sqlite3.OperationalError as error:
                    waited_s = time.monotonic() - started
                    is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                    if not is_busy or waited_s * 1000 >= self._busy_timeout_ms:
                        raise
                time.sleep(min(max(waited_s / 100, _FIRST_POLL_S), _LAST_POLL_S))
        finally:
            self.raw.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}").close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One moment for all that is read, and the file's locks taken once."""
        with translated(self.path):
            self.raw.execute("BEGIN")
            try:
                yield
            finally:
                self.raw.rollback()  # it only read; SQLite may have ended it by itself
