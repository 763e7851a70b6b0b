"""Waiting until views hold an event: for one's own write, whatever wrote it."""

import time
from collections.abc import Collection
from typing import Final

from session_projector.worker import registry
from session_projector.worker.errors import BadUsage, Finding, quoted
from session_projector.worker.operations.projections import fits_log
from session_projector.worker.replay.rebuild import unfit
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import DaemonLock

TIMEOUT_S: Final = 30.0
FIRST_POLL_S: Final = 0.001
LONGEST_POLL_S: Final = 0.25


def wait(
    client: Client,
    seq: int | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    names: Collection[str] = (),
) -> int:
    """Until each projection has reached a position; returns the lowest.

    `seq` None: the newest event there is now. `names` empty: all that the daemon runs, or that are
    known here where none is alive. Raises `Finding` when it takes longer, and
    `NeedsPerson` where the positions are of another log.
    """
    if seq is None:
        seq = int(client.value("SELECT coalesce(max(seq), 0) FROM event_log"))
    known = names or [projection.name for projection in registry.known()]
    started = time.monotonic()
    while True:
        asked = names or [*DaemonLock(client.path).running()] or known
        positions = _positions(client, asked)
        reached, waited_s = min(positions.values()), time.monotonic() - started
        if reached >= seq or waited_s >= timeout_s:
            _require_fit(client, asked)
            if reached >= seq:
                return reached
            raise _too_late(client, seq, positions, timeout_s)
        # A tenth more of the time at most, so that hundreds that wait long cost next to nothing.
        poll_s = min(max(waited_s / 10, FIRST_POLL_S), LONGEST_POLL_S)
        time.sleep(min(poll_s, timeout_s - waited_s))
        client.identity.check()


def require_known(client: Client, name: str) -> None:
    """Raises `BadUsage` for a projection that never ran and is not known here either."""
    names = [*_positions(client, ()), *(p.name for p in registry.known())]
    if name not in names:
        raise BadUsage(
            f"there is no projection {name}", f"there are {', '.join(dict.fromkeys(names))}"
        )


def _positions(client: Client, names: Collection[str]) -> dict[str, int]:
    """As `checkpoint` has them; 0 where nothing ran yet. All there are, where none is named."""
    found = {
        str(name): int(at) for name, at in client.rows("SELECT name, position FROM checkpoint")
    }
    return {name: found.get(name, 0) for name in names} if names else found


def _require_fit(client: Client, names: Collection[str]) -> None:
    """A position of another log says nothing of this one."""
    for name, *remembered in client.rows("SELECT name, position, digest FROM checkpoint"):
        if name in names and not fits_log(client, *remembered):
            raise unfit(name, remembered[0])


def _too_late(client: Client, seq: int, positions: dict[str, int], timeout_s: float) -> Finding:
    why = dict(client.rows("SELECT projection, why FROM projection_state WHERE state = 'failed'"))
    behind = [
        f"{name} is at {at}" + (f" ({why[name]})" if name in why else "")
        for name, at in positions.items()
        if at < seq
    ]
    holder = DaemonLock(client.path).holder()
    path = quoted(client.path)
    newest = int(client.value("SELECT coalesce(max(seq), 0) FROM event_log"))
    ahead = f"; the newest event is {newest}" if newest < seq else ""
    alive = "no daemon is alive" if holder is None else f"a daemon is alive, process {holder}"
    return Finding(
        f"position {seq} was not reached within {timeout_s:g} s: {', '.join(behind)}{ahead};"
        f" {alive}",
        f"start one: `projector run -d {path}`"
        if holder is None
        else f"see what it does: `projector status -d {path}`",
    )
