"""Owner, group and mode of a database, its folder and the files beside it, against this user."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from session_projector.worker import linux as proc
from session_projector.worker.errors import REMOUNT, is_read_only, quoted
from session_projector.worker.storage.check import Check
from session_projector.worker.storage.sqlite.connection import LOCK_SUFFIX, DaemonLock


class _Judge(NamedTuple):
    """Who must be able to use the database: this user, the live daemon's, or the folder's owner."""

    uid: int
    groups: frozenset[int]
    who: str
    knows: bool
    """Whether the folder is this user's, so that what differs in it is at fault."""

    def may(self, file: Path, bits: int) -> bool:
        """By owner, group and mode alone, as for another user nothing else can be asked."""
        found = file.stat()
        if self.uid == 0:
            return True
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return found.st_mode >> shift & bits == bits


def rights(path: Path) -> Iterator[Check]:
    """Whether who uses it may read and write it all, and whoever else is meant to.

    As root, who may everything, it is judged for the user of the live daemon, or the owner of the
    folder. The database itself may be what is wrong, so that the files beside it are only held
    against it where it is as it must be.
    """
    folder = path.parent
    if not os.path.isdir(folder):
        fix = f"`mkdir -p {quoted(folder)} && projector db setup -d {quoted(path)}`"
        yield Check("rights", "fail", f"there is no folder {folder}", fix)
        return
    if is_read_only(path):
        said = f"{folder} is on a file system that is mounted read-only"
        yield Check("rights", "fail", said, REMOUNT)
        return
    wrong: list[Check] = []
    beside = [path.with_name(path.name + end) for end in ("-wal", "-shm", LOCK_SUFFIX)]
    judges = _judges(path)
    for judge in judges:
        wrong += _barred(folder, 7, path, judge)
        wrong += [one for file in (path, *beside) for one in _barred(file, 6, path, judge)]
    if os.path.isfile(path):
        wrong += _group(path)
        if not wrong:
            wrong += [one for file in beside for one in _like(file, path.stat())]
    yield from wrong
    if not wrong:
        told = f"{judges[-1].who} may read and write it and its folder"
        yield Check("rights", "ok", f"{told}; {_told(path)}" if os.path.exists(path) else told)


def _judges(path: Path) -> list[_Judge]:
    """Whose rights count; the last one is the most telling."""
    me, folder = os.geteuid(), path.parent.stat()
    found = [_Judge(me, frozenset((os.getegid(), *os.getgroups())), _user(me), folder.st_uid == me)]
    pid = DaemonLock(path).holder()
    runs_as = proc.user(pid) if pid else None
    if runs_as and runs_as[0] != me:
        who = f"{_user(runs_as[0])}, as whom the daemon (process {pid}) runs,"
        found.append(_Judge(*runs_as, who, folder.st_uid == runs_as[0]))
    elif me == 0 and folder.st_uid and not runs_as:
        who = f"{_user(folder.st_uid)}, whose the folder is,"
        found.append(_Judge(folder.st_uid, _groups(folder.st_uid, folder.st_gid), who, True))
    return found


def _groups(uid: int, gid: int) -> frozenset[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset((gid,))
    return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))


def _barred(file: Path, bits: int, path: Path, judge: _Judge) -> Iterator[Check]:
    if not os.path.exists(file):
        return
    if judge.uid == os.geteuid():
        may = os.access(file, bits, effective_ids=os.access in os.supports_effective_ids)
    else:
        may = judge.may(file, bits)
    if not may:
        said = f"{judge.who} may not read and write {_told(file)}"
        yield Check("rights", "fail", said, _cure(file, path, judge))


def _cure(file: Path, path: Path, judge: _Judge) -> str:
    """Only what cannot shut anybody out; where it is not known who is right, who disagrees."""
    found, folder = file.stat(), path.parent.stat()
    if found.st_uid == judge.uid:
        return f"`chmod {'u+rwx' if file.is_dir() else 'u+rw'} {quoted(file)}`"
    if file.is_file() and found.st_uid == 0 and judge.knows:  # whom nothing shuts out
        mode = stat.S_IMODE(folder.st_mode) & 0o666
        of = quoted(path.parent)
        return (
            "make it as its folder is, as root:"
            f" `chown --reference={of} {quoted(file)} && chmod {mode:o} {quoted(file)}`"
        )
    user = _user(found.st_uid)
    return (
        f"{file.name or file} is {user}'s, the folder {_user(folder.st_uid)}'s: find out whose the"
        f" database is meant to be; to share it with a group, as {user}:"
        f" `projector db setup --group NAME -d {quoted(path)}`"
    )


def _group(path: Path) -> Iterator[Check]:
    """A file that its group may write, in a folder where the group's sidecars will not work."""
    file, folder = path.stat(), path.parent.stat()
    wanted = stat.S_ISGID | stat.S_IRWXG
    if file.st_mode & stat.S_IWGRP and (
        folder.st_mode & wanted != wanted or folder.st_gid != file.st_gid
    ):
        # A folder that is shared says with whom; root's group is nobody's to share with.
        shared = folder.st_gid if folder.st_mode & wanted == wanted else file.st_gid
        known = shared or folder.st_gid == shared
        group = shlex.quote(_group_name(shared)) if known else "NAME"
        yield Check(
            "rights",
            "warn",
            f"{_told(path)} is its group's to write, but its folder, {_told(path.parent)}, does"
            " not give that group to the files that SQLite makes beside it",
            f"`projector db setup --group {group} -d {quoted(path)}`",
        )


def _like(file: Path, database: os.stat_result) -> Iterator[Check]:
    """A file beside the database that bars whom the database itself lets in."""
    if not os.path.exists(file):
        return
    found = file.stat()
    shared = database.st_mode & stat.S_IWGRP
    missing = database.st_mode & ~found.st_mode & 0o666
    other = found.st_gid != database.st_gid if shared else found.st_uid != database.st_uid
    if missing or other:
        mode = stat.S_IMODE(database.st_mode) & 0o666
        owner = f"{database.st_uid}:{database.st_gid}"
        yield Check(
            "rights",
            "warn",
            f"{_told(file)} is not as the database is ({_user(database.st_uid)}:"
            f"{_group_name(database.st_gid)} {mode:04o}): others may be shut out",
            f"`chown {owner} {quoted(file)} && chmod {mode:o} {quoted(file)}`",
        )


def _told(file: Path) -> str:
    found = file.stat()
    who = f"{_user(found.st_uid)}:{_group_name(found.st_gid)}"
    return f"{file.name or file} ({who} {stat.S_IMODE(found.st_mode):04o})"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
