"""Waiting until the views include an event, whoever wrote it."""

import time
from collections.abc import Collection
from typing import Final

from session_projector.worker import registry
from session_projector.worker.errors import CheckFailed, UsageError
from session_projector.worker.folding.checkpoints import does_not_fit, fits_log
from session_projector.worker.storage.port import Database, Store

TIMEOUT_S: Final = 30.0
FIRST_POLL_S: Final = 0.001
LONGEST_POLL_S: Final = 0.25


def wait(
    database: Database,
    store: Store,
    seq: int | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    names: Collection[str] = (),
) -> int:
    """Wait until each projection has reached a position; returns the lowest.

    Without a `seq`, the position is that of the newest event now. Without `names`, it waits for the
    projections that the daemon runs, or for all known ones if none is running. Raises `CheckFailed`
    after the timeout, and `InterventionRequired` if a checkpoint does not match the log.
    """
    if seq is None:
        seq = store.log.newest()
    known = names or [projection.name for projection in registry.known()]
    leadership = database.leadership()
    started = time.monotonic()
    while True:
        leader = None if names else leadership.leader()
        asked = (leader.running if leader else ()) or known
        positions = _positions(store, asked)
        reached, waited_s = min(positions.values()), time.monotonic() - started
        if reached >= seq or waited_s >= timeout_s:
            _require_fit(store, asked)
            if reached >= seq:
                return reached
            raise _too_late(database, store, seq, positions, timeout_s)
        # At most a tenth more of the time, so that hundreds of long waits cost almost nothing.
        poll_s = min(max(waited_s / 10, FIRST_POLL_S), LONGEST_POLL_S)
        time.sleep(min(poll_s, timeout_s - waited_s))
        store.check_identity()


def require_known(store: Store, name: str) -> None:
    """Raise `UsageError` for a projection that never ran and is not known here either."""
    names = [*(p.name for p in registry.known()), *store.checkpoints.all()]
    if name not in names:
        raise UsageError(
            f"there is no projection {name}", f"there are {', '.join(dict.fromkeys(names))}"
        )


def _positions(store: Store, names: Collection[str]) -> dict[str, int]:
    """The checkpoints' positions; 0 for a projection that never ran."""
    stored = store.checkpoints.all()
    return {name: int(stored[name].checkpoint.position) if name in stored else 0 for name in names}


def _require_fit(store: Store, names: Collection[str]) -> None:
    """Raise `InterventionRequired` for a checkpoint that does not match the log."""
    for name, stored in store.checkpoints.all().items():
        if name in names and not fits_log(store, stored.checkpoint):
            raise does_not_fit(name, stored.checkpoint.position)


def _too_late(
    database: Database, store: Store, seq: int, positions: dict[str, int], timeout_s: float
) -> CheckFailed:
    reports = store.checkpoints.reports()
    why = {name: report.why for name, report in reports.items() if report.state == "failed"}
    behind = [
        f"{name} is at {at}" + (f" ({why[name]})" if name in why else "")
        for name, at in positions.items()
        if at < seq
    ]
    leader, newest = database.leadership().leader(), store.log.newest()
    ahead = f"; the newest event is {newest}" if newest < seq else ""
    alive = f"a daemon is alive, process {leader.pid}" if leader else "no daemon is alive"
    return CheckFailed(
        f"position {seq} was not reached within {timeout_s:g} s: {', '.join(behind)}{ahead};"
        f" {alive}",
        "see why: `projector status`" if leader else "start one: `projector run`",
    )
