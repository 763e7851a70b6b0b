"""The database file: where it is, plain connections to it, the daemon's lock beside it."""

import fcntl
import os
import re
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from session_projector.worker import linux as proc
from session_projector.worker.errors import (
    REMOUNT,
    BadUsage,
    NeedsPerson,
    RetryLater,
    is_read_only,
    quoted,
    translated,
)

BUSY_TIMEOUT_S = 5.0
# An oversized event is quarantined by its size alone, so no more of it is read.
EVENT_COLUMNS = (
    "seq, id, key, CASE WHEN length(data) > :max THEN substr(data, 1, :max + 1) ELSE data END,"
    " created_at"
)


def resolve(database: str) -> Path:
    """The real path of a database named by path or `sqlite:` URL.

    The one place that knows which engines there are: a URL of another scheme will choose one.
    """
    scheme, colon, rest = database.partition("://")
    if colon and scheme != "sqlite":
        raise BadUsage(f"there is no engine for {scheme}://", "give the path of a SQLite file")
    if not (path := rest if colon else database):
        raise BadUsage("the name of the database is empty", "give the path of a SQLite file")
    try:
        return Path(os.path.realpath(path))
    except OSError as error:  # the working folder is gone
        raise BadUsage(f"{path}: {error.strerror}", "give an absolute path") from None


def require(path: Path) -> None:
    """Refuse an absent database: a typing error must not start an empty log."""
    require_file_or_nothing(path)
    if not path.exists():
        raise NeedsPerson(
            f"there is no database at {path}",
            f"make it with `projector db setup -d {quoted(path)}`, or correct the path",
        )


def require_file_or_nothing(path: Path) -> None:
    """Refuse what no database can be, and a path that may not be looked at."""
    try:
        wrong = path.exists() and not path.is_file()
    except OSError as error:
        raise NeedsPerson(
            f"{path}: {error.strerror}", "correct the path, or look who you are (`id`)"
        ) from None
    if wrong:
        raise NeedsPerson(f"{path} is not a file", "give the path of a SQLite file")


def uri(path: Path, *, mode: str) -> str:
    """A SQLite URI; mode `ro`, `rw` or `rwc`."""
    return f"file:{quote(os.fsencode(path))}?mode={mode}"


def connect(path: Path, *, mode: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection for one command, outside any transaction unless it begins one."""
    if mode == "rwc":
        require_file_or_nothing(path)
    else:
        require(path)
    with translated(path):
        connection = sqlite3.connect(
            uri(path, mode=mode), uri=True, isolation_level=None, timeout=busy_timeout_s
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
        self._path = path
        self._identity = self._read()

    def check(self) -> None:
        """Raises `RetryLater` when the file was replaced or deleted."""
        if self._read() != self._identity:
            raise RetryLater(
                f"{self._path} was replaced or deleted while it was open",
                "start again, and the new file is read",
            )

    def _read(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def told(pid: int) -> str:
    """A holder of the lock, in words."""
    return f"process {pid}" if pid else "a process that cannot be seen from here"


LOCK_SUFFIX: Final = "-projector.lock"
_LOCK_BYTES: Final = 64 * 1024
_PID: Final = re.compile("[0-9]{1,10}")
_RUNNING: Final = re.compile("([A-Za-z0-9_]+)=([0-9]{1,10})")


class DaemonLock:
    """An advisory lock on `<database>-projector.lock`, held as long as a daemon lives.

    `running` are the projections that the holder will say it runs, and their versions.
    """

    def __init__(self, path: Path, running: Mapping[str, int] | None = None) -> None:
        self._running = [f"{name}={version}" for name, version in (running or {}).items()]
        self._path = path.with_name(path.name + LOCK_SUFFIX)
        self._database = path
        self._descriptor: int | None = None
        self._awaited: int | None = None

    @property
    def file(self) -> Path:
        return self._path

    def acquire(self, *, stand_by: bool = False) -> bool:
        """Take it if nobody holds it; the file then says our process id.

        With `stand_by` the file is left open until the next try, so that others see who waits.
        """
        if self._descriptor is not None:
            return True
        require(self._database)
        descriptor = self._open(os.O_RDWR | os.O_CREAT)
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            self._await(descriptor if stand_by else None)
            if not stand_by:
                os.close(descriptor)
            return False
        self._descriptor = descriptor
        self._await(None)
        with suppress(OSError):  # on a full disk the lock holds without our number in it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, "\n".join([str(os.getpid()), *self._running]).encode(), 0)
        return True

    def release(self) -> None:
        self._await(None)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> int | None:
        """The process id of the daemon that is alive, or None.

        0 where it cannot be seen from here: its number is from another container, or it was killed
        and something else holds the lock. Nobody must be told to kill the process of that number.
        """
        said = self._said()
        if said is None:
            return None
        if not said or not _PID.fullmatch(said[0]):
            return 0
        return proc.holds(int(said[0]), self._path) or 0

    def running(self) -> dict[str, int]:
        """The projections that the daemon runs, and their versions; none where there is no daemon,
        or it does not say."""
        said = map(_RUNNING.fullmatch, (self._said() or [])[1:])
        return {match[1]: int(match[2]) for match in said if match}

    def _await(self, descriptor: int | None) -> None:
        """Opened anew at each try, because the file may be another one by then."""
        if self._awaited is not None:
            os.close(self._awaited)
        self._awaited = descriptor

    def _said(self) -> list[str] | None:
        try:
            # Of a FIFO there, O_NONBLOCK would not wait for a writer.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if _try_lock(descriptor, fcntl.LOCK_SH):
                return None
            return os.pread(descriptor, _LOCK_BYTES, 0).decode(errors="replace").split()
        except OSError:  # it is no plain file
            return []
        finally:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o666)
            shared = self._database.stat()
            if os.fstat(descriptor).st_uid == os.geteuid():
                if os.geteuid() == 0:  # as SQLite does with its files: or it shuts the owner out
                    with suppress(PermissionError):  # in a container that may not
                        os.fchown(descriptor, shared.st_uid, shared.st_gid)
                os.fchmod(descriptor, shared.st_mode & 0o666)
            return descriptor
        except OSError as error:
            raise NeedsPerson(
                f"{self._path} cannot be opened ({error.strerror})", self._mend_lock()
            ) from None

    def _mend_lock(self) -> str:
        lock, database = quoted(self._path), quoted(self._database)
        if is_read_only(self._path):
            return REMOUNT
        if not os.path.lexists(self._path):
            return f"the daemon needs write access to the folder {self._path.parent}"
        if not self._path.is_file():
            return f"it is no file; put it aside: `mv {lock} {lock}.aside`"
        return (
            "the file is another user's: as root, make it as the database is:"
            f" `chown --reference={database} {lock} && chmod --reference={database} {lock}`"
        )


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
