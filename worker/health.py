"""`projector health`: one line and an exit code, for a container or cron."""

import time
from pathlib import Path
from typing import Final

from worker import proc
from worker.client import Client
from worker.database import DaemonLock, told
from worker.errors import Finding, quoted

MOVES_WITHIN_S: Final = 3.0
"""A daemon that has events to fold has folded some by then."""


def check(path: Path) -> str:
    """What a daemon that is well does, in a line; raises `Finding` where it is not."""
    lock = DaemonLock(path)
    pid = lock.holder()
    if pid and proc.is_stopped(pid):
        raise Finding(f"the daemon (process {pid}) was stopped by a signal", f"kill -CONT {pid}")
    if pid is None:
        raise Finding("no daemon is alive", f"start one: `projector run -d {quoted(path)}`")
    with Client.reading(path) as client:
        newest = int(client.value("SELECT coalesce(max(seq), 0) FROM event_log"))
        before = _positions(client, lock)
        if not before:
            return f"{told(pid)}, all views are being rebuilt, newest event {newest}"
        until = time.monotonic() + MOVES_WITHIN_S
        while newest > max(now := _positions(client, lock) or before) and max(now) == max(before):
            if time.monotonic() > until:
                raise Finding(
                    f"the daemon ({told(pid)}) stays at {max(now)}, and the newest event is"
                    f" {newest}",
                    f"see what it does: `projector status -d {quoted(path)}`",
                )
            time.sleep(0.05)
        failed = client.rows("SELECT projection, why FROM projection_state WHERE state = 'failed'")
        running = lock.running()
        for name, why in failed:
            if name in running or not running:
                hint = f"see the others: `projector status -d {quoted(path)}`"
                raise Finding(f"a projection fails, {why}", hint)
    return f"{told(pid)}, position {min(now)}, newest event {newest}"


def _positions(client: Client, lock: DaemonLock) -> list[int]:
    """Of what the daemon runs; of what is being rebuilt there is none yet."""
    running = lock.running()
    rows = client.rows("SELECT name, position FROM checkpoint WHERE version > 0")
    return [int(at) for name, at in rows if name in running or not running]
