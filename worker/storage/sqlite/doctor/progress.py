"""How far the projections have come, for the checks of the daemon."""

from pathlib import Path
from typing import NamedTuple

from session_projector.worker.storage.port import State
from session_projector.worker.storage.sqlite.doctor.checks import reading


class Tailing(NamedTuple):
    """Position and generation of each projection that tails, and the newest event, of one moment.

    Where none tails, `newest` is 0.
    """

    checkpoints: dict[str, tuple[int, int]]
    newest: int


def tailing(path: Path) -> Tailing:
    with reading(path) as connection:
        rows = connection.execute(
            "SELECT name, position, generation, (SELECT coalesce(max(seq), 0) FROM event_log)"
            " FROM checkpoint WHERE name NOT IN (SELECT projection FROM projection_state)"
        ).fetchall()
    found = {name: (position, generation) for name, position, generation, _ in rows}
    return Tailing(found, max((row[3] for row in rows), default=0))


def states(path: Path) -> dict[str, State]:
    """What each projection does that does not tail, as its daemon reported it."""
    with reading(path) as connection:
        rows = connection.execute(
            "SELECT projection, state, version, why, events, total, since, updated_at"
            " FROM projection_state ORDER BY projection"
        )
        return {name: State(*state) for name, *state in rows}


def count(path: Path) -> int:
    """How many projections have a checkpoint."""
    with reading(path) as connection:
        ((found,),) = connection.execute("SELECT count(*) FROM checkpoint")
        return int(found)
