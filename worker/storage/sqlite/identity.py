"""Whether the files of a database are still the ones that a connection has open."""

import ctypes
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from session_projector.worker.errors import InterventionRequired, ProjectorError, TransientError
from session_projector.worker.storage.sqlite import sidecars

_Found = tuple[int, int] | None


class FileIdentity:
    """Notices that the file at a path, or one beside it, is no longer the one that was opened.

    By `stat` alone: opening and closing the file would drop SQLite's POSIX locks.
    """

    def __init__(self, path: Path, given: Path | None = None) -> None:
        """`given`: the name that the path was resolved from, which may be a link."""
        self._path = str(path)
        self._names = [self._path, *([str(given)] if given else [])]
        self._identity = _found(os.stat, self._path)
        self._wal = Path(f"{path}-wal")
        self._last_wal = _found(os.lstat, str(self._wal))
        self._sidecars: dict[str, _Found] = {}
        self.is_said = False
        """Whether `check` has raised."""

    def opened(self) -> None:
        """Remember the files beside it, once a connection has them open, in WAL mode: it holds a
        lock on the database then, under which nobody but a `rm` removes them."""
        files = (f"{self._path}-wal", f"{self._path}-shm")
        self._sidecars = {file: _found(os.lstat, file) for file in files}
        self._last_wal = self._sidecars[str(self._wal)]

    def check(self) -> None:
        """Raises `TransientError` when a file was replaced or removed, and `InterventionRequired`
        when its write-ahead log lies there still, for whatever comes next."""
        try:
            self._check()
        except ProjectorError:
            self.is_said = True
            raise

    def _check(self) -> None:
        for name in self._names:
            if _found(os.stat, name) != self._identity:
                if name == self._path:
                    raise self._lost()
                raise TransientError(
                    f"{name} led to {self._path}, and now leads elsewhere",
                    "start again, and the new file is read",
                )
        for sidecar, identity in self._sidecars.items():
            if _found(os.lstat, sidecar) != identity:
                raise TransientError(
                    f"{sidecar} was removed or replaced while it was open: what others write from"
                    " now on cannot be seen here, and what is written here is not kept",
                    "start again: nothing was written into the file that others use. See who has"
                    " the removed files open: `projector doctor`",
                )
        self._last_wal = _found(os.lstat, str(self._wal))

    def _lost(self) -> ProjectorError:
        """The error of a file that is no longer at its path."""
        path = Path(self._path)
        said = f"{path} was replaced or deleted while it was open"
        if not os.path.exists(path):
            if sidecars.holds_something(self._wal):
                return InterventionRequired(f"{said}: {sidecars.LAST_COMMITS}", sidecars.back(path))
            return TransientError(f"{said}, and no file is there now", sidecars.back(path))
        is_others = self._last_wal and _found(os.lstat, str(self._wal)) != self._last_wal
        if is_others or not sidecars.holds_something(self._wal):
            return TransientError(said, "start again, and the new file is read")
        return InterventionRequired(
            f"{said}, and its -wal is there still: SQLite would copy what it holds into the new"
            " file, and break it",
            sidecars.without_wal(path),
        )


def _found(stat: Callable[[str], os.stat_result], name: str) -> _Found:
    try:
        found = stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_abandoned: Final[list[sqlite3.Connection]] = []


def abandon(connection: sqlite3.Connection) -> None:
    """Never close a connection whose files went away, at the end of the process neither.

    The last connection to close copies its write-ahead log into the file and deletes the one that
    stands at the path: but that is another one, with what others have committed since.
    """
    _abandoned.append(connection)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # the interpreter clears the list
