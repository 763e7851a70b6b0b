"""The checks of the files beside an SQLite database: who has which open, and what the WAL holds."""

import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import quoted
from session_projector.worker.storage.port import Check, Holder, T
from session_projector.worker.storage.sqlite import locked
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.wal import WARNING_BYTES

MIB: Final = 1024 * 1024
WATCH_S: Final = 0.4
LOCK_TIMEOUT_S: Final = 1.0
LOOKS: Final = 8
HELD_S: Final = 2.0
"""A lock that is held for so long is no writer's at work."""
HELD_LOOKS: Final = 40
# What SQLite locks to read, by its file format ("WAL-mode file locks"): bytes of the -shm file, and
# of the database what each connection in WAL mode holds for as long as it lives.
_READ_AT: Final = range(123, 128)
_KINDS: Final = ("POSIX", "OFDLCK")
_OPEN_AT: Final = 0x40000002
_SHM_HEAD: Final = struct.Struct("=16x I 76x I")
"""How many frames of the WAL are valid, and how many of them are copied back."""


def files(path: Path, mounts: Path = linux.MOUNTS) -> Iterator[Check]:
    """Check that all who have the database open use the same files beside it."""
    wrong = []
    if strangers := _strangers(path):
        seen = all(linux.has_open(pid, path) for pid in strangers)
        end = linux.ending(strangers, "-KILL", seen=seen)
        said = (
            f"open with other -wal and -shm files than stand beside it, in:"
            f" {linux.named(strangers)}. They were removed, or are those of another name of the"
            " file: what is written there is not seen here, and may damage the database"
        )
        fix = (
            f"see which, as root: `ls -l {' '.join(f'/proc/{pid}/fd' for pid in strangers)}`. Where"
            " they were removed (deleted), only SIGKILL is safe, because at a clean end SQLite"
            f" would put the old files over the new ones: {end}."
            " Where it is another name: stop it, and let all use one. Then see what is left with"
            " `projector verify`"
        )
        wrong.append(Check("files", "fail", said, fix))
    if (names := path.stat().st_nlink) > 1:
        said = (
            f"the file has {names} names (hard links): who opens it by another one uses another"
            " -wal and -shm, and the database breaks"
        )
        fix = (
            "find the others, and remove them or let nobody open them:"
            f" `find {quoted(path.parent)} -xdev -samefile {quoted(path)}`"
        )
        wrong.append(Check("files", "warn", said, fix))
    with suppress(OSError):
        if linux.mounted(path, mounts.read_bytes().splitlines())[1] == str(path):
            said = (
                f"{path} is mounted by itself: its -wal and -shm are not those that others use"
                " where it comes from, and the database breaks"
            )
            wrong.append(Check("files", "fail", said, "mount its whole folder instead"))
    yield from wrong or [Check("files", "ok", "one file, and all use the same -wal and -shm")]


def _strangers(path: Path) -> set[int]:
    """The processes that have the database open in WAL mode, and not its -shm, all the time."""

    def now() -> set[int]:
        opened = {pid for pid, _, at in linux.locks(path) if at == _OPEN_AT}
        return opened - {pid for pid, *_ in linux.locks(_shm(path))}

    return _all_the_time(now)


def _all_the_time(
    look: Callable[[], set[T]], watch_s: float = WATCH_S, looks: int = LOOKS
) -> set[T]:
    """What is found at each of several looks."""
    found = look()
    for _ in range(looks):
        if not found:
            break
        time.sleep(watch_s / looks)
        found &= look()
    return found


def wal(path: Path) -> Iterator[Check]:
    """Check the size of the write-ahead log, and name who has the database open."""
    if not os.path.isfile(path):
        return
    log, shm = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    size = log.stat().st_size if log.exists() else 0
    if not linux.is_there():
        seen = "unknown processes"
    else:
        seen = linux.named(linux.openers([path, log, shm])) or "no other process"
        if os.geteuid() != 0:
            seen += "; only root sees the processes of other users"
    found = f"{size / MIB:,.1f} MiB; open in: {seen}"
    if size <= WARNING_BYTES:
        yield Check("wal", "ok", found)
        return
    shell = f"sqlite3 -safe -cmd '.timeout 5000' {quoted(path)}"
    truncate = f"`{shell} 'PRAGMA wal_checkpoint(TRUNCATE)'`"
    if pinning := pinned_by(path):
        found += f"; a read is open all the time in: {linux.named(pinning)}"
        seen_all = all(linux.has_open(pid, shm) for pid in pinning)
        end = f"end that read, or the process: {linux.ending(pinning, seen=seen_all)}"
        truncate = f"{end}; then {truncate}"
        found += ". It is reused from its start once no process holds an old snapshot open"
    elif (copied := _copied(shm)) is not None:
        found += f"; no read holds it, and {copied:.0%} of it is copied back into the database"
        truncate = f"a daemon that is alive empties it within a minute, or do it: {truncate}"
    yield Check("wal", "warn", found, truncate)


def _copied(shm: Path) -> float | None:
    """Which share of the WAL is copied back; None where that cannot be read."""
    with suppress(OSError, struct.error):
        frames, copied = _SHM_HEAD.unpack_from(shm.read_bytes())
        return copied / frames if frames else 1.0
    return None


def pinned_by(path: Path) -> set[int]:
    """The other processes that hold one snapshot open all the time; one that reads again and again
    lets go in between."""
    shm = _shm(path)

    def now() -> set[tuple[int, int]]:
        return {
            (pid, at)
            for pid, of, at in linux.locks(shm)
            if of == "READ" and at in _READ_AT and pid != os.getpid()
            if linux.has_open(pid, shm) is not False
        }

    return {pid for pid, _ in _all_the_time(now)}


def locked_by(path: Path, *, but: int) -> list[Holder]:
    """As `worker.storage.port.Database.locked_by`."""
    held = _all_the_time(lambda: locked.holders(path).keys() - {but}, HELD_S, HELD_LOOKS)
    found = {pid: is_open for pid, is_open in locked.holders(path).items() if pid in held}
    return [locked.holder(found)] if found else []


def who_locks_it(path: Path, *, but: int) -> str:
    """As `worker.storage.port.Database.who_locks_it`."""
    if but in locked.holders(path):
        return ""
    is_locked = any(
        at == locked.WRITE_AT for kind in _KINDS for *_, at in linux.locks(_shm(path), kind)
    )
    if os.access(path, os.W_OK):  # else it would begin to read, and take no lock
        try:
            with closing(connect(path, mode="rw", busy_timeout_s=LOCK_TIMEOUT_S)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("ROLLBACK")
            is_locked = False
        except sqlite3.Error as error:
            is_locked = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    return f"`fuser -v {quoted(path)} {quoted(_shm(path))}`" if is_locked else ""


def _shm(path: Path) -> Path:
    return path.with_name(path.name + "-shm")
