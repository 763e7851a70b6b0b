"""Processes: others as seen in /proc with the files that they have open or locked; our own user."""

import os
import pwd
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
MOUNTS: Final = Path("/proc/self/mountinfo")


def is_there() -> bool:
    """Whether this system has a Linux /proc."""
    return (PROC / "self" / "fd").is_dir()


def machine() -> str:
    """Whose process numbers those are that are seen here: a boot of a system, and a PID namespace
    of it, as a container has its own."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def openers(files: Iterable[Path]) -> list[int]:
    """The other processes that have one of the files open, compared by device and inode.

    Only root sees the open files of another user's processes.
    """
    wanted = {file.name: identity for file in files if (identity := _identity(file))}
    found = []
    for pid in _pids():
        with suppress(OSError):  # it has ended or belongs to another user
            if pid != os.getpid() and any(_is_open(pid, wanted)):
                found.append(pid)
    return found


def deleted(file: Path) -> Iterator[tuple[int, Path]]:
    """Yield the other processes that have a deleted file open, and where each has it."""
    for pid in _pids():
        with suppress(OSError):  # it has ended or belongs to another user
            folder = PROC / str(pid) / "fd"
            for link in map(folder.joinpath, os.listdir(folder) if pid != os.getpid() else ()):
                if os.readlink(link) == f"{file} (deleted)":
                    yield pid, link
                    break


def running(called: str) -> list[int]:
    """The processes with a name."""
    return [pid for pid in _pids() if name(pid) == called]


def hide(secrets: Iterable[str]) -> None:
    """Overwrite some texts in what `ps` shows of this process, as far as that can be done."""
    import ctypes

    with suppress(OSError, ValueError, IndexError):
        said = (PROC / "self/cmdline").read_bytes()
        fields = (PROC / "self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
        if end - start != len(said) or ctypes.string_at(start, len(said)) != said:
            return
        for secret in map(str.encode, secrets):
            at = said.find(secret)
            while at >= 0:
                ctypes.memset(start + at, ord("*"), len(secret))
                at = said.find(secret, at + len(secret))


def named(pids: Iterable[int]) -> str:
    """Processes by number and name as text, without their arguments, which may contain secrets."""
    return ", ".join(f"{pid} ({name(pid)})" for pid in sorted(pids))


def ending(pids: Iterable[int], signal: str = "", *, seen: bool) -> str:
    """The command that sends processes a signal; the one that shows who they are where they were
    not `seen` to hold what they are taken to hold."""
    numbers = [str(pid) for pid in sorted(pids)]
    if seen:
        return f"`{' '.join(['kill', *([signal] if signal else []), *numbers])}`"
    return f"look at process {', '.join(numbers)} with `ps -fp {','.join(numbers)}`"


def name(pid: int) -> str:
    """The name of a process, `?` if it has ended."""
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    return "?"


def started_s(pid: int) -> float | None:
    """When a process started, in Unix time; None if it has ended."""
    with suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        uptime = float((PROC / "uptime").read_text().split()[0])
        return time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")  # see proc(5)
    return None


def is_stopped(pid: int) -> bool:
    """Whether a process is suspended, by a signal or a debugger."""
    return _status(pid).get("State", [""])[0] in ("T", "t")


def locks(file: Path, kind: str = "POSIX") -> Iterator[tuple[int, str, int]]:
    """Yield process, READ or WRITE, and first byte of each lock of a kind on a file."""
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


def has_open(pid: int, file: Path) -> bool | None:
    """Whether a process has a file open; None where that cannot be seen, as of another user's.

    A lock outlives the process that took it where another one shares its descriptor, and the number
    that /proc/locks goes on to name may be a stranger's by then.
    """
    if identity := _identity(file):
        try:
            return any(_is_open(pid, {file.name: identity}))
        except PermissionError:
            return None
        except OSError:  # it has ended
            pass
    return False


def may_write(pid: int, file: Path) -> bool:
    """Whether the user of a process may write a file, by its mode."""
    with suppress(OSError, KeyError, IndexError):
        said, found = _status(pid), file.stat()
        if int(said["Uid"][1]) in (0, found.st_uid):
            return True
        groups = {said["Gid"][1], *said["Groups"]}
        return bool(found.st_mode & (0o020 if str(found.st_gid) in groups else 0o002))
    return False


def holds(pid: int, file: Path) -> int | None:
    """The number, seen from here, of the process that calls itself `pid` and has locked a file.

    The two differ if it runs in a container. None if no such process can be seen, or it does not
    have the file open; without a Linux /proc, `pid` is believed.
    """
    if not is_there():
        return pid
    locking = {seen for seen, _, _ in locks(file, "FLOCK")}
    for seen in sorted(locking, key=lambda seen: seen != pid):
        if _own_number(seen) == pid and has_open(seen, file) is not False:
            return seen
    # On some filesystems /proc/locks and stat name the file differently.
    return pid if not locking and has_open(pid, file) else None


def _own_number(pid: int) -> int:
    """The number of a process in its own PID namespace."""
    return int(_status(pid).get("NSpid", [str(pid)])[-1])


def _status(pid: int) -> dict[str, list[str]]:
    """What the kernel says of a process: the words of each field, none if it has ended."""
    with suppress(OSError):
        lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
        return {field: said.split() for field, _, said in (line.partition(":") for line in lines)}
    return {}


def user(pid: int) -> int | None:
    """The effective user of a process, None if it has ended."""
    with suppress(OSError):
        return (PROC / str(pid)).stat().st_uid
    return None


_was_root = False


def run_as(uid: int, gid: int) -> str:
    """The beginning of a command line that runs the rest as a user."""
    with suppress(KeyError):
        return f"runuser -u {pwd.getpwuid(uid).pw_name} --"
    return f"setpriv --reuid={uid} --regid={gid} --clear-groups --"


def was_root() -> bool:
    """Whether root called this program, which became another user: what it prints, root pastes."""
    return _was_root


def become(uid: int, gid: int, readable: Iterable[Path]) -> bool:
    """Be another user from here on, for good, with that user's groups.

    False, and nothing is changed, where that user could not read the files, or root has no such
    right here.
    """
    global _was_root
    before, groups = (os.getgroups(), os.getegid(), os.geteuid()), {gid}
    with suppress(KeyError):
        entry = pwd.getpwuid(uid)
        gid, groups = entry.pw_gid, {gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)}
    try:
        os.setgroups(sorted(groups))
        os.setegid(gid)
        os.seteuid(uid)
        if all(os.access(file, os.R_OK, effective_ids=True) for file in readable):
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            _was_root = True
            return True
    except OSError:  # in a container that lacks the capability
        pass
    os.seteuid(before[2])
    os.setegid(before[1])
    os.setgroups(before[0])
    return False


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())


def _is_open(pid: int, wanted: dict[str, tuple[int, int]]) -> Iterator[bool]:
    """Yield for each open file of a process whether it is wanted."""
    folder = PROC / str(pid) / "fd"
    for descriptor in os.listdir(folder):
        link = folder / descriptor
        with suppress(FileNotFoundError):
            # By name first: a stat on a dead network filesystem never returns.
            called = os.path.basename(os.readlink(link))
            yield called in wanted and _identity(link) == wanted[called]


def _identity(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = file.stat()
        return found.st_dev, found.st_ino
    return None


def mounted(place_of: Path, lines: list[bytes]) -> tuple[str, str]:
    """Type and path of the mount that holds a path; of two at one place, the later."""
    best, kind = "", "unknown"
    for line in lines:
        before, _, after = line.partition(b" - ")  # 36 35 98:0 / /mnt rw master:1 - ext3 /dev/x rw
        if len(fields := before.split()) < 5 or not after:
            continue
        place = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields[4]))
        if place_of.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, os.fsdecode(after.split()[0])
    return kind, best
