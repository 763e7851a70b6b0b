"""What SQLite says, as errors of this program with a hint."""

import os
import re
import sqlite3
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import (
    DatabaseUnavailable,
    InterventionRequired,
    ProjectionFailed,
    ProjectorError,
    TransientError,
    argument,
    no_memory,
    quoted,
    run_out,
)
from session_projector.worker.storage.sqlite import locked, sidecars

_NO_SPACE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_READING: Final = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
_FILES: Final = 4
"""A database, its write-ahead log, the shared memory and a temporary file."""
_LONG_PATTERN: Final = "LIKE or GLOB pattern too complex"
_OF_ONE_PROJECTION: Final = {
    sqlite3.SQLITE_ERROR,  # no such table, no such column
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
}


def is_read_only(path: Path) -> bool:
    """Whether nobody can write there, whatever the rights."""
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def remount(path: Path) -> str:
    """How to get a file system that can be written."""
    try:
        place = linux.mounted(path.parent, linux.MOUNTS.read_bytes().splitlines())[1]
    except OSError:
        place = ""
    command = f"mount -o remount,rw {quoted(place)}" if place else f"findmnt -T {quoted(path)}"
    return (
        "see why with `dmesg | tail` (a failing disk is mounted read-only), then mount it again, as"
        f" root: `{command}`; in a systemd unit, name its folder with ReadWritePaths="
    )


def see_triggers(path: Path, table: str) -> str:
    """The hint where a trigger of another program may be what is wrong with a table."""
    sql = f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = '{table}'"
    return f"see which, and drop it: `sqlite3 -safe {quoted(path)} {quoted(sql)}`"


class translated:  # noqa: N801 - a class, as a generator would cost each statement 1 µs more
    """Raise what SQLite says of `path` in the block as an error with a hint.

    With `projection`, what can only be wrong with the rows of that one is its failure alone.
    """

    def __init__(self, path: Path, projection: str | None = None) -> None:
        self._path = path
        self._projection = projection

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        name = self._projection
        if isinstance(error, sqlite3.Error):
            if name is not None and _is_endless(error):
                raise ProjectionFailed(name, *_endless(self._path, error)) from error
            if name is not None and _code(error) & 0xFF in _OF_ONE_PROJECTION:
                raise _failed(name, error) from error
            raise _translate(self._path, error) from error
        if isinstance(error, MemoryError):
            raise no_memory() from error
        if isinstance(error, OverflowError | ValueError):
            if name is not None:  # a value that SQLite cannot hold
                raise _failed(name, error) from error
            if isinstance(error, UnicodeDecodeError):  # a name in the schema, in what SQLite says
                raise _corrupt(self._path, "its schema is malformed") from error


_GONE: Final = ("no such table", "no such column")
"""How it is said that something was dropped since the database was opened."""


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR))


def _failed(name: str, error: Exception) -> ProjectionFailed:
    hint = f"build its views again: `projector projection drop {argument(name)}`, then run again"
    if _code(error) & 0xFF == sqlite3.SQLITE_CONSTRAINT:
        hint = (
            "a trigger, an index or a constraint that somebody gave its table refuses the row; see"
            " which: `projector doctor`"
        )
    if str(error).startswith(_GONE):
        hint = "create what is gone again: `projector db setup`, then run again"
    return ProjectionFailed(name, f"SQLite says: {error}", hint)


