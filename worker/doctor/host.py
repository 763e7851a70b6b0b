"""Checks of the host: file system, free space, Litestream, the clock."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import quoted
from session_projector.worker.storage.port import Check

MIB: Final = 1024 * 1024
LITTLE_ROOM_BYTES: Final = 64 * MIB
NO_ROOM_BYTES: Final = 8 * MIB
_2024_MS: Final = 1_704_067_200_000

SHARED_FILESYSTEMS: Final = frozenset(
    """
    nfs nfs4 cifs smb2 smb3 smbfs 9p v9fs virtiofs vboxsf vmhgfs prl_fs drvfs fakeowner osxfs ceph
    glusterfs afs lustre coda ncpfs beegfs gfs2 ocfs2 orangefs webdav davfs sshfs ceph-fuse
    gvfsd-fuse grpcfuse vmhgfs-fuse prl_fsd rclone s3fs gcsfuse juicefs mount-s3
    """.split()  # noqa: SIM905
)
"""Network and virtual file systems: the other side does not see SQLite's locks and memory."""
_DOUBTFUL: Final = {
    "overlay": "a container's own layer: gone with the container",
    "aufs": "a container's own layer: gone with the container",
    "tmpfs": "memory: gone at the next restart",
    "ramfs": "memory: gone at the next restart",
    "fuse": "whether SQLite's locks and shared memory hold there is up to the program behind it",
}


def filesystem(path: Path, mounts: Path = linux.MOUNTS) -> Iterator[Check]:
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        yield Check("filesystem", "ok", "its type is unknown here")
        return
    kind, place = linux.mounted(path.parent, lines)
    found = f"{kind} at {place}"
    elsewhere = (
        "move it to a local disk, or a volume on one: stop all that use it, then"
        f" `sqlite3 {quoted(path)} \"VACUUM INTO '/a/local/disk/local.db'\"`"
    )
    if kind.removeprefix("fuse.") in SHARED_FILESYSTEMS:
        why = "SQLite's locks and shared memory do not hold there, and the database will break"
        yield Check("filesystem", "fail", f"{found}: {why}", elsewhere)
    elif why := _DOUBTFUL.get(kind.partition(".")[0], ""):
        yield Check("filesystem", "warn", f"{found}: {why}", elsewhere)
    else:
        yield Check("filesystem", "ok", found)


def space(path: Path) -> Iterator[Check]:
    room, size = _room(path)
    found, fix = free(path), make_room(path)
    if room < NO_ROOM_BYTES:
        yield Check("space", "fail", f"{found}: soon nothing can be written", fix)
    elif room < max(LITTLE_ROOM_BYTES, size):
        yield Check("space", "warn", f"{found}: too little for a backup or a VACUUM", fix)
    else:
        yield Check("space", "ok", found)


def free(path: Path) -> str:
    """How much room a database has, in words."""
    room, size = _room(path)
    return f"{room / MIB:,.0f} MiB are free for a database of {size / MIB:,.1f} MiB"


def make_room(path: Path) -> str:
    """The commands that show what takes the room; another disk's where a database has enough."""
    folder = quoted(_folder(path))
    look = f"make room: `df {folder}; du -xh {folder} | sort -h | tail`"
    if _room(path)[0] < NO_ROOM_BYTES:
        return look
    return f"{look}, and where SQLite has temporary files: `df /var/tmp /tmp`"


def _room(path: Path) -> tuple[int, int]:
    """Bytes that are free for a database, and those of its file."""
    room = os.statvfs(_folder(path))
    return room.f_bavail * room.f_frsize, path.stat().st_size if os.path.isfile(path) else 0


def _folder(path: Path) -> Path:
    return next((place for place in path.parents if os.path.isdir(place)), Path("/"))


def litestream(path: Path) -> Iterator[Check]:
    has_folder = os.path.isdir(path.with_name(f".{path.name}-litestream"))
    seen = linux.running("litestream")
    if not has_folder and not seen:
        yield Check("litestream", "ok", "not seen here")
        return
    who = f"runs as {', '.join(map(str, seen))}" if seen else "is not running"
    yield Check(
        "litestream",
        "ok",
        f"{who}, its folder is {'there' if has_folder else 'not there'}. Writers need a busy"
        " timeout (5 s); under many writes, `PRAGMA wal_autocheckpoint = 0` in them saves it new"
        " snapshots; restore only while nobody has the database open",
    )


def clock(now_ms: int) -> Iterator[Check]:
    """Check that the clock of this machine can be right at all."""
    if now_ms < _2024_MS:
        fix = "set it: `timedatectl set-ntp true`"
        yield Check("clock", "fail", "the clock of this machine is before 2024", fix)
