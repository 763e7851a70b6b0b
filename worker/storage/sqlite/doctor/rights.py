"""The check of owner, group and mode of a database, its folder and the files beside it."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import quoted
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.sqlite.errors import REMOUNT, is_read_only
from session_projector.worker.storage.sqlite.lock import LOCK_SUFFIX, DaemonLock

_SHARED: Final = stat.S_ISGID | stat.S_IRWXG


def rights(path: Path) -> Iterator[Check]:
    """Check that a user can read and write all of it, and that it is not shared by half.

    Root can do everything: it asks for the user of the live daemon, else the owner of the folder.
    The database itself may be what is wrong, so that the files beside it are only compared with it
    where nothing else is.
    """
    folder = path.parent
    if not os.path.isdir(folder):
        fix = f"`mkdir -p {quoted(folder)} && projector db setup`"
        yield Check("rights", "fail", f"there is no folder {folder}", fix)
        return
    if is_read_only(path):
        said = f"{folder} is on a file system that is mounted read-only"
        yield Check("rights", "fail", said, REMOUNT)
        return
    uid, who = _asked_for(path)
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm", LOCK_SUFFIX)]
    there = [file for file in files if os.path.exists(file)]
    wrong = [
        Check("rights", "fail", f"{who} cannot read and write {_told(file)}", fix)
        for file in (folder, *there)
        if (fix := _barred(file, path, uid))
    ]
    if os.path.isfile(path):
        wrong = wrong or [*_half_shared(path)]
        wrong = wrong or [one for file in there for one in _unlike(file, path)]
    said = "; ".join([f"{who} can read and write it and its folder", *map(_told, there[:1])])
    yield from wrong or [Check("rights", "ok", said)]


def _asked_for(path: Path) -> tuple[int, str]:
    """The user who must be able to use the database, by number and in words."""
    if me := os.geteuid():
        return me, _user(me)
    leader = DaemonLock(path).leader()
    if leader and leader.pid and (runs_as := linux.user(leader.pid)) is not None:
        return runs_as, f"{_user(runs_as)}, the user of the daemon ({leader}),"
    owner = path.parent.stat().st_uid
    return owner, f"{_user(owner)}, the owner of the folder,"


def _barred(file: Path, path: Path, uid: int) -> str:
    """What lets a user read and write a file without locking others out; '' where he can."""
    found, folder = file.stat(), path.parent.stat()
    bits = 7 if file.is_dir() else 6
    if uid == os.geteuid():
        can = os.access(file, bits)
    else:  # whoever uses the folder and does not own it is in its group
        shift = 6 if found.st_uid == uid else 3 if found.st_gid == folder.st_gid else 0
        can = found.st_mode >> shift & bits == bits
    if can:
        return ""
    if found.st_uid == uid:
        return f"`chmod {'u+rwx' if file.is_dir() else 'u+rw'} {quoted(file)}`"
    if file.is_file() and found.st_uid == 0 and folder.st_uid == uid:  # which root can do without
        own = f"chown --reference={quoted(path.parent)} {quoted(file)}"
        mode = f"chmod {folder.st_mode & 0o666:o} {quoted(file)}"
        return f"give it the owner and mode of its folder, as root: `{own} && {mode}`"
    owner = _user(found.st_uid)
    return (
        f"{file.name or file} is {owner}'s, the folder {_user(folder.st_uid)}'s: find out who is"
        f" meant to own the database; to share it with a group, as {owner}:"
        f" `projector db setup --group NAME`"
    )


def _half_shared(path: Path) -> Iterator[Check]:
    """A warning of a file that its group can write, in a folder where SQLite's files are not."""
    file, folder = path.stat(), path.parent.stat()
    is_shared = folder.st_mode & _SHARED == _SHARED
    if file.st_mode & stat.S_IWGRP and not (is_shared and folder.st_gid == file.st_gid):
        # A shared folder says with which group; nobody shares with root's.
        gid = folder.st_gid if is_shared or not file.st_gid else file.st_gid
        yield Check(
            "rights",
            "warn",
            f"{_told(path)} is writable by its group, but its folder, {_told(path.parent)}, does"
            " not give that group to the files that SQLite makes beside it",
            f"`projector db setup --group {shlex.quote(_group(gid))}`",
        )


def _unlike(file: Path, path: Path) -> Iterator[Check]:
    """A warning of a file beside the database that users of the database cannot use."""
    found, database = file.stat(), path.stat()
    is_shared = database.st_mode & stat.S_IWGRP
    missing = database.st_mode & ~found.st_mode & 0o666
    if missing or (
        found.st_gid != database.st_gid if is_shared else found.st_uid != database.st_uid
    ):
        said = f"{_told(file)} is not as the database is, {_told(path)}: it may lock users out"
        like = f"--reference={quoted(path)} {quoted(file)}"
        yield Check("rights", "warn", said, f"`chown {like} && chmod {like}`")


def _told(file: Path) -> str:
    found = file.stat()
    who = f"{_user(found.st_uid)}:{_group(found.st_gid)}"
    return f"{file.name or file} ({who} {stat.S_IMODE(found.st_mode):04o})"


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def _group(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)
