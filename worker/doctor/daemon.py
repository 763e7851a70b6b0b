"""Checks of the daemon (alive, stuck, standing by or absent) and of its projections."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import quoted
from session_projector.worker.storage.check import Check
from session_projector.worker.storage.sqlite.connection import DaemonLock, told
from session_projector.worker.storage.sqlite.doctor import checks, progress

WATCH_S: Final = 2.0
WATCH_POLL_S: Final = 0.05


def daemon(path: Path) -> Iterator[Check]:
    lock = DaemonLock(path)
    pid, running = lock.holder(), lock.running()
    if pid is None:
        said = "none is alive: nothing is folded until one runs"
        yield Check("daemon", "warn", said, f"`projector run -d {quoted(path)}`")
        return
    who = told(pid)
    others = [other for other in linux.openers([lock.file]) if other != pid]
    standing_by = f"; standing by: {linux.named(others)}" if others else ""
    names = ", ".join(running) or "it does not say which projections"
    if pid and linux.is_stopped(pid):
        fix = f"resume it: `kill -CONT {pid}`"
        yield Check("daemon", "fail", f"{who} is suspended (SIGSTOP){standing_by}", fix)
    elif waiting := _stuck(path, [*running]):
        yield _held_up(path, pid, f"{who}, {waiting}{standing_by}")
    else:
        yield Check("daemon", "ok", f"alive, {who}: {names}{standing_by}")


def _held_up(path: Path, pid: int, said: str) -> Check:
    """The finding for a daemon that is stuck, or kept from writing by another process."""
    if holders := sorted(checks.lock_holders(path, "WRITE") - {pid}):
        said = f"{said}: {linux.named(holders)} holds the write lock"
        fix = f"end that transaction, or the process: `kill {' '.join(map(str, holders))}`"
        return Check("daemon", "fail", said, fix)
    if not pid:
        fix = (
            "see who has its lock, there and in the containers that share the folder, and restart"
            f" that: `fuser -v {quoted(DaemonLock(path).file)}`"
        )
        return Check("daemon", "fail", f"{said}: it is stuck, or no daemon", fix)
    fix = f"restart it, nothing is lost: `kill -KILL {pid}`, then `projector run -d"
    return Check("daemon", "fail", f"{said}: it is stuck", f"{fix} {quoted(path)}`")


def _stuck(path: Path, names: list[str]) -> str:
    """How many events wait while no position moves; '' where one moves or nothing waits."""
    before, newest = progress.tailing(path, names)
    waiting = newest - min((position for position, _ in before.values()), default=newest)
    if waiting <= 0:
        return ""
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(WATCH_POLL_S)
        if progress.tailing(path, names)[0] != before:
            return ""
    return f"{waiting:,} events wait, and none was folded in {WATCH_S:g} s"


def projections(path: Path) -> Iterator[Check]:
    """Check for projections that failed or are being rebuilt."""
    alive = DaemonLock(path).holder() is not None
    wrong = []
    for name, state in progress.states(path).items():
        if state.state == "failed":
            said = f"{name} failed: {state.why}"
            fix = "fix that; the daemon tries again by itself"
        elif alive:
            at = f"{state.events:,} of {state.total:,} events"
            said = f"{name} is being rebuilt as version {state.version}: {at}"
            fix = f"wait; see how far it is: `projector status -d {quoted(path)}`"
        else:
            said = f"a rebuild of {name} as version {state.version} was cut off"
            fix = f"`projector run -d {quoted(path)}` does it"
        wrong.append(Check("projections", "warn", said, fix))
    found = f"{len(progress.tailing(path)[0])} of them, none failed or rebuilding"
    yield from wrong or [Check("projections", "ok", found)]
