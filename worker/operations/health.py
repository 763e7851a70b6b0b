"""`projector health`: one line and an exit code, for a container or cron."""

import time
from pathlib import Path
from typing import Final

from session_projector.worker import linux as proc
from session_projector.worker.errors import Finding, quoted
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import DaemonLock, told

MOVES_WITHIN_S: Final = 3.0
"""A daemon that has events to fold has folded some by then."""
REBUILD_MOVES_WITHIN_S: Final = 300.0
"""A rebuild says every second how far it is, but not within a page of the log, which may take slow
code minutes. Who restarts it for that makes it begin anew."""


def check(path: Path) -> str:
    """What a daemon that is well does, in a line; raises `Finding` where it is not."""
    lock = DaemonLock(path)
    pid = lock.holder()
    if pid and proc.is_stopped(pid):
        raise Finding(f"the daemon (process {pid}) was stopped by a signal", f"kill -CONT {pid}")
    with Client.reading(path) as client:
        if pid is None:
            raise Finding("no daemon is alive", f"start one: `projector run -d {quoted(path)}`")
        _require_none_failed(client, lock)
        _require_rebuilds_to_move(client, lock)
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
    return f"{told(pid)}, position {min(now)}, newest event {newest}"


def _require_none_failed(client: Client, lock: DaemonLock) -> None:
    failed = client.rows("SELECT projection, why FROM projection_state WHERE state = 'failed'")
    for name, why in failed:
        if _is_run(lock, name):
            hint = f"see the others: `projector status -d {quoted(client.path)}`"
            raise Finding(f"a projection fails, {why}", hint)


def _require_rebuilds_to_move(client: Client, lock: DaemonLock) -> None:
    """What a daemon before left of a rebuild is old until this one begins it anew."""
    until = time.monotonic() + MOVES_WITHIN_S
    while stuck := [(name, s) for name, s in _rebuilds(client, lock) if s > REBUILD_MOVES_WITHIN_S]:
        if time.monotonic() > until:
            name, for_s = stuck[0]
            hint = f"see how far it is: `projector status -d {quoted(client.path)}`"
            raise Finding(f"the rebuild of {name} has not moved for {for_s:.0f} s", hint)
        time.sleep(0.05)


def _rebuilds(client: Client, lock: DaemonLock) -> list[tuple[str, float]]:
    """Those under way, and how long ago they said so."""
    sql = "SELECT projection, updated_at FROM projection_state WHERE state = 'rebuilding'"
    found = client.rows(sql)
    return [(name, time.time() - at / 1000) for name, at in found if _is_run(lock, name)]


def _positions(client: Client, lock: DaemonLock) -> list[int]:
    """Of what the daemon runs; of what is being rebuilt there is none yet."""
    rows = client.rows("SELECT name, position FROM checkpoint WHERE version > 0")
    return [int(at) for name, at in rows if _is_run(lock, name)]


def _is_run(lock: DaemonLock, name: str) -> bool:
    """Whether the daemon runs a projection; one that does not say may run any."""
    running = lock.running()
    return name in running or not running
