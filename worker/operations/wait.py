"""Waiting until the views include an event, whoever wrote it."""

import time
from collections.abc import Collection
from typing import Final

from session_projector.projections import BUILT_IN
from session_projector.worker import registry
from session_projector.worker.errors import CheckFailed, UsageError
from session_projector.worker.folding.checkpoints import does_not_fit, fits_log
from session_projector.worker.folding.deferral import KEY_SHOWN
from session_projector.worker.storage.port import Checkpoint, Database, Store

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
    needs_daemon: bool = False,
) -> int:
    """Wait until the views of each projection include the event at a position; returns the lowest
    position that they have reached.

    Views of other sessions that are deferred are not waited for. Without a `seq` it waits for all
    events up to the newest one now, and for all views. Without `names`, it waits for the
    projections that the daemon runs, or for all known ones if none is running. Raises `CheckFailed`
    after the timeout, or at once where no daemon is alive and one is needed, and
    `InterventionRequired` if a checkpoint does not match the log.
    """
    event = seq
    if seq is None:
        seq = store.log.newest()
    known = names or [projection.name for projection in registry.known(store=store)]
    leadership = database.leadership()
    started = time.monotonic()
    while True:
        leader = None if names else leadership.leader()
        asked = (leader.running if leader else ()) or known
        positions = _positions(store, asked, event)
        reached, waited_s = min(positions.values()), time.monotonic() - started
        if reached < seq and needs_daemon and not leadership.leader():
            raise CheckFailed(
                f"no daemon is alive to fold up to position {seq}", "start one: `projector run`"
            )
        needs_daemon = False  # another one takes over from that
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
        registry.require_usable(name, store)
        raise UsageError(
            f"there is no projection {name}", f"there are {', '.join(dict.fromkeys(names))}"
        )


def _positions(store: Store, names: Collection[str], seq: int | None) -> dict[str, int]:
    """Up to where the views hold their events, only that of the event at `seq` if one is given; 0
    for a projection that never ran."""
    stored = store.checkpoints.all()
    return {
        name: _reached(store, stored[name].checkpoint, seq) if name in stored else 0
        for name in names
    }


def _reached(store: Store, checkpoint: Checkpoint, seq: int | None) -> int:
    event = store.log.event(seq) if checkpoint.deferred and seq is not None else None
    projection = next((one for one in BUILT_IN if one.name == checkpoint.name), None)
    if event is None or projection is None:
        return checkpoint.complete
    behind = [
        view.position
        for key, view in checkpoint.deferred.items()
        if event.key in (projection.log_keys(key) or ())
    ]
    return min(behind, default=checkpoint.position)


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
    for name, stored in store.checkpoints.all().items():
        for key, view in stored.checkpoint.costly.items():
            if view.position < seq:
                why.setdefault(name, f"{key[:KEY_SHOWN]} is deferred, as it costs much to write")
    behind = [
        f"{name} is at {at}" + (f" ({why[name]})" if name in why else "")
        for name, at in positions.items()
        if at < seq
    ]
    leader, newest = database.leadership().leader(), store.log.newest()
    if newest < seq:
        raise CheckFailed(
            f"there is no event {seq} in {store.name} yet, after {timeout_s:g} s: the newest is"
            f" {newest}",
            "wait for that one: `projector wait`",
        )
    alive = f"a daemon is alive, {leader}" if leader else "no daemon is alive"
    return CheckFailed(
        f"position {seq} was not reached within {timeout_s:g} s: {', '.join(behind)}; {alive}",
        "see why: `projector doctor`" if leader else "start one: `projector run`",
    )
