"""What the events of a page do to the projections of a tail: nothing of it is committed yet."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

import msgspec
import structlog

from session_projector.projections import fold as folding
from session_projector.projections.event import Event
from session_projector.projections.fold import Folded, Rejected, Runs
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.worker.daemon.member import Member
from session_projector.worker.daemon.page import Page
from session_projector.worker.errors import ProjectionFailed
from session_projector.worker.folding.cooperative import fold_in_slices
from session_projector.worker.folding.deferral import Deferral
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.folding.history import refold
from session_projector.worker.folding.tally import Outcomes, outcomes
from session_projector.worker.storage.port import (
    Change,
    Checkpoint,
    Deferred,
    Thread,
    digest,
    size_of,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Part(msgspec.Struct, frozen=True):
    """What a batch does to one projection, and the views that come of it."""

    member: Member
    change: Change
    folded: Folded
    views: dict[str, Any]
    sizes: Sequence[int]
    """The bytes of the row of each view."""
    types: Counter[str | None]
    """How many events of each type it is about."""

    def committed(self) -> Member:
        """The projection once this is committed, with these views cached. Of a projection that is
        not ours none are, as a view may hold more than its row says."""
        if self.member.projection.built_in:
            self.member.cache.forget(self.change.removed)
            self.member.cache.keep(self.views, self.sizes)
        return msgspec.structs.replace(self.member, checkpoint=self.change.after)


class Folding(msgspec.Struct, frozen=True):
    """What the events of a batch have done to one projection so far, and the checkpoint `after`
    them. Of the views that were `repaired`, those that are `corrupt` have a row."""

    member: Member
    after: Checkpoint
    folded: Folded = msgspec.field(default_factory=lambda: Folded({}, [], []))
    repaired: dict[str, Any | None] = {}
    corrupt: frozenset[str] = frozenset()
    types: Counter[str | None] = msgspec.field(default_factory=Counter)

    @property
    def views(self) -> dict[str, Any]:
        """Those that are to be written."""
        standing = {key: view for key, view in self.repaired.items() if view is not None}
        return standing | self.folded.views if standing else self.folded.views

    def part(self) -> Part:
        """The same as rows."""
        projection, changed = self.member.projection, self.views
        with faults_of(projection):
            # In the order of the index on the key: a third off the writing of many rows.
            settled = {key: projection.settled(changed[key]) for key in sorted(changed)}
            rows = [projection.to_row(view) for view in settled.values()]
        change = Change(
            *(projection.table, self.member.checkpoint, self.after),
            rows=rows,
            removed=[key for key in sorted(self.corrupt) if key not in changed],
            quarantined=self.folded.quarantined,
        )
        return Part(self.member, change, self.folded, settled, [*map(size_of, rows)], self.types)


class Batch(msgspec.Struct, frozen=True):
    """Events that were folded and are not committed yet: `done` of the last page, and those of the
    pages before it. `size`: the bytes of the events, and of the rows of views that were loaded."""

    foldings: Sequence[Folding]
    events: int = 0
    done: int = 0
    size: int = 0
    last_ms: int | None = None
    """The time of the last event that some projection folds."""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Those after it."""
        return [one.after for one in self.foldings]

    @property
    def built_in(self) -> bool:
        """Whether all of its projections are ours."""
        return all(one.member.projection.built_in for one in self.foldings)

    def outcomes(self) -> Outcomes:
        """What became of its events."""
        counted = Outcomes()
        for one in self.foldings:
            counted.update(outcomes(one.member.projection, one.types, one.folded))
        return counted


class _Touched(msgspec.Struct, frozen=True):
    """The views that so many events touch, each with the seq of the first one; of these, those that
    are cached and the rows of the others."""

    events: int
    first: dict[str, int]
    cached: dict[str, Any]
    rows: dict[str, tuple[Any, ...]]


def begun(members: Sequence[Member]) -> Batch:
    """A batch of no events yet."""
    return Batch([Folding(member, member.checkpoint) for member in members])


async def fold_page(
    thread: Thread,
    batch: Batch,
    page: Page,
    deferral: Deferral,
    *,
    most_views: int | None,
    brief: bool,
    share: bool,
) -> Batch:
    """The batch with the events of the page that follows it; with the first of them only, if all
    touch more views than may be loaded, or more than `most_views` of a projection.

    Those of views that cost much to write are left for `fold_deferred`. `brief`: a projection whose
    views need the whole log to be folded again fails instead. `share`: as of `fold_in_slices`.
    """
    events = page.events
    touched: list[_Touched] = []
    runs = folding.runs_of(events)
    for so_far in batch.foldings:
        with faults_of(so_far.member.projection):
            here, _ = _parted(so_far, runs, deferral)
            touched.append(await _load(thread, so_far, events, here, most_views))
        if touched[-1].events < len(events):
            events = events[: touched[-1].events]
            runs = folding.runs_of(events)
    last = page.rows[len(events) - 1]
    moved = {"position": last.seq, "digest": digest(last)}
    types = Counter(map(attrgetter("type"), events))
    foldings: list[Folding] = []
    for so_far, found in zip(batch.foldings, touched, strict=True):
        projection, before = so_far.member.projection, so_far.after
        with faults_of(projection):
            views, repaired = await _views(
                thread, so_far.member, found, last.seq, brief=brief, share=share
            )
            here, left = _parted(so_far, runs, deferral)
            folded = await fold_in_slices(projection, views, events, here, share=share)
            after = msgspec.structs.replace(
                before,
                **moved,
                skipped=before.skipped + folded.skipped,
                deferred=before.deferred | _deferred(so_far, left, deferral),
            )
            of = types - Counter(event.type for run in left.values() for event in run)
            foldings.append(_folded_on(so_far, found, after, folded, repaired, of))
    times = (e.time for e in reversed(events) if isinstance(e, Event) and e.body)
    return Batch(
        foldings,
        events=batch.events + len(events),
        done=len(events),
        size=batch.size
        + sum(
            len(row.data) for row in page.rows[: len(events)] if isinstance(row.data, str | bytes)
        )
        + sum(size_of(row) for found in touched for row in found.rows.values()),
        last_ms=next(times, batch.last_ms),
    )


