"""Waiting until views hold an event: for one's own write, whatever wrote it."""

import itertools
import time
from collections.abc import Collection
from typing import Final

from projections.event import LogRow
from worker import registry
from worker.client import Client
from worker.database import DaemonLock
from worker.errors import BadUsage, Finding, quoted
from worker.replay import unfit
from worker.store import digest

TIMEOUT_S: Final = 30.0
FIRST_POLL_S: Final = 0.001
LONGEST_POLL_S: Final = 0.016


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
    until = time.monotonic() + timeout_s
    names = names or DaemonLock(client.path).running() or [p.name for p in registry.known()]
    for poll in itertools.count():
        positions = _positions(client, names)
        if min(positions.values()) >= seq:
            _require_fit(client, names)
            return min(positions.values())
        if time.monotonic() >= until:
            raise _too_late(client, seq, positions, timeout_s)
        time.sleep(min(FIRST_POLL_S * 2 ** min(poll // 8, 8), LONGEST_POLL_S))
        client.identity.check()
    raise AssertionError


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
    for name, position, remembered, *event in client.rows(
        "SELECT c.name, position, digest, e.seq, e.id, e.key, e.data, e.created_at"
        " FROM checkpoint AS c LEFT JOIN event_log AS e ON e.seq = position WHERE position > 0"
    ):
        if name in names and (event[0] is None or digest(LogRow(*event)) != remembered):
            raise unfit(name, position)


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
