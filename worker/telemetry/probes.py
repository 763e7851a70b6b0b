"""The checks behind `/healthz` and `/readyz`: whether a daemon works, and whether views are ready.

Both read the newest position from the database over a separate connection: what the tail remembers
may be as outdated as the tail.
"""

import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from session_projector.worker.errors import DatabaseUnavailable, ProjectorError
from session_projector.worker.telemetry.state import DaemonState

STALE_S: Final = 10.0
"""The tail is stuck if it finishes no iteration for this long; an idle one does every second."""
SEEN_WITHIN_S: Final = 3.0
"""Within this time a tail that reads the log sees a new event."""
SEEN_POLL_S: Final = 0.01
VAIN_POLLS: Final = 2
"""Polls that may miss an event; the first one may have started before it was written."""
READY_WITHIN: Final = 1000
"""A projection at most this many events behind is ready."""
PROBE_TIMEOUT_S: Final = 0.2


def health(newest_event: Callable[[], int], state: DaemonState) -> str:
    """What is wrong with the tail, or ''; `newest_event` reads from the database."""
    if (silent_s := time.monotonic() - state.last_iteration) > STALE_S:
        return f"the tail has finished no iteration for {silent_s:.0f} s"
    try:
        newest = newest_event()
    except DatabaseUnavailable:
        return ""  # another process has locked it, and the tail waits, too
    except ProjectorError as error:
        return f"the log cannot be read: {error}"
    if not (state.standing_by or _is_seen(state, newest)):
        return f"the newest event is {newest}, but the tail has seen none after {state.newest}"
    with state.lock:
        stuck = {} if state.standing_by or state.unavailable_now else state.stuck()
        name, for_s = max(stuck.items(), key=itemgetter(1), default=("", 0.0))
        if for_s > STALE_S:
            at = state.progress[name].position
            return f"{name} has been stuck at {at} for {for_s:.0f} s; the newest event is {newest}"
    return ""


def _is_seen(state: DaemonState, newest: int) -> bool:
    """Whether the tail has seen an event, or has not polled since; false if its polls missed it.

    A tail that does not poll is in a long batch, or waits for a lock that writers keep taking;
    `STALE_S` limits that.
    """
    polls, until = state.polls, time.monotonic() + SEEN_WITHIN_S
    while newest > state.newest:
        if time.monotonic() >= until:
            return state.unavailable_now or state.polls < polls + VAIN_POLLS
        time.sleep(SEEN_POLL_S)
    return True


def readiness(newest_event: Callable[[], int], state: DaemonState) -> str:
    """Why the views are not ready to be read, or ''."""
    if state.standing_by:
        return "standing by for another daemon"
    trouble = state.trouble
    reasons = [f"the daemon {trouble}"] if trouble else []
    try:
        newest = newest_event()
    except ProjectorError as error:
        return ", ".join([*reasons, f"the log cannot be read: {error}"])
    with state.lock:
        reasons += _unready(state, newest) if state.polls else ["nothing is folded yet"]
    return ", ".join([*reasons, *(held_back(state) if reasons else ())])


def held_back(state: DaemonState) -> Iterator[str]:
    """Who keeps events from being read: a writer, so neither a restart nor another reader helps."""
    if state.held_back_by:
        yield f"events are held back by {', '.join(state.held_back_by)}"


def _unready(state: DaemonState, newest: int) -> Iterator[str]:
    progress = sorted(state.progress.items(), key=lambda one: (not one[1].failing, one[0]))
    for name, at in progress:
        if at.failing:
            yield f"{name} is failing"
        elif at.rebuild:
            yield f"{name} is being rebuilt"
        elif at.lag_events(newest) > READY_WITHIN:
            yield f"{name} is {at.lag_events(newest)} events behind"
