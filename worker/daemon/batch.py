"""What the events of a page do to the projections of a tail: nothing of it is committed yet."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import structlog

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Folded, Rejected, Runs
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.worker.daemon.member import Member
from session_projector.worker.daemon.page import Page
from session_projector.worker.errors import ProjectionFailed
from session_projector.worker.folding.cooperative import fold_in_slices
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.folding.history import refold
from session_projector.worker.folding.tally import Outcomes, outcomes
from session_projector.worker.storage.port import Change, Thread, digest, size_of

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Part(msgspec.Struct, frozen=True):
    """What a batch does to one projection, and the views that come of it."""

    member: Member
    change: Change
    folded: Folded
    views: dict[str, Any]

    def committed(self) -> Member:
        """The projection once this is committed, with these views cached. Of a projection that is
        not ours none are, as a view may hold more than its row says."""
        if self.member.projection.built_in:
            self.member.cache.forget(self.change.removed)
            self.member.cache.keep(self.views, map(size_of, self.change.rows))
        return msgspec.structs.replace(self.member, checkpoint=self.change.after)


class Batch(msgspec.Struct, frozen=True):
    """Events, and what they do to each projection."""

    events: Sequence[Event | Rejected]
    parts: Sequence[Part]

    @property
    def changes(self) -> list[Change]:
        return [part.change for part in self.parts]

    @property
    def built_in(self) -> bool:
        """Whether all of its projections are ours."""
        return all(part.member.projection.built_in for part in self.parts)

    @property
    def size(self) -> int:
        """The bytes of the rows that it writes."""
        return sum(map(size_of, chain(*(change.rows for change in self.changes))))

    @property
    def last_ms(self) -> int | None:
        """The time of the last event that some projection folds."""
        times = (e.time for e in reversed(self.events) if isinstance(e, Event) and e.body)
        return next(times, None)

    def outcomes(self) -> Outcomes:
        """What became of its events."""
        types = Counter(map(attrgetter("type"), self.events))
        counted = Outcomes()
        for part in self.parts:
            counted.update(outcomes(part.member.projection, types, part.folded))
        return counted


class _Touched(msgspec.Struct, frozen=True):
    """The views that so many events touch, each with the seq of the first one; of these, those that
    are cached and the rows of the others."""

    events: int
    first: dict[str, int]
    cached: dict[str, Any]
    rows: dict[str, tuple[Any, ...]]


async def fold_batch(
    thread: Thread, members: Sequence[Member], page: Page, *, brief: bool, share: bool
) -> Batch:
    """Fold the events of a page; of the first only, if all touch more views than may be loaded.

    `brief`: a projection whose views need the whole log to be folded again fails instead. `share`:
    as of `fold_in_slices`.
    """
    events = page.events
    touched: list[_Touched] = []
    runs = folding.runs_of(events)
    for member in members:
        with faults_of(member.projection):
            touched.append(await _load(thread, member, events, runs))
        if touched[-1].events < len(events):
            events = events[: touched[-1].events]
            runs = folding.runs_of(events)
    last = page.rows[len(events) - 1]
    parts: list[Part] = []
    for member, found in zip(members, touched, strict=True):
        with faults_of(member.projection):
            views, repaired = await _views(
                thread, member, found, last.seq, brief=brief, share=share
            )
            folded = await fold_in_slices(member.projection, views, events, runs, share=share)
            parts.append(_part(member, found, last, folded, {k: views[k] for k in repaired}))
    return Batch(events, parts)


async def _load(
    thread: Thread, member: Member, events: Sequence[Event | Rejected], runs: Runs
) -> _Touched:
    """What events touch; of the first events only, if that is more than may be loaded."""
    first = folding.touched(member.projection, events, runs)
    cached = member.cache.take(first)
    cold = [key for key in first if key not in cached]
    if not cold:
        return _Touched(len(events), first, cached, {})
    loaded = await thread.run(lambda store: store.views.load(member.projection, cold))
    covered = len(events)
    if loaded.covered < len(cold):
        covered = bisect_left(events, first[cold[loaded.covered]], key=attrgetter("seq"))
    return _Touched(covered, first, cached, loaded.rows)


async def _views(
    thread: Thread, member: Member, touched: _Touched, until: int, *, brief: bool, share: bool
) -> tuple[dict[str, Any | None], list[str]]:
    """The views that events up to `until` touch, as they stand, and which of them were found
    corrupt or missing, and so were folded from the log on the spot."""
    projection, standing = member.projection, touched.rows
    views: dict[str, Any | None] = {
        key: touched.cached.get(key) for key, seq in touched.first.items() if seq <= until
    }
    suspect: set[str] = set()
    for key in standing.keys() & views.keys():
        try:
            views[key] = restore(projection, standing[key])
        except CorruptRow as error:
            log.warning("damaged_view_found", projection=projection.name, key=key, why=str(error))
            suspect.add(key)
    suspect |= await _missing(
        thread, member, views.keys() - standing.keys() - touched.cached.keys()
    )
    if suspect and brief and projection.log_keys("") is None:
        raise ProjectionFailed(
            projection.name, "a row of it is corrupt", "it is folded from the whole log by itself"
        )
    if suspect:
        found = await refold(
            thread, projection, suspect, until=member.checkpoint.position, share=share
        )
        for key in sorted(suspect):
            views[key] = found.get(key)
            if key in found:
                log.warning("view_folded_from_log", projection=projection.name, key=key)
    return views, sorted(suspect)


async def _missing(thread: Thread, member: Member, keys: set[str]) -> set[str]:
    """Those of some views without a row that have events up to the checkpoint."""
    checkpoint = member.checkpoint
    absent = {spelling: key for key in keys for spelling in member.projection.log_keys(key) or ()}
    if not checkpoint.position or not absent:
        return set()
    present = await thread.run(
        lambda store: store.log.present(
            [*absent], until=checkpoint.position, unless_quarantined=checkpoint.name
        )
    )
    return {absent[key] for key in present}


def _part(
    member: Member, touched: _Touched, last: LogRow, folded: Folded, repaired: Mapping[str, Any]
) -> Part:
    """What events up to and with the one of the row `last` do to a projection."""
    projection, before = member.projection, member.checkpoint
    after = msgspec.structs.replace(
        before,
        position=last.seq,
        digest=digest(last),
        skipped=before.skipped + folded.skipped,
    )
    changed = {key: view for key, view in repaired.items() if view is not None} | folded.views
    # In the order of the index on the key: a third off the writing of many rows.
    settled = {key: projection.settled(changed[key]) for key in sorted(changed)}
    removed = [key for key in repaired if key in touched.rows and key not in changed]
    rows = [projection.to_row(view) for view in settled.values()]
    change = Change(projection.table, before, after, rows, removed, folded.quarantined)
    return Part(member, change, folded, settled)
