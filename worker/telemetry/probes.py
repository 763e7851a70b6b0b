"""Whether a daemon is alive and whether it is ready to be read, for `/healthz` and `/readyz`.

Both read the newest event from the database itself, by a connection of their own: what the tail
remembers could be as stale as the tail.
"""

import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from session_projector.worker.errors import ProjectorError, Unavailable
from session_projector.worker.telemetry.state import DaemonState

STALE_S: Final = 10.0
"""A tail that has not turned for so long is stuck: an idle one turns every second."""
SEEN_WITHIN_S: Final = 3.0
"""An event is there, so a tail that looks has seen it by then."""
SEEN_POLL_S: Final = 0.01
VAIN_LOOKS: Final = 2
"""The first one may have been read before the event was there."""
READY_WITHIN: Final = 1000
"""Events that a database may be behind and still be ready to be read."""
BUSY_TIMEOUT_S: Final = 0.2


def health(newest_event: Callable[[], int], state: DaemonState) -> str:
    """What is wrong with the tail, '' where nothing is."""
    if (since_turn_s := time.monotonic() - state.last_turn) > STALE_S:
        return f"the tail has not turned for {since_turn_s:.0f} s"
    try:
        newest = newest_event()
    except Unavailable:
        return ""  # another process holds it, and the tail waits for it as this does
    except ProjectorError as error:
        return f"the log cannot be read: {error}"
    if not (state.standing_by or _is_seen(state, newest)):
        return f"the newest event is {newest}, and the tail has seen none after {state.newest}"
    with state.lock:
        stuck = {} if state.standing_by or state.unavailable_now else state.stuck()
        name, for_s = max(stuck.items(), key=itemgetter(1), default=("", 0.0))
        if for_s > STALE_S:
            at = state.progress[name].position
            return f"{name} has stayed at {at} for {for_s:.0f} s, and the newest event is {newest}"
    return ""


def _is_seen(state: DaemonState, newest: int) -> bool:
    """Whether the tail sees an event when it looks; false where it looked in vain.

    One that does not look is in a long batch, or kept from the lock by writers that take it in
    turns: for how long it may be is said by its turns.
    """
    looks, until = state.looks, time.monotonic() + SEEN_WITHIN_S
    while newest > state.newest:
        if time.monotonic() >= until:
            return state.unavailable_now or state.looks < looks + VAIN_LOOKS
        time.sleep(SEEN_POLL_S)
    return True


def readiness(newest_event: Callable[[], int], state: DaemonState) -> str:
    if state.standing_by:
        return "standing by for another daemon"
    try:
        newest = newest_event()
    except ProjectorError as error:
        return f"the log cannot be read: {error}"
    with state.lock:
        return ", ".join(_unready(state, newest)) if state.looks else "nothing is folded yet"


def _unready(state: DaemonState, newest: int) -> Iterator[str]:
    for name, at in sorted(state.progress.items()):
        if at.failing:
            yield f"{name} fails"
        elif at.rebuild:
            yield f"{name} is being rebuilt"
        elif at.lag_events(newest) > READY_WITHIN:
            yield f"{name} is {at.lag_events(newest)} events behind"
