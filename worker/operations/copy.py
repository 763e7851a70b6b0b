"""Copying a log into another database, positions included, and what operators noted of it."""

from collections.abc import Callable
from typing import Final

import msgspec

from session_projector.projections.event import MAX_EVENT_BYTES, LogRow, is_too_long
from session_projector.worker.errors import (
    InterventionRequired,
    LostRace,
    UsageError,
    about,
    many,
)
from session_projector.worker.storage.port import Database, Holder, Store, not_restored

COMPARED: Final = 100
"""Events, spread over what the target has, that are compared with the source's."""
Progress = Callable[[str, int, int], None]
"""Told what is done with events, with how many, and how many there are in all."""


class Copied(msgspec.Struct, frozen=True):
    """How many events and notes were copied, and the position of the target's newest event."""

    position: int
    events: int
    notes: int


class Left(msgspec.Struct, frozen=True):
    """How many events of the source the target does not have, and who keeps them from being
    read."""

    events: int
    held_back_by: list[Holder]


def prepare(source: Database, target: Database) -> None:
    """Create the target if it does not exist; raises `UsageError` where both are the same."""
    if source.name == target.name:
        raise UsageError(f"{source.name} is named twice", "name another database to copy to")
    with about(target.name):
        if not target.exists():
            target.setup()


def copy(source: Store, target: Store, progress: Progress) -> Copied:
    """Copy the events that the target lacks, up to the newest that is settled now, and the notes of
    operators; a copy that was broken off is continued.

    Hints are about the source where they name no database. Raises `InterventionRequired` where the
    target has other events, or cannot hold one of the source's.
    """
    until = source.log.settled()
    at = _common(source, target, until)
    total, done = source.log.count(after=at) - source.log.count(after=until), 0
    _refuse_unfit(source, target, at, until, lambda events: progress("checked", events, total))
    while at < until and (page := source.log.page(start=at + 1, until=until)):
        rows = [_whole(source, row) for row in page]
        try:
            with about(target.name):
                target.log.restore(rows, after=at)
        except LostRace:  # to another copy; a writer's event is found by what follows
            at = _common(source, target, until)
            continue
        at = rows[-1].seq
        done += len(rows)
        progress("copied", done, total)
    return Copied(at, done, _copy_notes(source, target, at))


def left(source: Store, position: int) -> Left:
    """What the source has above a position."""
    events = source.log.count(after=position)
    return Left(events, source.log.held_back_by() if events else [])


def _common(source: Store, target: Store, until: int) -> int:
    """The position of the target's newest event; raises `InterventionRequired` unless its events
    are the source's up to there, as far as their number and some of them tell."""
    with about(target.name), target.snapshot():
        newest, events = target.log.newest(), target.log.count()
    if newest > until:
        raise _other_log(source, target, f"it has event {newest}, and that one ends at {until}")
    there = source.log.count() - source.log.count(after=newest)
    if there != events:
        raise _other_log(
            source, target, f"it has {many(events, 'event')} up to {newest}, and that one {there:,}"
        )
    some = range(newest, 0, -max(newest // COMPARED, 1))
    for row in (row for start in some for row in source.log.page(start=start, events=1)[:1]):
        with about(target.name):
            found = target.log.event(row.seq)
            same = found is not None and _whole(target, found) == _whole(source, row)
        if row.seq <= newest and not same:
            raise _other_log(source, target, f"event {row.seq} is not the same in both")
    return newest


def _other_log(source: Store, target: Store, why: str) -> InterventionRequired:
    return InterventionRequired(
        f"{target.name} has another log than {source.name}: {why}",
        "copy to a database that has no events yet, or that began as a copy of this one",
    )


def _refuse_unfit(
    source: Store, target: Store, at: int, until: int, progress: Callable[[int], None]
) -> None:
    """Raises `InterventionRequired` for the first event that the target cannot hold."""
    unfit, done = target.log.unfit, 0
    while unfit and at < until and (rows := source.log.page(start=at + 1, until=until)):
        for row in rows:
            if why := unfit(_whole(source, row)):
                raise not_restored(target.name, row, why)
        at = rows[-1].seq
        done += len(rows)
        progress(done)


def _whole(store: Store, row: LogRow) -> LogRow:
    """An event with all of its values, of which a page has no more than an event may have."""
    data = row.data
    if isinstance(data, str) and 4 * len(data) > MAX_EVENT_BYTES:
        data = data.encode("utf-8", "surrogateescape")
    large = isinstance(data, str | bytes) and len(data) > MAX_EVENT_BYTES
    if large or is_too_long(row.id) or is_too_long(row.key):
        return store.log.event(row.seq, whole=True) or row
    return row


def _copy_notes(source: Store, target: Store, position: int) -> int:
    """Copy what operators noted of events, unless a later note is there; returns how many."""
    with about(target.name):
        known = {seq: at for seq, _, at in target.quarantine.notes()}
    newer = [
        (seq, note, at)
        for seq, note, at in source.quarantine.notes()
        if seq <= position and at > known.get(seq, -1)
    ]
    with about(target.name), target.transaction():
        for seq, note, at in newer:
            target.quarantine.dismiss(seq, note.encode("utf-8", "replace").decode(), at=at)
    return len(newer)
