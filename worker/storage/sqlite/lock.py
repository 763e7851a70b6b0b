"""The daemon's lock, a file beside the database."""

import fcntl
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import InterventionRequired, ProjectorError, quoted, run_out
from session_projector.worker.storage.port import Leader, Trouble, marked
from session_projector.worker.storage.sqlite import sidecars
from session_projector.worker.storage.sqlite.connection import require
from session_projector.worker.storage.sqlite.errors import is_read_only, remount

LOCK_SUFFIX: Final = "-projector.lock"
LOOK_S: Final = 3.0
"""How often the holder looks whether the file is still the one that others try."""
_LOCK_BYTES: Final = 64 * 1024
_BLOCK_BYTES: Final = 4096
_TROUBLE_BYTES: Final = 64
_PID: Final = re.compile("[0-9]{1,10}")
_RUNNING: Final = re.compile("([A-Za-z0-9_]+)=([0-9]{1,10})")
_CONTENT: Final = re.compile(rb"([0-9]{1,10}(\n[A-Za-z0-9_]+=[0-9]{1,10})*)?\s*")


class DaemonLock:
    """Leadership by an advisory lock on `<database>-projector.lock`, held while a daemon lives.

    Only those who can write the database can open the file: whoever opens a file can lock it.
    `running` are the projections that the holder will say it runs, and their versions.
    """

    def __init__(self, path: Path, running: Mapping[str, int] | None = None) -> None:
        self._versions = dict(running or {})
        self._running = [f"{name}={version}" for name, version in self._versions.items()]
        self._path = path.with_name(path.name + LOCK_SUFFIX)
        self._database = path
        self._descriptor: int | None = None
        self._awaited: int | None = None
        self._trouble: Trouble | None = None

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
        descriptor = self._open()
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            if self._is_held_by_readers() and self._removed():
                os.close(descriptor)
                return self.acquire(stand_by=stand_by)
            self._await(descriptor if stand_by else None)
            if not stand_by:
                os.close(descriptor)
            return False
        self._descriptor = descriptor
        self._await(None)
        self.tell(None)
        return True

    def acquire_some(self, *, stand_by: bool = False) -> set[str]:
        return {*self._versions} if self.acquire(stand_by=stand_by) else set()

    def tell(self, trouble: Trouble | None) -> None:
        """Write who we are, and what we wait for, into whole blocks: on a full disk what has its
        blocks already can be written again."""
        self._trouble = trouble
        if self._descriptor is None:
            return
        said = "\n".join([str(os.getpid()), *self._running])
        blocks = -(-(len(said) + _TROUBLE_BYTES) // _BLOCK_BYTES)
        said += f"\n{trouble.mark}" if trouble else ""
        with suppress(OSError):  # without room for the first block the lock holds all the same
            os.pwrite(self._descriptor, said.ljust(blocks * _BLOCK_BYTES).encode(), 0)
            os.ftruncate(self._descriptor, blocks * _BLOCK_BYTES)

    async def lost(self) -> None:
        """Where somebody removed or replaced the file, take the one that others try; return if
        another daemon has it by then. Nobody gets what cannot be opened: then look again."""
        import anyio  # commands need neither
        import structlog

        log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
        while True:
            await anyio.sleep(LOOK_S)
            held, trouble = self._descriptor, self._trouble
            if held is None or self._is_at_path(held):
                continue
            self._descriptor = None
            try:
                is_ours = self.acquire()
            except (ProjectorError, OSError):
                self._descriptor = held
                continue
            os.close(held)
            if not is_ours:
                return
            self.tell(trouble)
            log.warning("lock_taken_again", file=str(self._path))

    def _is_at_path(self, descriptor: int) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(descriptor), self._path.lstat())
        return False

    def release(self) -> None:
        self._await(None)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def barred(self) -> str:
        if is_read_only(self._path):
            return f"{self._path.parent} is on a file system that is mounted read-only"
        why = ""
        try:
            descriptor = os.open(self._path, os.O_RDWR | sidecars.SAFELY)
            try:
                why = self._no_lock(descriptor, os.fstat(descriptor), self._database.lstat())
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass
        except OSError as error:
            why = f"cannot be opened ({error.strerror})"
        return f"{self._path} {why}" if why else ""

    def leaders(self) -> list[Leader]:
        leader = self.leader()
        return [leader] if leader else []

    def leader(self) -> Leader | None:
        """The daemon that is alive, None where there is none.

        Its process is 0 where its number is from another container, or where it was killed and
        something else holds the lock: that number is another process's here. Of a process whose
        open files cannot be seen, the user must be one who can write the database.
        """
        said = self._said()
        if said is None:
            return None
        pid = 0
        if said and _PID.fullmatch(said[0]):
            pid = linux.holds(int(said[0]), self._path) or 0
        is_seen = pid > 0 and bool(linux.has_open(pid, self._path))
        if not is_seen and linux.is_there() and not linux.may_write(pid, self._database):
            pid = 0
        found = map(_RUNNING.fullmatch, said[1:])
        running = {match[1]: int(match[2]) for match in found if match and not marked(match[0])}
        is_suspended = pid > 0 and linux.is_stopped(pid)
        trouble = next(filter(None, map(marked, said[1:])), None)
        return Leader(pid, running, is_suspended, is_seen, trouble=trouble)

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
        """The words in the file, None where nobody holds it."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | sidecars.SAFELY)
        except PermissionError:  # for a reader of the database; the kernel tells
            holders = self._holders()
            return [str(holders[0])] if holders else None
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or _try_lock(
                descriptor, fcntl.LOCK_SH
            ):
                return None
            return os.pread(descriptor, _LOCK_BYTES, 0).decode(errors="replace").split()
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        """The file, made if there is none: a plain one, of a user of the database.

        Everything is done to what was opened, whatever somebody puts in its place meanwhile.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | sidecars.SAFELY, 0o600)
        except OSError as error:
            if told := run_out(error):
                raise told from None
            why = f"cannot be opened ({error.strerror})"
            with suppress(OSError):
                why = sidecars.not_plain(self._path.lstat()) or why
            raise InterventionRequired(f"{self._path} {why}", self._fix()) from None
        try:
            found, database = os.fstat(descriptor), self._database.lstat()
            if why := self._no_lock(descriptor, found, database):
                raise InterventionRequired(f"{self._path} {why}", self._fix())
            if found.st_uid == os.geteuid():
                if os.geteuid() == 0:  # as SQLite does with its files: or it shuts the owner out
                    with suppress(PermissionError):  # in a container that may not
                        os.fchown(descriptor, database.st_uid, database.st_gid)
                os.fchmod(descriptor, lock_mode(database))
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def _no_lock(self, descriptor: int, found: os.stat_result, database: os.stat_result) -> str:
        """Why what was opened is no lock of a daemon's, '' where it is one."""
        if why := sidecars.not_plain(found):
            return why
        users = {os.geteuid(), database.st_uid, self._path.parent.stat().st_uid}
        if not _is_shared(database) and found.st_uid not in users:
            return f"belongs to {sidecars.user(found.st_uid)}, who is no user of the database"
        if not _CONTENT.fullmatch(os.pread(descriptor, _LOCK_BYTES, 0)):
            return "holds something else than the number of a daemon"
        return ""

    def _is_held_by_readers(self) -> bool:
        """Whether all who hold it are users who cannot write the database.

        They opened it while its mode was that of the database, as earlier versions made it.
        """
        database = self._database.lstat()
        users = {os.geteuid(), 0, database.st_uid, self._path.parent.stat().st_uid, None}
        holders = {linux.user(pid) for pid in self._holders()}
        return bool(holders) and not holders & users and not _is_shared(database)

    def _holders(self) -> list[int]:
        return sorted({pid for pid, _, _ in linux.locks(self._path, "FLOCK")})

    def _removed(self) -> bool:
        with suppress(OSError):
            os.unlink(self._path)
            return True
        return False

    def _fix(self) -> str:
        if is_read_only(self._path):
            return remount(self._path)
        try:
            found = self._path.lstat()
        except OSError:
            return f"the daemon needs write access to the folder {self._path.parent}"
        if stat.S_ISREG(found.st_mode):
            return (
                "see whose it is (ls -l); when no daemon runs, move it aside, and it is made"
                f" again: {sidecars.aside(self._path)}"
            )
        return sidecars.without(self._path, found)


def lock_mode(database: os.stat_result) -> int:
    """The mode of the lock: readable and writable for who can write the database."""
    writers = database.st_mode & 0o222
    return 0o600 | writers | writers << 1


def _is_shared(database: os.stat_result) -> bool:
    """Whether more users than its owner can write it."""
    return bool(database.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
