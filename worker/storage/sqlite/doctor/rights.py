"""The check of owner, group and mode of a database, its folder and the files beside it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import quoted
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.sqlite import sidecars
from session_projector.worker.storage.sqlite.errors import is_read_only, remount
from session_projector.worker.storage.sqlite.lock import LOCK_SUFFIX, DaemonLock, lock_mode
from session_projector.worker.storage.sqlite.sidecars import group, user

_LOCK_ASIDE: Final = "when no daemon runs, move it aside, and it is made again: "
_SHARED: Final = stat.S_ISGID | stat.S_IRWXG


def rights(path: Path) -> Iterator[Check]:
    """Check that a user can read and write all of it, and that it is not shared by half.

    Root can do everything: it asks for the user of the live daemon, else the owner of the folder.
    The database itself may be what is wrong, so that the files beside it are only compared with it
    where nothing else is. A command that it gives acts on a plain file with one name, or on the
    name alone: others may have put it there.
    """
    folder = path.parent
    if os.path.exists(path) and not os.path.isfile(path):
        return  # no database, and no advice for a folder or device
    if not os.path.isdir(folder):
        fix = f"`mkdir -p {quoted(folder)} && projector db setup`"
        yield Check("rights", "fail", f"there is no folder {folder}", fix)
        return
    if is_read_only(path):
        said = f"{folder} is on a file system that is mounted read-only"
        yield Check("rights", "fail", said, remount(path))
        return
    uid, who = _asked_for(path)
    odd = [*_open_to_others(path, uid)]
    odd += [Check("rights", "fail", *found) for found in sidecars.faults(path)]
    there = [path] if os.path.exists(path) else []
    for file in (path.with_name(path.name + end) for end in ("-wal", "-shm", LOCK_SUFFIX)):
        if not os.path.lexists(file):
            continue
        found = file.lstat()
        if not (why := sidecars.not_plain(found)):
            there.append(file)
        elif file.name.endswith(LOCK_SUFFIX):
            fix = sidecars.without(file, found)
            odd.append(Check("rights", "fail", f"{file} {why}", fix))
    wrong = [
        Check("rights", "fail", f"{who} cannot read and write {_told(file)}", fix)
        for file in (folder, *there)
        if (fix := _barred(file, path, uid))
    ]
    if os.path.isfile(path):
        wrong = wrong or [*_half_shared(path)]
        wrong = wrong or [one for file in there for one in _unlike(file, path)]
    wrong = odd + wrong
    said = "; ".join([f"{who} can read and write it and its folder", *map(_told, there[:1])])
    yield from wrong or [Check("rights", "ok", said)]


def _asked_for(path: Path) -> tuple[int, str]:
    """The user who must be able to use the database, by number and in words."""
    if me := os.geteuid():
        return me, user(me)
    leader = DaemonLock(path).leader()
    if leader and leader.pid and (runs_as := linux.user(leader.pid)) is not None:
        return runs_as, f"{user(runs_as)}, the user of the daemon ({leader}),"
    owner = path.parent.stat().st_uid
    return owner, f"{user(owner)}, the owner of the folder,"


def _barred(file: Path, path: Path, uid: int) -> str:
    """The command that lets a user read and write a file, '' where he can already."""
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
    if file.name.endswith(LOCK_SUFFIX):
        by = "" if folder.st_uid == uid else f", as {user(folder.st_uid)}"
        return f"{_LOCK_ASIDE}{sidecars.aside(file)}{by}"
    if file.is_file() and found.st_uid == 0 and folder.st_uid == uid:  # which root can do without
        own = _given(file, found.st_uid, like=path.parent, mode=folder.st_mode & 0o666)
        return f"give it the owner and mode of its folder, as root: {own}"
    if file.name.endswith(("-wal", "-shm")) and folder.st_uid == uid:
        return (
            f"it is {user(found.st_uid)}'s, who may give it the mode of the database; or, when no"
            " program has the database open, move it aside, and keep a -wal, which may hold what"
            f" was written last: {sidecars.aside(file)}"
        )
    owner = user(found.st_uid)
    return (
        f"{file.name or file} is {owner}'s, the folder {user(folder.st_uid)}'s: find out who is"
        f" meant to own the database; to share it with a group, as {owner}:"
        f" `projector db setup --group NAME`"
    )


def _open_to_others(path: Path, uid: int) -> Iterator[Check]:
    """A warning of each folder on the way in which other users can put what they like.

    A sticky one further up keeps what is in it. `/` is root's, whoever that is in a container.
    """
    trusted = {0, os.stat("/").st_uid, path.parent.stat().st_uid, uid}
    fix = (
        "move it to a folder of its own: stop all that use it, then"
        f" `sqlite3 {quoted(path)} \"VACUUM INTO '/a/folder/of/its/own/local.db'\"`"
    )
    for place in path.parents:
        found = place.stat()
        is_above, is_sticky = place != path.parent, found.st_mode & stat.S_ISVTX
        is_open = found.st_mode & stat.S_IWOTH and not (is_above and is_sticky)
        if not is_open and found.st_uid in trusted:
            continue
        who = "any user of this host" if is_open else user(found.st_uid)
        said = (
            f"{who} can put another folder in the place of the database's, in {_told(place)} above"
            if is_above
            else f"{who} can put files into its folder, {_told(place)}: a -wal that SQLite takes"
            " for the database's own, say"
        )
        # Others that are sticky, as /tmp, are meant for all.
        close = f"`chmod o-w {quoted(place)}`, or " if is_open and not is_sticky else ""
        yield Check("rights", "warn", said, close + fix)


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
            f"`projector db setup --group {quoted(group(gid))}`",
        )


def _unlike(file: Path, path: Path) -> Iterator[Check]:
    """A warning of a file beside the database that users of the database cannot use."""
    found, database = file.stat(), path.stat()
    is_shared = database.st_mode & stat.S_IWGRP
    is_lock = file.name.endswith(LOCK_SUFFIX)
    wanted = lock_mode(database) if is_lock else database.st_mode & 0o666
    if wanted & ~found.st_mode or (
        found.st_gid != database.st_gid if is_shared else found.st_uid != database.st_uid
    ):
        said = f"{_told(file)} is not as the database is, {_told(path)}: it may lock users out"
        fix = (
            "it goes when the last program that has the database open ends well; see which have:"
            f" `fuser -v {quoted(path)}`"
        )
        if is_lock:
            fix = _LOCK_ASIDE + sidecars.aside(file)
        elif found.st_uid in (database.st_uid, path.parent.stat().st_uid):
            fix = _given(file, found.st_uid, like=path, mode=wanted)
        stops = is_lock and bool(DaemonLock(path).barred())
        said = said.replace("it may lock users out", "it keeps a daemon out") if stops else said
        yield Check("rights", "fail" if stops else "warn", said, fix)


def _given(file: Path, uid: int, *, like: Path, mode: int) -> str:
    """The command that gives a file an owner and a mode, if it is a plain one of a user's then.

    The mode is given by the new owner: chmod follows a link that somebody may have put there since.
    """
    owner = like.stat()
    plain = f"find {quoted(file)} -maxdepth 0 -type f -links 1 -uid {uid}"
    as_owner = ""
    if owner.st_uid != uid or linux.was_root():
        as_owner = f"{linux.run_as(owner.st_uid, owner.st_gid)} "
    return (
        f"`{plain} -exec chown -h --reference={quoted(like)} {{}} +"
        f" && {as_owner}chmod {mode:o} {quoted(file)}`"
    )


def _told(file: Path) -> str:
    found = file.stat()
    who = f"{user(found.st_uid)}:{group(found.st_gid)}"
    return f"{file.name or file} ({who} {stat.S_IMODE(found.st_mode):04o})"
