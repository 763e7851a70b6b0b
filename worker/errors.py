"""Everything a user can cause: what happened, to which file or event, and what mends it."""

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class ProjectorError(Exception):
    """Ends a command with one line, a hint and its exit code, never with a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Finding(ProjectorError):
    """The answer is no: no such session, an event that would not fold."""


class BadUsage(ProjectorError):
    """The call's words are off."""

    exit_code = 2


class RetryLater(ProjectorError):
    """A retry may mend it: the database is locked, the disk full, the file replaced."""

    exit_code = 3


class Unavailable(RetryLater):
    """The database may not be written or read just now; a daemon waits and goes on."""


class NeedsPerson(ProjectorError):
    """No retry mends it: unknown layout, newer schema, corrupt file, a log that does not fit."""

    exit_code = 4


class ProjectionFailed(NeedsPerson):
    """One projection cannot go on; a daemon sets it aside, and goes on with the others."""

    def __init__(self, projection: str, message: str, hint: str) -> None:
        super().__init__(f"{projection}: {message}", hint)
        self.projection = projection


class LostRace(Exception):
    """Somebody else moved the checkpoint: drop what is remembered of it and read again."""


def quoted(path: Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


REMOUNT = (
    "see why with `dmesg | tail` (a failing disk is mounted read-only), then mount it anew:"
    " `mount -o remount,rw` on the mount that `findmnt -T` names; in a systemd unit, name its"
    " folder with ReadWritePaths="
)


def is_read_only(path: Path) -> bool:
    """Whether nobody may write there, whatever the rights."""
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what SQLite says of `path` as an error with a hint."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error
    except UnicodeDecodeError as error:  # of a name in the schema, in what SQLite says of it
        raise _damaged(path, "its schema is malformed") from error


def _translate(path: Path, error: sqlite3.Error) -> ProjectorError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return RetryLater(f"{path} was moved or replaced while it was open", "start again")
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(
                f"{path} is locked by another process ({error})",
                f"see who holds it with `fuser {quoted(path)}`, then try again",
            )
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return Unavailable(
                f"{path} cannot be written or read ({error})",
                f"make room on its disk (`df {quoted(path.parent)}`), or lift a file-size limit"
                " (`ulimit -f`), then try again",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN if is_read_only(path):
            return NeedsPerson(
                f"{path} is on a file system that is mounted read-only ({error})", REMOUNT
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return NeedsPerson(
                f"{path} or its folder may not be written by this user ({error})",
                f"look at `ls -la {quoted(path.parent)}`; to share a database among users:"
                f" `projector db setup --group NAME -d {quoted(path)}`",
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(path, str(error))
    hint = f"see what is wrong: `projector doctor -d {quoted(path)}`"
    if str(error).startswith(("no such table", "no such column")):  # dropped since it was opened
        hint = f"make what is gone anew: `projector db setup -d {quoted(path)}`"
    return NeedsPerson(f"{path}: SQLite says: {error}", hint)


def _damaged(path: Path, why: str) -> NeedsPerson:
    return NeedsPerson(
        f"{path} is damaged or not a SQLite database ({why})",
        f"see what is left with `sqlite3 {quoted(path)} .recover` (where the shell has"
        " it), or restore a backup",
    )
