"""The folder of a database and the files beside it, looked at before SQLite opens any of them.

Whoever can write the folder can put things there that SQLite would follow, wait for or obey.
"""

import grp
import os
import pwd
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import InterventionRequired, ProjectorError, quoted, run_out

SIDECARS: Final = ("-wal", "-shm", "-journal")
SAFELY: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Opens no link, and does not wait for the other end of a FIFO."""

_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_TRAILER_BYTES: Final = 16
"""Length, checksum and magic, after the name of a super-journal at the end of a journal."""


def check(path: Path, kind: type[ProjectorError] = InterventionRequired) -> None:
    """Refuse a database beside which something lies that SQLite must not be given."""
    for said, hint in faults(path):
        raise kind(said, hint)


def faults(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the files of SQLite beside a database, and a cure."""
    for file in (path.with_name(path.name + suffix) for suffix in SIDECARS):
        if found := _lstat(file):
            if why := not_plain(found):
                yield f"{file} {why}", without(file, found)
            elif file.name.endswith("-journal") and found.st_size:
                yield from _journal_faults(file, path)


def not_plain(found: os.stat_result) -> str:
    """Why something is no plain file with one name, '' where it is."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if stat.S_ISDIR(found.st_mode):
        return "is a folder"
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    if found.st_nlink > 1:
        return f"is one file with {found.st_nlink} names (hard links)"
    return ""


def without(file: Path, found: os.stat_result) -> str:
    """How to get rid of what is no plain file: by its own name, whatever it leads to."""
    name = quoted(file)
    if stat.S_ISDIR(found.st_mode):
        return f"somebody put it there; move it aside: {aside(file)}"
    if stat.S_ISREG(found.st_mode):
        return (
            "find the other name (find -samefile) and remove that; or, if it is not the database's"
            f" own file, move this name aside: {aside(file)}"
        )
    return f"somebody put it there; remove it (what it leads to stays): `rm {name}`"


def aside(file: Path) -> str:
    """The command that renames a file, whatever stands in the new place, which is kept."""
    return f"`mv -T --backup=numbered {quoted(file)} {quoted(file)}.aside`"


LAST_COMMITS: Final = "its last commits are in its -wal, which lies there still"


def refuse_remnant(path: Path) -> None:
    """Refuse a database that was deleted, moved or emptied, and whose write-ahead log was not:
    SQLite would delete that, and with it what was committed last."""
    if not holds_something(path) and holds_something(path.with_name(f"{path.name}-wal")):
        raise InterventionRequired(
            f"{path} was deleted, moved or emptied: {LAST_COMMITS}", back(path)
        )


def holds_something(file: Path) -> bool:
    """Whether a file is there, and not empty."""
    found = _lstat(file)
    return found is not None and found.st_size > 0


def back(path: Path) -> str:
    """How to get a database back that is no longer at its path, by what is still there of it."""
    wal, copy = path.with_name(f"{path.name}-wal"), f"{path}.rescued"
    ways = ["if it was moved, end all that use it and move it back, and nothing is lost"]
    for pid, file in linux.deleted(path):
        commands = [f"kill -STOP {pid}", f"cp {file} {quoted(copy)}"]
        if holds_something(wal):
            commands.append(f"cp {quoted(wal)} {quoted(f'{copy}-wal')}")
        ways.append(
            f"process {linux.named([pid])} still has it open, as {file}: do not end it before you"
            f" have a copy (`{' && '.join(commands)}`; then `kill -KILL {pid}`)"
        )
    if len(ways) == 1:
        ways.append(
            "if a process still has it open, that is where a copy can be made, as root:"
            " `ls -l /proc/[0-9]*/fd 2>/dev/null | grep deleted`"
        )
    last = "restore a backup, and start again"
    last = without_wal(path, last) if holds_something(wal) else last
    last = f"where none of it is left, {last}"
    return "; ".join([*ways, last])


def without_wal(path: Path, then: str = "start again") -> str:
    """How to start without the write-ahead log of the file that was at a path before."""
    files = [path.with_name(path.name + end) for end in ("-wal", "-shm")]
    asides = " and ".join(aside(file) for file in files if os.path.lexists(file))
    return (
        "end every program that has these files open"
        f" (`fuser -v {' '.join(map(quoted, files))}`, as root), move them aside, which keeps what"
        f" they hold: {asides}; then {then}"
    )


def refuse_root(path: Path) -> None:
    """Refuse root where other users can write the folder.

    A journal that they put there makes SQLite delete any file that its name stands in.
    """
    folder = _lstat(path.parent)
    if os.geteuid() != 0 or folder is None:
        return
    said = f"root does not open {path}, because other users can write its folder"
    if folder.st_uid != 0:
        command = f"{linux.run_as(folder.st_uid, folder.st_gid)} projector doctor"
        raise InterventionRequired(
            said,
            f"run it as the owner of the folder, who must be able to execute {sys.executable}, such"
            f" as `{command}`",
        )
    if folder.st_mode & stat.S_IWOTH or (folder.st_mode & stat.S_IWGRP and folder.st_gid != 0):
        raise InterventionRequired(
            said,
            "give the folder to the user that the daemon is to run as, and work as that user:"
            f" `chown USER {quoted(path.parent)}`; or close it: `chmod go-w {quoted(path.parent)}`",
        )


def user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def group(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _journal_faults(journal: Path, path: Path) -> Iterator[tuple[str, str]]:
    """A journal that SQLite could not have left, or that names a file for SQLite to delete."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | SAFELY)
    except FileNotFoundError:
        return
    except OSError as error:
        if told := run_out(error):
            raise told from None
        yield (
            f"{journal} cannot be read ({error.strerror}), and SQLite opens nothing without",
            "see whose it is (ls -l); when no program has the database open, move it aside:"
            f" {aside(journal)}",
        )
        return
    try:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, len(_JOURNAL_MAGIC), 0)
        if not size or head[:1] == b"\0":  # one that is done with
            return
        if head != _JOURNAL_MAGIC:
            yield (
                f"{journal} is no journal of SQLite's, and locks everybody out",
                f"somebody put it there; remove it: `rm {quoted(journal)}`",
            )
        elif (named := _super_journal(descriptor, size)) and not _is_own(named, path):
            yield (
                f"{journal} names {os.fsdecode(named)!r}, which SQLite would delete",
                "unless one of your programs writes several databases in one transaction,"
                f" somebody made it; move it aside: {aside(journal)}",
            )
    finally:
        os.close(descriptor)


def _super_journal(descriptor: int, size: int) -> bytes:
    """The file that stands at the end of a journal as its super-journal; b'' for none."""
    at = size - _TRAILER_BYTES
    trailer = os.pread(descriptor, _TRAILER_BYTES, max(at, 0))
    length = int.from_bytes(trailer[:4], "big")
    if not trailer.endswith(_JOURNAL_MAGIC) or not 0 < length <= at:
        return b""
    return os.pread(descriptor, min(length, 512), at - length)


def _is_own(super_journal: bytes, path: Path) -> bool:
    """Whether it has the name that SQLite gives, beside this database."""
    return bool(re.fullmatch(re.escape(os.fsencode(path)) + b"-mj[0-9A-F]+", super_journal))


def _lstat(file: Path) -> os.stat_result | None:
    try:
        return file.lstat()
    except OSError:
        return None
