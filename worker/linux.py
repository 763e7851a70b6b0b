"""What /proc says of other processes: which files they have open, and which they have locked."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


def is_there() -> bool:
    """Whether this system has such a /proc at all."""
    return (PROC / "self" / "fd").is_dir()


def openers(files: Iterable[Path]) -> list[int]:
    """The other processes that have one of the files open, by device and inode.

    Only root sees what another user's processes have open.
    """
    wanted = {file.name: identity for file in files if (identity := _identity(file))}
    found = []
    for pid in _pids():
        with suppress(OSError):  # it has ended, or is another user's
            if pid != os.getpid() and any(_is_open(pid, wanted)):
                found.append(pid)
    return found


def running(called: str) -> list[int]:
    """The processes of that name."""
    return [pid for pid in _pids() if name(pid) == called]


def named(pids: Iterable[int]) -> str:
    """Processes by number and name, without their arguments, which may hold secrets."""
    return ", ".join(f"{pid} ({name(pid)})" for pid in sorted(pids))


def name(pid: int) -> str:
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    return "?"


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has suspended a process."""
    with suppress(OSError, IndexError):
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        return stat.rpartition(")")[2].split()[0] in ("T", "t")
    return False


def locks(file: Path, kind: str = "POSIX") -> Iterator[tuple[int, str, int]]:
    """Process, READ or WRITE, and first byte of each lock of a kind on a file."""
    identity = _identity(file)
    try:
        lines = (PROC / "locks").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()  # 1: POSIX ADVISORY WRITE 3568 fd:00:2531475 120 120
        if identity and len(fields) == 8 and fields[1] == kind:
            major, minor, inode = fields[5].split(":")
            device = os.makedev(int(major, 16), int(minor, 16))
            if (device, int(inode)) == identity:
                yield int(fields[4]), fields[3], int(fields[6])


def holds(pid: int, file: Path) -> int | None:
    """The process, by its number here, that called itself `pid` and has a whole file locked.

    In a container it may have called itself otherwise. None where no such process is to be seen;
    where there is no such /proc, its word is taken.
    """
    if not is_there():
        return pid
    locking = {seen for seen, _, _ in locks(file, "FLOCK")}
    for seen in sorted(locking, key=lambda seen: seen != pid):
        if _own_number(seen) == pid:
            return seen
    # /proc/locks does not name the file as stat does on every file system.
    identity = _identity(file)
    with suppress(OSError):
        if not locking and identity and any(_is_open(pid, {file.name: identity})):
            return pid
    return None


def _own_number(pid: int) -> int:
    """The number of a process in its own namespace."""
    with suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return pid


def user(pid: int) -> int | None:
    """The effective user of a process; None where it has ended."""
    with suppress(OSError):
        return (PROC / str(pid)).stat().st_uid
    return None


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())


def _is_open(pid: int, wanted: dict[str, tuple[int, int]]) -> Iterator[bool]:
    """Whether each file that a process has open is wanted."""
    folder = PROC / str(pid) / "fd"
    for descriptor in os.listdir(folder):
        link = folder / descriptor
        with suppress(FileNotFoundError):
            # By its name first: a stat of anything on a dead network file system never returns.
            called = os.path.basename(os.readlink(link))
            yield called in wanted and _identity(link) == wanted[called]


def _identity(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = file.stat()
        return found.st_dev, found.st_ino
    return None
