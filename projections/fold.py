"""Views and events in; changed views, quarantined events and a count of the skipped out."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from session_projector.projections.decode import decode, plain
from session_projector.projections.event import (
    SESSION_EVENTS,
    Event,
    LogRow,
    OutOfMemory,
    Unfoldable,
)
from session_projector.projections.projection import FAULT, Projection
from session_projector.projections.rows import require_key, require_row
from session_projector.projections.scanner import Malformed

MAX_REASON: Final = 1000
"""Characters of a reason in the quarantine."""
OnFault = Callable[[Projection, int, BaseException], None]
"""Told of an exception that a projection's own code raised for the event at a position."""


class Rejected(msgspec.Struct, frozen=True):
    """An event that goes to quarantine, and why."""

    seq: int
    reason: str
    type: str | None = None
    """Where it could be read."""


class Folded(msgspec.Struct, frozen=True):
    """What a run of events did to a projection."""

    views: dict[str, Any]
    quarantined: list[Rejected]
    skipped_types: list[str]
    """Of each event that was skipped."""

    @property
    def skipped(self) -> int:
        return len(self.skipped_types)


def read(rows: Sequence[LogRow], projections: Iterable[Projection] = ()) -> list[Event | Rejected]:
    """Every row decoded once, for all projections."""
    others = frozenset(kind for p in projections for kind in p.events) - SESSION_EVENTS
    try:
        return [plain(row) or _read(row, others) for row in rows]
    except Exception:  # what nobody foresaw concerns one event only
        return [_read(row, others) for row in rows]


def fold(
    projection: Projection,
    views: Mapping[str, Any | None],
    events: Sequence[Event | Rejected],
    on_fault: OnFault | None = None,
) -> Folded:
    """Fold events, in log order, onto the views that stand; only changed views come back."""
    changed: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    skipped: list[str] = []
    built_in = projection.built_in
    for event in events:
        if event.type is not None and event.type not in projection.events:
            skipped.append(event.type)
            continue
        if isinstance(event, Rejected):
            quarantined.append(event)
            continue
        try:
            key = projection.key_of(event)
            if key is None:
                skipped.append(event.type)
                continue
            if not built_in:
                require_key(key)
            view = projection.fold(changed.get(key, views.get(key)), event)
            if not built_in:
                require_row(projection, key, projection.to_row(view))
            changed[key] = view
        except MemoryError:  # nothing that the next try would find too
            raise OutOfMemory(event.seq) from None
        except KeyboardInterrupt:  # says nothing of the event
            raise
        except BaseException as error:  # nothing is awaited here: no other task cancels this
            if on_fault and not isinstance(error, Unfoldable | Malformed):
                on_fault(projection, event.seq, error)
            quarantined.append(Rejected(event.seq, _reason(error, projection), event.type))
    return Folded(changed, quarantined, skipped)


class Runs(msgspec.Struct, frozen=True):
    """Events by the session that they are about, and those that are about none."""

    of: dict[str, list[Event]]
    others: list[Event | Rejected]


def runs_of(events: Iterable[Event | Rejected]) -> Runs:
    """The same events, in log order each."""
    of: defaultdict[str, list[Event]] = defaultdict(list)
    others: list[Event | Rejected] = []
    for event in events:
        if event.type in SESSION_EVENTS and type(event) is Event:
            of[event.session_id].append(event)
        else:
            others.append(event)
    return Runs(of, others)


def fold_runs(
    projection: Projection, views: Mapping[str, Any | None], runs: Iterable[Sequence[Event]]
) -> Folded:
    """`fold` for a built-in projection, each run at once; if that fails, event by event."""
    changed: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    for run in runs:
        key = str(projection.key_of(run[0]))
        try:
            changed[key] = projection.fold_all(views.get(key), run)
        except Exception:
            folded = fold(projection, {key: views.get(key)}, run)
            changed |= folded.views
            quarantined += folded.quarantined
    return Folded(changed, quarantined, [])


def touched(
    projection: Projection, events: Sequence[Event | Rejected], runs: Runs
) -> dict[str, int]:
    """The views that some events concern, each with the seq of its first event; none for events
    whose view the projection fails to name."""
    if projection.built_in:
        return {str(projection.key_of(run[0])): run[0].seq for run in runs.of.values()}
    first: dict[str, int] = {}
    for event in events:
        key = key_of(projection, event)
        if key is not None:
            first.setdefault(key, event.seq)
    return first


def _read(row: LogRow, others: Collection[str]) -> Event | Rejected:
    try:
        return decode(row, others)
    except MemoryError:
        raise OutOfMemory(row.seq) from None
    except Exception as error:
        return Rejected(row.seq, _reason(error), getattr(error, "type", None))


def key_of(projection: Projection, event: Event | Rejected) -> str | None:
    """The view that an event concerns; None if there is none or the projection fails to name it."""
    if isinstance(event, Rejected) or event.type not in projection.events:
        return None
    try:
        key = projection.key_of(event)
        if key is not None and not projection.built_in:
            require_key(key)
    except MemoryError:
        raise OutOfMemory(event.seq) from None
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None
    return key


def _reason(error: BaseException, projection: Projection | None = None) -> str:
    """Why an event goes to quarantine; a fault in the code is no reason to stop the feed either."""
    if isinstance(error, Unfoldable | Malformed):
        return str(error).encode("utf-8", "backslashreplace").decode()[:MAX_REASON]
    return f"{FAULT}{type(error).__name__}{_place(error, projection)}"[:MAX_REASON]


def _place(error: BaseException, projection: Projection | None) -> str:
    """Where the projection's own package raised it, or called what did: the file's name, the line
    and the function. The same on every machine, as the words of a reason are compared."""
    package = type(projection).__module__.partition(".")[0]
    found, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            name = code.co_filename.rpartition("/")[2]
            found = f" in {name}, line {trace.tb_lineno}, {code.co_name}()"
        trace = trace.tb_next
    return found
