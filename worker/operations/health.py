"""`projector health`: one line and an exit code, for a container or cron."""

import time
from typing import Final

from session_projector.worker.errors import Finding
from session_projector.worker.storage.port import Database, Leader, Store

MOVES_WITHIN_S: Final = 3.0
"""A daemon that has events to fold has folded some by then."""
REBUILD_MOVES_WITHIN_S: Final = 300.0
"""A rebuild says every second how far it is, but not within a page of the log, which may take slow
code minutes. Who restarts it for that makes it begin anew."""


def check(database: Database) -> str:
    """What a daemon that is well does, in a line; raises `Finding` where it is not."""
    leader = database.leadership().leader()
    if leader and leader.suspended:
        raise Finding(f"the daemon ({leader}) was stopped by a signal", f"kill -CONT {leader.pid}")
    with database.open() as store:
        if leader is None:
            raise Finding("no daemon is alive", "start one: `projector run`")
        _require_none_failed(store, leader)
        _require_rebuilds_to_move(store, leader)
        newest = store.log.newest()
        before = _positions(store, leader)
        if not before:
            return f"{leader}, all views are being rebuilt, newest event {newest}"
        until = time.monotonic() + MOVES_WITHIN_S
        while newest > max(now := _positions(store, leader) or before) and max(now) == max(before):
            if time.monotonic() > until:
                raise Finding(
                    f"the daemon ({leader}) stays at {max(now)}, and the newest event is {newest}",
                    "see what it does: `projector status`",
                )
            time.sleep(0.05)
    return f"{leader}, position {min(now)}, newest event {newest}"


def _require_none_failed(store: Store, leader: Leader) -> None:
    for name, report in store.checkpoints.reports().items():
        if report.state == "failed" and leader.runs(name):
            hint = "see the others: `projector status`"
            raise Finding(f"a projection fails, {report.why}", hint)


def _require_rebuilds_to_move(store: Store, leader: Leader) -> None:
    """What a daemon before left of a rebuild is old until this one begins it again."""
    until = time.monotonic() + MOVES_WITHIN_S
    while stuck := [(n, s) for n, s in _rebuilds(store, leader) if s > REBUILD_MOVES_WITHIN_S]:
        if time.monotonic() > until:
            name, for_s = stuck[0]
            hint = "see how far it is: `projector status`"
            raise Finding(f"the rebuild of {name} has not moved for {for_s:.0f} s", hint)
        time.sleep(0.05)


def _rebuilds(store: Store, leader: Leader) -> list[tuple[str, float]]:
    """Those under way, and how many seconds ago they said so."""
    return [
        (name, time.time() - report.updated_at / 1000)
        for name, report in store.checkpoints.reports().items()
        if report.state == "rebuilding" and leader.runs(name)
    ]


def _positions(store: Store, leader: Leader) -> list[int]:
    """Of what the daemon runs; of what is being rebuilt there is none yet."""
    return [
        int(stored.checkpoint.position)
        for name, stored in store.checkpoints.all().items()
        if stored.checkpoint.version > 0 and leader.runs(name)
    ]
