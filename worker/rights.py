"""Owner, group and mode of a database, its folder and the files beside it, against this user."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from worker.checked import Checked
from worker.errors import quoted


def rights(path: Path) -> Iterator[Checked]:
    """Whether this user may read and write it all, and whoever else is meant to."""
    folder, user = path.parent, _user(os.geteuid())
    if not os.path.isdir(folder):
        mend = f"`mkdir -p {quoted(folder)} && projector db setup -d {quoted(path)}`"
        yield Checked("rights", "fail", f"there is no folder {folder}", mend)
        return
    beside = [path.with_name(path.name + end) for end in ("-wal", "-shm", "-projector.lock")]
    wrong = [*_barred(folder, os.R_OK | os.W_OK | os.X_OK, path)]
    wrong += [one for file in (path, *beside) for one in _barred(file, os.R_OK | os.W_OK, path)]
    if os.path.exists(path):
        wrong += _group(path)
        wrong += [one for file in beside for one in _like(file, path.stat())]
    yield from wrong
    if not wrong:
        told = f"{user} may read and write it and its folder"
        yield Checked("rights", "ok", f"{told}; {_told(path)}" if os.path.exists(path) else told)


def _barred(file: Path, mode: int, path: Path) -> Iterator[Checked]:
    if not os.path.exists(file) or os.access(
        file, mode, effective_ids=os.access in os.supports_effective_ids
    ):
        return
    owner = file.stat().st_uid
    bits = "u+rwx" if file.is_dir() else "u+rw"
    mend = (
        f"`chmod {bits} {quoted(file)}`"
        if owner == os.geteuid()
        else f"run as {_user(owner)}; or share it with a group, as {_user(owner)}:"
        f" `projector db setup --group NAME -d {quoted(path)}`"
    )
    said = f"{_user(os.geteuid())} may not read and write {_told(file)}"
    yield Checked("rights", "fail", said, mend)


def _group(path: Path) -> Iterator[Checked]:
    """A file that its group may write, in a folder where the group's sidecars will not work."""
    file, folder = path.stat(), path.parent.stat()
    wanted = stat.S_ISGID | stat.S_IRWXG
    if file.st_mode & stat.S_IWGRP and (
        folder.st_mode & wanted != wanted or folder.st_gid != file.st_gid
    ):
        yield Checked(
            "rights",
            "warn",
            f"{_told(path)} is its group's to write, but its folder, {_told(path.parent)}, does"
            " not give that group to the files that SQLite makes beside it",
            f"`projector db setup --group {shlex.quote(_group_name(file.st_gid))}"
            f" -d {quoted(path)}`",
        )


def _like(file: Path, database: os.stat_result) -> Iterator[Checked]:
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
        yield Checked(
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
