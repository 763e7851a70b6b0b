"""Whether a daemon keeps up, seen from outside of it."""

import time
from typing import Final

from session_projector.worker import linux
from session_projector.worker.errors import CheckFailed
from session_projector.worker.folding.checkpoints import fits_log
from session_projector.worker.storage.port import (
    FOLD_AGAIN,
    Database,
    Leader,
    ProjectionStatus,
    Store,
)

MOVES_WITHIN_S: Final = 3.0
"""A daemon with events to fold must make progress within this time."""
REBUILD_MOVES_WITHIN_S: Final = 300.0
"""A rebuild reports its progress every second, but not within a page of the log, and slow code may
take minutes for one. Restarting it too early makes it start again from the beginning."""


def check(database: Database) -> str:
    """Describe healthy daemons in one line; raises `CheckFailed` if one is not healthy."""
    leaders = database.leadership().leaders()
    for leader in leaders:
        if leader.suspended:
            raise CheckFailed(
                f"the daemon ({leader}) is suspended (SIGSTOP)",
                "resume it, as no other takes over from it:"
                f" {linux.ending([leader.pid], '-CONT', seen=leader.seen)}",
            )
        if leader.trouble:
            hint = "see what keeps it back: `projector doctor`"
            raise CheckFailed(f"the daemon ({leader}) {leader.trouble}", hint)
    with database.open() as store:
        for name, stored in store.checkpoints.all().items():
            if not fits_log(store, stored.checkpoint):
                at = f"{name}@{stored.checkpoint.position}"
                raise CheckFailed(
                    f"event_log was truncated or replaced: the checkpoint {at} does not match it",
                    FOLD_AGAIN,
                )
        if not leaders:
            if barred := database.leadership().barred():
                said = f"no daemon is alive, and none can be started by this user: {barred}"
                raise CheckFailed(said, "see what to do: `projector doctor`")
            raise CheckFailed("no daemon is alive", "start one: `projector run`")
        said = "; ".join(_check(store, leader) for leader in leaders)
    # A daemon with nothing to fold waits for no lock.
    for holder in database.locked_by(but=max(leader.local_pid for leader in leaders)):
        what = f"{holder.who} has held the write lock for some time: nobody else can write"
        raise CheckFailed(what, holder.cure)
    return said


def restart(leader: Leader, options: str = "") -> str:
    """How to end a daemon and start one with some options in its place."""
    end = "end it where it runs"
    if leader.local_pid:
        end = linux.ending([leader.pid], seen=leader.seen)
    return f"{end}, then `projector run{options}`"


def restart_same(leader: Leader) -> str:
    """How to restart a daemon, which may run in a terminal or as a service."""
    return f"restart it: {restart(leader)} (with the options it had), unless systemd does that"


def _check(store: Store, leader: Leader) -> str:
    for report in _reports(store, leader, "failed").values():
        hint = "see all projections: `projector status`"
        raise CheckFailed(f"a projection is failing: {report.why}", hint)
    for name, stored in store.checkpoints.all().items():
        if (
            leader.runs(name)
            and stored.checkpoint.position
            and not store.views.exists(stored.table)
        ):
            raise CheckFailed(
                f"the table {stored.table.name} of {name} is gone: somebody dropped it",
                "see how to build it again: `projector doctor`",
            )
    _require_rebuilds_to_move(store, leader)
    newest = store.log.newest()
    before = _positions(store, leader)
    if not before:
        return f"{leader}, all views are being rebuilt, newest event {newest}"
    until = time.monotonic() + MOVES_WITHIN_S
    while newest > max(now := _positions(store, leader) or before) and max(now) == max(before):
        if time.monotonic() > until:
            for holder in store.log.held_back_by():
                raise CheckFailed(
                    f"events wait for {holder.who}; the daemon ({leader}) is at {max(now)}",
                    f"end it where it was forgotten: {holder.cure}",
                )
            raise CheckFailed(
                f"the daemon ({leader}) is stuck at {max(now)}; the newest event is {newest}",
                "see why: `projector doctor`",
            )
        time.sleep(0.05)
    counts = [store.quarantine.count(name) for name in store.quarantine.projections()]
    left = max((one.quarantined - one.dismissed for one in counts), default=0)
    said = f", in quarantine: {left:,}" if left else ""
    return f"{leader}, position {min(now)}, newest event {newest}{said}"


def _require_rebuilds_to_move(store: Store, leader: Leader) -> None:
    """Wait a little: the report of an interrupted rebuild is old until it starts again."""
    until = time.monotonic() + MOVES_WITHIN_S
    while stuck := [
        (name, for_s)
        for name, report in _reports(store, leader, "rebuilding").items()
        if (for_s := time.time() - report.updated_at / 1000) > REBUILD_MOVES_WITHIN_S
    ]:
        if time.monotonic() > until:
            name, for_s = stuck[0]
            hint = "see its progress: `projector status`"
            raise CheckFailed(f"the rebuild of {name} made no progress for {for_s:.0f} s", hint)
        time.sleep(0.05)


def _reports(store: Store, leader: Leader, state: str) -> dict[str, ProjectionStatus]:
    """What those projections report that the daemon runs and that are in a state."""
    reports = store.checkpoints.reports().items()
    return {name: one for name, one in reports if one.state == state and leader.runs(name)}


def _positions(store: Store, leader: Leader) -> list[int]:
    """The positions of what the daemon runs, except for what is being rebuilt."""
    return [
        int(stored.checkpoint.position)
        for name, stored in store.checkpoints.all().items()
        if stored.checkpoint.version > 0 and leader.runs(name)
    ]
