"""Letting a group write events: its folder 2770, the files in it 0660."""

import grp
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from session_projector.worker.errors import BadUsage, NeedsPerson
from session_projector.worker.storage.sqlite.lock import LOCK_SUFFIX

_SIDECARS: Final = ("", "-wal", "-shm", LOCK_SUFFIX)
_SHARED_FOLDER: Final = 0o2770


def check_folder(path: Path, gid: int) -> None:
    """A folder that holds anything else is somebody's own, and not to be opened to a group.

    One that is the group's already may hold what it likes.
    """
    ours = (path.name, f".{path.name}-litestream")
    try:
        folder = path.parent.stat()
        if (folder.st_gid, stat.S_IMODE(folder.st_mode)) == (gid, _SHARED_FOLDER):
            return
        others = sorted(
            entry.name for entry in path.parent.iterdir() if not entry.name.startswith(ours)
        )
    except FileNotFoundError:
        return
    if others:
        raise BadUsage(
            f"--group would open the whole folder {path.parent}, which holds more than the database"
            f" ({others[0]}{', …' if len(others) > 1 else ''})",
            "give it a folder of its own: projector db setup -d FOLDER/local.db --group NAME",
        )


def group_id(group: str) -> int:
    try:
        if group.isascii() and group.isdigit() and int(group) < 2**32 - 1:
            return int(group)
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadUsage(
            f"there is no group {group}", f"make it: groupadd {shlex.quote(group)}"
        ) from None


def share(path: Path, gid: int) -> None:
    """Folder 2770, files 0660: new sidecars take the group of the one and the mode of the other."""
    with os_errors(path):
        _give(path.parent, gid, _SHARED_FOLDER)
        for file in (path.with_name(path.name + suffix) for suffix in _SIDECARS):
            if file.exists():
                _give(file, gid, 0o660)


def _give(file: Path, gid: int, mode: int) -> None:
    """Only what differs: a sidecar that another user made is not ours to change, nor need it be."""
    if file.stat().st_gid != gid:
        os.chown(file, -1, gid)
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NeedsPerson(
            f"{error.filename or path}: {error.strerror}",
            f"look at `ls -la {path.parent}` and who you are (`id`)",
        ) from None
