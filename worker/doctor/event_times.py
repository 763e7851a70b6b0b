"""The check of the clocks, and of the times that writers give their newest events."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import msgspec

from session_projector.projections.decode import created_ms
from session_projector.projections.event import LogRow, Unfoldable, session_of
from session_projector.worker.clock import now_ms
from session_projector.worker.doctor import host
from session_projector.worker.errors import argument, quoted
from session_projector.worker.folding.deferral import KEY_SHOWN
from session_projector.worker.sessions.timeline import exists
from session_projector.worker.storage.port import Check, Database, Store

EVENTS: Final = 300
_PAGE: Final = 50
AHEAD_MS: Final = 60_000
_DAY_S: Final = 86_400
_YEAR_S: Final = 365.25 * _DAY_S
_NEAR_MS: Final = 10 * _YEAR_S * 1000
"""What is meant is within this time of now."""


class _Stated(msgspec.Struct):
    """The event's own time, all else of it skipped."""

    timestamp: int | float | None = None


def clock(database: Database, engine: Callable[[], Iterator[Check]] | None) -> Iterator[Check]:
    """Check that the clock of this machine can be right, what the `engine` says of its own, and
    only then the times of events, which are judged by it."""
    now = now_ms()
    wrong = [*host.clock(now)]
    wrong = wrong or [one for one in (engine() if engine else ()) if one.level != "ok"]
    if not wrong:
        with database.open() as store:
            wrong = [*_events(store, now)]
    yield from wrong or [Check("clock", "ok", "no recent event is ahead of it")]


def _events(store: Store, now: int) -> Iterator[Check]:
    """The findings for the newest events, one for each fault: its newest event."""
    told = set[str]()
    newest = store.log.newest()
    for last in range(newest, max(newest - EVENTS, 0), -_PAGE):
        rows = store.log.page(start=max(last - _PAGE + 1, 1), until=last, events=_PAGE)
        for row in reversed(rows):
            for fault, said, fix in _faults(row, now):
                if fault not in told:
                    told.add(fault)
                    of, see = _session(store, row)
                    yield Check("clock", "warn", f"event {row.seq}{of} {said}", f"{see}{fix}")


def _faults(row: LogRow, now: int) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the times of an event: which fault, in words, and what fixes it."""
    for field, at in (("created_at", _created(row)), ("timestamp", _timestamp(row))):
        if at is None:
            continue
        unit = ""
        if at > now + AHEAD_MS and abs(at / 1000 - now) < _NEAR_MS:
            unit = "microseconds"
        elif field == "timestamp" and abs(at * 1000 - now) < _NEAR_MS:
            unit = "seconds"
        if unit:
            said = f"was written with {unit} in {field}, which takes milliseconds"
            fix = "correct its writer; the order of events does not depend on it"
            yield f"{unit} {field}", said, fix
        elif at > now + AHEAD_MS:
            said = (
                f"was written {_long((at - now) / 1000)} in the future, by its {field}: its"
                " writer's clock is ahead, or this machine's behind (views do not depend on it)"
            )
            fix = (
                "see which of the clocks is wrong (`date`), and set that: `timedatectl set-ntp"
                " true`"
            )
            yield "ahead", said, fix


def _created(row: LogRow) -> int | None:
    with suppress(Unfoldable):
        return created_ms(row.created_at)
    return None


def _timestamp(row: LogRow) -> float | None:
    """What an event says of its time; None where it says nothing, or is none."""
    with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
        if isinstance(row.data, str):
            return msgspec.json.decode(row.data, type=_Stated).timestamp
        if isinstance(row.data, bytes):
            return msgspec.msgpack.decode(row.data, type=_Stated).timestamp
    return None


def _session(store: Store, row: LogRow) -> tuple[str, str]:
    """The session of an event, and the command that shows its events, where there is one."""
    session_id = session_of(row.key) if isinstance(row.key, str) else ""
    if not session_id or len(session_id) > KEY_SHOWN or not exists(store, session_id):
        return "", ""
    see = f"see it: `projector session history {argument(session_id)}`; "
    return f" of session {quoted(session_id)}", see


def _long(seconds: float) -> str:
    """A time in the unit that says most."""
    for unit, size in (("years", _YEAR_S), ("days", _DAY_S)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
