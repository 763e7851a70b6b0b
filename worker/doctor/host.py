"""What `doctor` looks at around a database: file system, room, the log's size, SQLite."""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from session_projector.worker import linux as proc
from session_projector.worker.errors import quoted
from session_projector.worker.sessions.read import WAL_WARNING_BYTES
from session_projector.worker.storage.check import Check

MIB: Final = 1024 * 1024
LITTLE_ROOM_BYTES: Final = 64 * MIB
NO_ROOM_BYTES: Final = 8 * MIB
PIN_WATCH_S: Final = 0.3
NAMED: Final = 10
MOUNTS: Final = Path("/proc/self/mountinfo")
_2024_MS: Final = 1_704_067_200_000


class Bug(msgspec.Struct, frozen=True):
    """A bug of SQLite that matters here; `fixed` are the versions with the fix, by branch."""

    since: tuple[int, ...]
    fixed: tuple[tuple[int, ...], ...]
    what: str


BUGS: Final = (
    # https://sqlite.org/wal.html#walresetbug
    Bug(
        (3, 7, 0),
        ((3, 44, 6), (3, 50, 7), (3, 51, 3)),
        "the WAL-reset bug: where several processes have the database open, a checkpoint at the"
        " very moment of another's checkpoint and write may, very rarely, corrupt it",
    ),
)


def sqlite_version(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Iterator[Check]:
    said = ".".join(map(str, version))
    bugs = [bug for bug in BUGS if _has(version, bug)]
    for bug in bugs:
        fixed = ", ".join(".".join(map(str, one)) for one in bug.fixed)
        yield Check(
            "sqlite",
            "warn",
            f"SQLite {said} has {bug.what}",
            f"run a Python whose SQLite has the fix ({fixed} or newer), and see to it that every"
            " other program that opens the database has it too; until then keep backups",
        )
    if not bugs:
        yield Check("sqlite", "ok", f"SQLite {said}, none of whose known bugs matters here")


def _has(version: tuple[int, ...], bug: Bug) -> bool:
    same_branch = [fixed for fixed in bug.fixed if fixed[:2] == version[:2]]
    return bug.since <= version < (same_branch or [max(bug.fixed)])[0]


SHARED_FILESYSTEMS: Final = frozenset(
    """
    nfs nfs4 cifs smb2 smb3 smbfs 9p v9fs virtiofs vboxsf vmhgfs prl_fs drvfs fakeowner osxfs
    ceph glusterfs afs lustre coda ncpfs beegfs gfs2 ocfs2 orangefs webdav davfs
    fuse.sshfs fuse.glusterfs fuse.ceph fuse.ceph-fuse fuse.gvfsd-fuse fuse.grpcfuse fuse.osxfs
    fuse.vmhgfs-fuse fuse.prl_fsd fuse.rclone fuse.s3fs fuse.gcsfuse fuse.juicefs fuse.mount-s3
    fuse.davfs
    """.split()  # noqa: SIM905
)
"""Network and virtual file systems: the other side does not see SQLite's locks and memory."""
_PASSING: Final = {
    "overlay": "a container's own layer: gone with the container",
    "aufs": "a container's own layer: gone with the container",
    "tmpfs": "memory: gone at the next restart",
    "ramfs": "memory: gone at the next restart",
}


def filesystem(path: Path, mounts: Path = MOUNTS) -> Iterator[Check]:
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        yield Check("filesystem", "ok", "its type is not known here")
        return
    kind, place = _mounted(path.parent, lines)
    elsewhere = (
        "move it to a local disk, or a volume on one: stop all that use it, then"
        f" `sqlite3 {quoted(path)} \"VACUUM INTO '/a/local/disk/local.db'\"`"
    )
    on = f"{kind} at {place}"
    if kind in SHARED_FILESYSTEMS:
        why = "SQLite's locks and shared memory do not hold there, and the database will break"
        yield Check("filesystem", "fail", f"{on}: {why}", elsewhere)
    elif kind in _PASSING:
        yield Check("filesystem", "warn", f"{on}: {_PASSING[kind]}", elsewhere)
    elif kind.startswith("fuse."):
        why = "whether SQLite's locks and shared memory hold there is up to the program behind it"
        yield Check("filesystem", "warn", f"{on}: {why}", elsewhere)
    else:
        yield Check("filesystem", "ok", on)


def _mounted(folder: Path, lines: list[bytes]) -> tuple[str, str]:
    """The type and the place of the mount that holds a folder; of two at one place, the later."""
    best, kind = "", "unknown"
    for line in lines:
        before, _, after = line.partition(b" - ")  # 36 35 98:0 / /mnt rw master:1 - ext3 /dev/x rw
        if len(fields := before.split()) < 5 or not after:
            continue
        place = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields[4]))
        if folder.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, os.fsdecode(after.split()[0])
    return kind, best