async def fold_deferred(
    thread: Thread, member: Member, keys: Sequence[str], *, share: bool
) -> Part:
    """Fold onto some views that are deferred as of one position what they lack of their events, up
    to the checkpoint; onto the first of them only, if all are more than may be loaded."""
    projection, before = member.projection, member.checkpoint
    at = before.deferred[keys[0]].position
    behind = msgspec.structs.replace(before, position=at)
    with faults_of(projection):
        cached = member.cache.take(keys)
        cold, rows = [key for key in keys if key not in cached], {}
        if cold:
            loaded = await thread.run(lambda store: store.views.load(projection, cold))
            rows, cold = loaded.rows, cold[: loaded.covered]
        written = {*cached, *cold}
        found = _Touched(0, dict.fromkeys(written, at), cached, rows)
        as_of = msgspec.structs.replace(member, checkpoint=behind)
        views, repaired = await _views(thread, as_of, found, at, brief=False, share=share)
        since = await refold(
            *(thread, projection, written),
            until=before.position,
            after=at,
            onto={key: view for key, view in views.items() if view is not None},
            share=share,
        )
        deferred = {key: view for key, view in before.deferred.items() if key not in written}
        after = msgspec.structs.replace(before, generation=before.generation + 1, deferred=deferred)
        folded = Folded(since.views, since.quarantined, [])
        behind_it = Folding(member, member.checkpoint)
        return _folded_on(behind_it, found, after, folded, repaired, since.types).part()


def _parted(
    so_far: Folding, runs: Runs, deferral: Deferral
) -> tuple[Runs, dict[str, Sequence[Event]]]:
    """The events to be folded, and by view those that are left for later."""
    projection, deferred = so_far.member.projection, so_far.after.deferred
    name = projection.name
    if not (projection.built_in and (deferred or deferral.any_costly)):
        return runs, {}
    keys = {session: str(projection.key_of(run[0])) for session, run in runs.of.items()}
    left = {
        session: key
        for session, key in keys.items()
        if key in deferred or deferral.is_costly(name, key)
    }
    if not left:
        return runs, {}
    here = {session: run for session, run in runs.of.items() if session not in left}
    return Runs(here, runs.others), {key: runs.of[session] for session, key in left.items()}


def _deferred(
    so_far: Folding, left: Mapping[str, Sequence[Event]], deferral: Deferral
) -> dict[str, Deferred]:
    """The views of some events that are deferred from here on."""
    return {
        key: deferral.defer(so_far.after.name, key, run[0].seq - 1)
        for key, run in left.items()
        if key not in so_far.after.deferred
    }


async def _load(
    thread: Thread,
    so_far: Folding,
    events: Sequence[Event | Rejected],
    runs: Runs,
    most_views: int | None,
) -> _Touched:
    """What events touch; of the first events only, if that is more than may be loaded, or more than
    `most_views`."""
    member, folded = so_far.member, so_far.views
    first = folding.touched(member.projection, events, runs)
    if most_views is not None and len(first) > most_views:
        *some, beyond = islice(first, most_views + 1)
        events = events[: bisect_left(events, first[beyond], key=attrgetter("seq"))]
        first = {key: first[key] for key in some}
    cached = member.cache.take(first) | {key: folded[key] for key in first if key in folded}
    cold = [key for key in first if key not in cached]
    if not cold or member.projection.per_event:
        return _Touched(len(events), first, cached, {})
    loaded = await thread.run(lambda store: store.views.load(member.projection, cold))
    covered = len(events)
    if loaded.covered < len(cold):
        covered = bisect_left(events, first[cold[loaded.covered]], key=attrgetter("seq"))
    return _Touched(covered, first, cached, loaded.rows)


async def _views(
    thread: Thread, member: Member, touched: _Touched, until: int, *, brief: bool, share: bool
) -> tuple[dict[str, Any | None], dict[str, Any | None]]:
    """The views that events up to `until` touch, as they stand, and those of them that were found
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
    repaired: dict[str, Any | None] = {}
    if suspect:
        until = member.checkpoint.position
        found = (await refold(thread, projection, suspect, until=until, share=share)).views
        repaired = {key: found.get(key) for key in sorted(suspect)}
        views |= repaired
        for key in sorted(found):
            log.warning("view_folded_from_log", projection=projection.name, key=key)
    return views, repaired


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


def _folded_on(
    so_far: Folding,
    touched: _Touched,
    after: Checkpoint,
    folded: Folded,
    repaired: dict[str, Any | None],
    types: Counter[str | None],
) -> Folding:
    """A folding with what further events of some types did, and the checkpoint `after` them."""
    before = so_far.folded
    return Folding(
        so_far.member,
        after,
        Folded(
            before.views | folded.views,
            before.quarantined + folded.quarantined,
            before.skipped_types + folded.skipped_types,
        ),
        so_far.repaired | repaired,
        so_far.corrupt | (repaired.keys() & touched.rows.keys()),
        so_far.types + types,
    )
