"""Reads of how far the projections have come, for the checks of the daemon."""

from collections.abc import Collection
from pathlib import Path

from session_projector.worker.storage.port import State
from session_projector.worker.storage.sqlite.doctor.checks import reading


def tailing(path: Path, names: Collection[str] = ()) -> tuple[dict[str, tuple[int, int]], int]:
    """Position and generation of the projections that tail (of `names`, if any), and the newest
    event, all of one moment."""
    with reading(path) as db:
        rows = db.execute(
            "SELECT name, position, generation, (SELECT coalesce(max(seq), 0) FROM event_log)"
            " FROM checkpoint WHERE name NOT IN (SELECT projection FROM projection_state)"
        ).fetchall()
    found = {
        name: (at, generation) for name, at, generation, _ in rows if not names or name in names
    }
    return found, max((row[3] for row in rows), default=0)


def states(path: Path) -> dict[str, State]:
    """The state of each projection that does not tail, as its daemon reported it."""
    with reading(path) as db:
        rows = db.execute(
            "SELECT projection, state, version, why, events, total, since, updated_at"
            " FROM projection_state ORDER BY projection"
        )
        return {name: State(*state) for name, *state in rows}
