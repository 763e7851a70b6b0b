"""Letting a group write events: its folder 2770, the files in it 0660."""

import grp
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from session_projector.worker.errors import InterventionRequired, UsageError, quoted
from session_projector.worker.storage.sqlite import sidecars
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
        raise UsageError(
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
        raise UsageError(
            f"there is no group {group}", f"create it: `groupadd {quoted(group)}`"
        ) from None


def share(path: Path, gid: int) -> None:
    """Folder 2770, files 0660: new sidecars take the group of the one and the mode of the other.

    The folder comes last: as long as it is not the group's, the group changes nothing in it.
    """
    with os_errors(path), _opened(path.parent, os.O_DIRECTORY) as folder:
        for file in (path.with_name(path.name + suffix) for suffix in _SIDECARS):
            with suppress(FileNotFoundError), _opened(file, in_folder=folder) as found:
                if why := sidecars.not_plain(os.fstat(found)):
                    raise InterventionRequired(
                        f"{file} {why}", sidecars.without(file, os.fstat(found))
                    )
                _give(found, gid, 0o660)
        _give(folder, gid, _SHARED_FOLDER)


@contextmanager
def _opened(path: Path, flags: int = 0, *, in_folder: int | None = None) -> Iterator[int]:
    """A descriptor of a name itself, not of what a link there leads to.

    By O_PATH, because closing another one of the database would drop SQLite's locks.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_NONBLOCK)
    name = path if in_folder is None else path.name
    descriptor = os.open(name, flags, dir_fd=in_folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _give(descriptor: int, gid: int, mode: int) -> None:
    """Give a file to the group with a mode; nothing is done where it has both already."""
    found = os.fstat(descriptor)
    # fchown and fchmod refuse a descriptor by O_PATH; by this name the kernel finds it.
    target = f"/proc/self/fd/{descriptor}" if hasattr(os, "O_PATH") else descriptor
    if found.st_gid != gid:
        os.chown(target, -1, gid)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.chmod(target, mode)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = str(error.filename or path)
        raise InterventionRequired(
            f"{path if named.startswith('/proc/') else named}: {error.strerror}",
            f"look at `ls -la {quoted(path.parent)}` and who you are (`id`): the owner of the files"
            " gives them to a group in which it is (`usermod -aG`)",
        ) from None
