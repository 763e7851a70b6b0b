"""The daemon's lock, a file beside the database."""

import fcntl
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import NeedsPerson, quoted
from session_projector.worker.storage.port import Leader
from session_projector.worker.storage.sqlite.connection import require
from session_projector.worker.storage.sqlite.errors import REMOUNT, is_read_only

LOCK_SUFFIX: Final = "-projector.lock"
_LOCK_BYTES: Final = 64 * 1024
_PID: Final = re.compile("[0-9]{1,10}")
_RUNNING: Final = re.compile("([A-Za-z0-9_]+)=([0-9]{1,10})")


class DaemonLock:
    """Leadership by an advisory lock on `<database>-projector.lock`, held while a daemon lives.

    `running` are the projections that the holder will say it runs, and their versions.
    """

    def __init__(self, path: Path, running: Mapping[str, int] | None = None) -> None:
        self._running = [f"{name}={version}" for name, version in (running or {}).items()]
        self._path = path.with_name(path.name + LOCK_SUFFIX)
        self._database = path
        self._descriptor: int | None = None
        self._awaited: int | None = None

    @property
    def who_holds_it(self) -> str:
        return f"`fuser -v {quoted(self._path)}`"

    def acquire(self, *, stand_by: bool = False) -> bool:
        """Take it if nobody holds it; the file then says our process id.

        With `stand_by` the file is left open until the next try, so that others see who waits.
        """
        if self._descriptor is not None:
            return True
        require(self._database)
        descriptor = self._open(os.O_RDWR | os.O_CREAT)
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            self._await(descriptor if stand_by else None)
            if not stand_by:
                os.close(descriptor)
            return False
        self._descriptor = descriptor
        self._await(None)
        with suppress(OSError):  # on a full disk the lock holds without our number in it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, "\n".join([str(os.getpid()), *self._running]).encode(), 0)
        return True

    def release(self) -> None:
        self._await(None)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def leader(self) -> Leader | None:
        """The daemon that is alive, None where there is none.

        Its process is 0 where its number is from another container, or where it was killed and
        something else holds the lock: that number is another process's here.
        """
        said = self._said()
        if said is None:
            return None
        pid = 0
        if said and _PID.fullmatch(said[0]):
            pid = linux.holds(int(said[0]), self._path) or 0
        found = map(_RUNNING.fullmatch, said[1:])
        running = {match[1]: int(match[2]) for match in found if match}
        return Leader(pid, running, pid > 0 and linux.is_stopped(pid))

    def standing_by(self) -> list[str]:
        """The other processes that have the lock file open: they wait for it."""
        leader = self.leader()
        waiting = [pid for pid in linux.openers([self._path]) if not leader or pid != leader.pid]
        return [linux.named([pid]) for pid in waiting]

    def _await(self, descriptor: int | None) -> None:
        """Opened again at each try, because the file may be another one by then."""
        if self._awaited is not None:
            os.close(self._awaited)
        self._awaited = descriptor

    def _said(self) -> list[str] | None:
        try:
            # Of a FIFO there, O_NONBLOCK would not wait for a writer.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if _try_lock(descriptor, fcntl.LOCK_SH):
                return None
            return os.pread(descriptor, _LOCK_BYTES, 0).decode(errors="replace").split()
        except OSError:  # it is no plain file
            return []
        finally:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o666)
            shared = self._database.stat()
            if os.fstat(descriptor).st_uid == os.geteuid():
                if os.geteuid() == 0:  # as SQLite does with its files: or it shuts the owner out
                    with suppress(PermissionError):  # in a container that may not
                        os.fchown(descriptor, shared.st_uid, shared.st_gid)
                os.fchmod(descriptor, shared.st_mode & 0o666)
            return descriptor
        except OSError as error:
            raise NeedsPerson(
                f"{self._path} cannot be opened ({error.strerror})", self._fix()
            ) from None

    def _fix(self) -> str:
        lock, database = quoted(self._path), quoted(self._database)
        if is_read_only(self._path):
            return REMOUNT
        if not os.path.lexists(self._path):
            return f"the daemon needs write access to the folder {self._path.parent}"
        if not self._path.is_file():
            return f"it is no file; put it aside: `mv {lock} {lock}.aside`"
        return (
            "the file is another user's: as root, make it as the database is:"
            f" `chown --reference={database} {lock} && chmod --reference={database} {lock}`"
        )


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