def wal(path: Path) -> Iterator[Check]:
    """How large the write-ahead log is, and who has the database open."""
    log, shm = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    size = log.stat().st_size if log.exists() else 0
    users = proc.openers([path, log, shm])
    seen = ", ".join(map(str, users.processes[:NAMED])) or "no other process"
    if len(users.processes) > NAMED:
        seen += f" and {len(users.processes) - NAMED} more"
    if not proc.is_there():
        seen = "who, is not known here"
    elif users.unseen:
        seen += f"; processes that could not be looked into: {users.unseen}"
    found = f"{size / MIB:,.1f} MiB; open in: {seen}"
    if size <= WAL_WARNING_BYTES:
        yield Check("wal", "ok", found)
        return
    pinning = proc.readers(shm)
    time.sleep(PIN_WATCH_S)
    pinning &= proc.readers(shm)
    if pinning:
        whose = ", ".join(str(proc.Seen(pid, proc.name(pid))) for pid in sorted(pinning))
        found += f"; a read is open all the time in: {whose}"
    stop = f"end that read, or stop the process: `kill {' '.join(map(str, sorted(pinning)))}`"
    yield Check(
        "wal",
        "warn",
        f"{found}. It begins anew once no process holds an old snapshot open",
        (
            stop
            if pinning
            else f"see who has it open: `fuser {quoted(log)}`; stop who never ends a read"
        )
        + f"; then `sqlite3 -cmd '.timeout 5000' {quoted(path)} 'PRAGMA wal_checkpoint(TRUNCATE)'`",
    )


def space(path: Path) -> Iterator[Check]:
    folder = next((place for place in path.parents if os.path.isdir(place)), Path("/"))
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    size = path.stat().st_size if os.path.isfile(path) else 0
    found = f"{free / MIB:,.0f} MiB are free for a database of {size / MIB:,.1f} MiB"
    fix = f"make room: `df {quoted(folder)}; du -xh {quoted(folder)} | sort -h | tail`"
    if free < NO_ROOM_BYTES:
        yield Check("space", "fail", f"{found}: soon nothing can be written", fix)
    elif free < max(LITTLE_ROOM_BYTES, size):
        yield Check("space", "warn", f"{found}: too little for a backup or a VACUUM", fix)
    else:
        yield Check("space", "ok", found)


def litestream(path: Path) -> Iterator[Check]:
    has_folder = os.path.isdir(path.with_name(f".{path.name}-litestream"))
    seen = proc.running("litestream")
    if not has_folder and not seen:
        yield Check("litestream", "ok", "not seen here")
        return
    who = f"runs as {', '.join(str(one.pid) for one in seen)}" if seen else "is not running"
    yield Check(
        "litestream",
        "ok",
        f"{who}, its folder is {'there' if has_folder else 'not there'}. Writers need a busy"
        " timeout (5 s); under many writes, `PRAGMA wal_autocheckpoint = 0` in them saves it new"
        " snapshots; restore only while nobody has the database open",
    )


def clock(now_ms: int) -> Iterator[Check]:
    """Whether this machine's clock can be right at all."""
    if now_ms < _2024_MS:
        fix = "set it: `timedatectl set-ntp true`"
        yield Check("clock", "fail", "this machine's clock stands before 2024", fix)
