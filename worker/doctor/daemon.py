"""What `doctor` says of the daemon: alive, stuck, standing by or absent, and its projections."""

import time
from collections.abc import Iterator
from typing import Final

from session_projector.worker import linux as proc
from session_projector.worker.errors import quoted
from session_projector.worker.storage.check import Check
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import DaemonLock, told

WATCH_S: Final = 2.0
WATCH_POLL_S: Final = 0.05


def daemon(client: Client) -> Iterator[Check]:
    lock, path = DaemonLock(client.path), quoted(client.path)
    pid, running = lock.holder(), lock.running()
    if pid is None:
        said = "none is alive: nothing is folded until one runs"
        yield Check("daemon", "warn", said, f"`projector run -d {path}`")
        return
    who = told(pid)
    others = [seen for seen in proc.openers([lock.file]).processes if seen.pid != pid]
    standing_by = f"; standing by: {', '.join(map(str, others))}" if others else ""
    names = ", ".join(running) or "it does not say which projections"
    if pid and proc.is_stopped(pid):
        fix = f"let it go on: `kill -CONT {pid}`"
        yield Check("daemon", "fail", f"{who} was stopped by a signal{standing_by}", fix)
    elif waiting := _stuck(client, [*running]):
        yield _held_up(client, pid, f"{who}, {waiting}{standing_by}")
    else:
        yield Check("daemon", "ok", f"alive, {who}: {names}{standing_by}")


def _held_up(client: Client, pid: int, said: str) -> Check:
    """Stuck, or kept from writing by somebody else."""
    holders = proc.writers(client.path.with_name(client.path.name + "-shm")) - {pid}
    if holders:
        who = ", ".join(str(proc.Seen(holder, proc.name(holder))) for holder in sorted(holders))
        fix = f"end that transaction, or the process: `kill {' '.join(map(str, holders))}`"
        return Check("daemon", "fail", f"{said}: {who} holds the write lock", fix)
    if not pid:
        fix = (
            "see who has its lock, there and in the containers that share the folder, and restart"
            f" that: `fuser -v {quoted(DaemonLock(client.path).file)}`"
        )
        return Check("daemon", "fail", f"{said}: it is stuck, or no daemon", fix)
    fix = f"start it anew, nothing is lost: `kill -KILL {pid}`, then `projector run -d"
    return Check("daemon", "fail", f"{said}: it is stuck", f"{fix} {quoted(client.path)}`")


def _stuck(client: Client, names: list[str]) -> str:
    """What waits while no position moves; '' as soon as one does, or nothing waits."""
    before, newest = _standing(client, names)
    waiting = newest - min((position for _, position, _ in before), default=newest)
    deadline = time.monotonic() + WATCH_S
    while waiting > 0 and time.monotonic() < deadline:
        time.sleep(WATCH_POLL_S)
        now, _ = _standing(client, names)
        if now != before:
            return ""
    return f"{waiting:,} events wait, and none was folded in {WATCH_S:g} s" if waiting > 0 else ""


def _standing(client: Client, names: list[str]) -> tuple[list[tuple[str, int, int]], int]:
    """The checkpoints of those that tail, and the newest event, seen together."""
    rows = client.rows(
        "SELECT name, position, generation, (SELECT coalesce(max(seq), 0) FROM event_log)"
        " FROM checkpoint WHERE name NOT IN (SELECT projection FROM projection_state) ORDER BY name"
    )
    found = [row for row in rows if not names or row[0] in names]
    return [row[:3] for row in found], max((row[3] for row in found), default=0)


def projections(client: Client) -> Iterator[Check]:
    """Those that failed or are being rebuilt."""
    path = quoted(client.path)
    alive = DaemonLock(client.path).holder() is not None
    wrong = []
    for name, state, version, why, events, total in client.rows(
        "SELECT projection, state, version, why, events, total FROM projection_state"
        " ORDER BY projection"
    ):
        if state == "failed":
            said, fix = f"{name} failed: {why}", "mend that; the daemon tries again by itself"
        elif alive:
            said = f"{name} is being rebuilt as version {version}: {events:,} of {total:,} events"
            fix = f"wait; see how far it is: `projector status -d {path}`"
        else:
            said = f"a rebuild of {name} as version {version} was cut off"
            fix = f"`projector run -d {path}` does it"
        wrong.append(Check("projections", "warn", said, fix))
    count = client.value("SELECT count(*) FROM checkpoint")
    yield from wrong or [Check("projections", "ok", f"{count} of them, none failed or rebuilding")]
