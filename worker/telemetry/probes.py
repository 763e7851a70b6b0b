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
"""Without an iteration for this long the tail is stuck: an idle one ends one every second."""
SEEN_WITHIN_S: Final = 3.0
"""An event that is in the log is seen within this time by a tail that reads it."""
SEEN_POLL_S: Final = 0.01
VAIN_POLLS: Final = 2
"""Reads of the log without the event; the first may have begun before it was there."""
READY_WITHIN: Final = 1000
"""A projection that is at most so many events behind is ready to be read."""
BUSY_TIMEOUT_S: Final = 0.2


def health(newest_event: Callable[[], int], state: DaemonState) -> str:
    """What is wrong with the tail, '' where nothing is; `newest_event` asks the database."""
    if (silent_s := time.monotonic() - state.last_iteration) > STALE_S:
        return f"the tail has not turned for {silent_s:.0f} s"
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
    """Whether the tail sees an event when it reads the log; false where it read it in vain.

    One that does not read it is in a long batch, or waits for a lock that writers take one after
    another: `STALE_S` says for how long it may.
    """
    polls, until = state.polls, time.monotonic() + SEEN_WITHIN_S
    while newest > state.newest:
        if time.monotonic() >= until:
            return state.unavailable_now or state.polls < polls + VAIN_POLLS
        time.sleep(SEEN_POLL_S)
    return True


def readiness(newest_event: Callable[[], int], state: DaemonState) -> str:
    """Why the views are not ready to be read, '' where they are."""
    if state.standing_by:
        return "standing by for another daemon"
    try:
        newest = newest_event()
    except ProjectorError as error:
        return f"the log cannot be read: {error}"
    with state.lock:
        return ", ".join(_unready(state, newest)) if state.polls else "nothing is folded yet"


def _unready(state: DaemonState, newest: int) -> Iterator[str]:
    for name, at in sorted(state.progress.items()):
        if at.failing:
            yield f"{name} fails"
        elif at.rebuild:
            yield f"{name} is being rebuilt"
        elif at.lag_events(newest) > READY_WITHIN:
            yield f"{name} is {at.lag_events(newest)} events behind"