def _translate(path: Path, error: sqlite3.Error) -> ProjectorError:
    code = _code(error)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return TransientError(f"{path} was moved or replaced while it was open", "start again")
    match code & 0xFF:
        # SQLITE_PROTOCOL: for 10 s another process held the locks on the shared memory.
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return _locked(path, error)
        case sqlite3.SQLITE_IOERR if code in _READING:
            return DatabaseUnavailable(f"{path} cannot be read ({error})", _unread(path))
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return DatabaseUnavailable(
                f"{path} cannot be written or read ({error})",
                f"make room on its disk (`df {quoted(path.parent)}`) and where SQLite has temporary"
                " files ($SQLITE_TMPDIR, else $TMPDIR, /var/tmp or /tmp), or lift a file-size limit"
                " (`ulimit -f`), then try again",
                lacks="space" if code in _NO_SPACE else "database",
            )
        case sqlite3.SQLITE_CANTOPEN if told := _no_descriptor():
            return told
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN if is_read_only(path):
            return InterventionRequired(
                f"{path} is on a file system that is mounted read-only ({error})", remount(path)
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return InterventionRequired(
                f"{path} or its folder is not writable by this user ({error})",
                f"look at `ls -la {quoted(path.parent)}`; to share a database among users:"
                " `projector db setup --group NAME`",
            )
        case _ if _is_endless(error):
            return InterventionRequired(*_endless(path, error))
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _corrupt(path, str(error))
    hint = "see what is wrong: `projector doctor`"
    if str(error).startswith(_GONE):
        hint = "create what is gone again: `projector db setup`"
    return InterventionRequired(f"{path}: SQLite says: {error}", hint)


def _locked(path: Path, error: sqlite3.Error) -> DatabaseUnavailable:
    """The error of a lock that somebody else holds, who may have let go of it by now."""
    said = f"{path} is locked by another process ({error})"
    hint = f"see who has it open: `fuser -v {quoted(path)} {quoted(f'{path}-shm')}`"
    if found := locked.holders(path):
        holder = locked.holder(found)
        said, hint = f"{said}: {holder.who} holds the write lock", holder.cure
    return DatabaseUnavailable(said, f"{hint}; then try again", lacks="lock")


def _unread(path: Path) -> str:
    """The hint where SQLite cannot read what should be there: a disk that fails, or a write-ahead
    log that somebody removed, which the processes that have it open go on to use."""
    wal = path.with_name(f"{path.name}-wal")
    found = [*linux.deleted(wal)]
    if not found:
        return (
            f"see whether the disk fails (`dmesg | tail`), or whether {wal.name} was removed while"
            " a process had it open, as root: `projector doctor`"
        )
    who = linux.named(pid for pid, _ in found)
    file = found[0][1]
    numbers = " ".join(str(pid) for pid, _ in found)
    return (
        f"{wal.name} was removed, and {who} has it open still, with what was committed last: let it"
        f" end well, which writes all of it back; or put that back and kill it: `kill -STOP"
        f" {numbers} && cp --backup=numbered {file} {quoted(wal)} && kill -KILL {numbers}`"
    )


def _no_descriptor() -> DatabaseUnavailable | None:
    """The error where there are fewer descriptors than SQLite opens files; it does not tell."""
    found: list[int] = []
    try:
        for _ in range(_FILES):
            found.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return run_out(error)
    finally:
        for descriptor in found:
            os.close(descriptor)
    return None


def _is_endless(error: sqlite3.Error) -> bool:
    """Whether a statement was stopped, or refused for a pattern that could keep it for ever."""
    return _code(error) & 0xFF == sqlite3.SQLITE_INTERRUPT or str(error) == _LONG_PATTERN


def _endless(path: Path, error: sqlite3.Error) -> tuple[str, str]:
    look = "SELECT name, tbl_name, sql FROM sqlite_master WHERE rootpage = 0"
    said = (
        f"a statement was refused ({error}): a trigger or an SQL view that another program made"
        " there compares with a pattern that is too long"
        if str(error) == _LONG_PATTERN
        else "a statement that should take moments did not end, and was stopped: a trigger or an"
        " SQL view that another program made there goes on for ever"
    )
    return (
        f"{path}: {said}",
        "see which (and `DROP TRIGGER` it in the same shell):"
        f" `sqlite3 -safe -readonly {quoted(path)} {quoted(look)}`",
    )


OF_AN_INDEX: Final = re.compile(
    r"row \S+ (missing|values differ) from index |(wrong # of entries|non-unique entry) in index |"
    r"rowid not at end-of-record "
)
"""What SQLite's integrity check says of an index, whatever the names of columns are."""


def wrong_index(
    path: Path, said: str, projection: str | None = None, fix: str = ""
) -> InterventionRequired:
    """The error of an index that differs from its table, by what SQLite says of that."""
    told = f"{path}: an index does not match its table, and what is read by it is wrong ({said})"
    fix = fix or f"build the indexes again: `sqlite3 -safe {quoted(path)} REINDEX`"
    if projection:  # the daemon tries again by itself
        return ProjectionFailed(projection, told, fix)
    return InterventionRequired(
        told, f"{fix}, then `projector replay`; if that does not help: `projector doctor`"
    )


def _corrupt(path: Path, why: str) -> InterventionRequired:
    first = ""
    if sidecars.holds_something(path.with_name(f"{path.name}-wal")):
        first = (
            "if it was put in the place of another while that was open, the -wal beside it is the"
            f" other's, and the file itself may be whole: {sidecars.without_wal(path)}. Otherwise "
        )
    return InterventionRequired(
        f"{path} is damaged or not a SQLite database ({why})",
        f"{first}see what is left with `sqlite3 {quoted(path)} .recover` (where the shell has"
        " it), or restore a backup",
    )
