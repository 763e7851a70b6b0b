"""What the events of a page do to the projections of a tail: nothing of it is committed yet."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice
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
    types: Counter[str | None]
    """How many events of each type it is about."""

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
        counted = Outcomes()
        for part in self.parts:
            counted.update(outcomes(part.member.projection, part.types, part.folded))
        return counted


class _Touched(msgspec.Struct, frozen=True):
    """The views that so many events touch, each with the seq of the first one; of these, those that
    are cached and the rows of the others."""

    events: int
    first: dict[str, int]
    cached: dict[str, Any]
    rows: dict[str, tuple[Any, ...]]


async def fold_batch(
    thread: Thread,
    members: Sequence[Member],
    page: Page,
    deferral: Deferral,
    *,
    most_views: int | None,
    brief: bool,
    share: bool,
) -> Batch:
    """Fold the events of a page; of the first only, if all touch more views than may be loaded, or
    more than `most_views` of a projection.

    Those of views that cost much to write are left for `fold_deferred`. `brief`: a projection whose
    views need the whole log to be folded again fails instead. `share`: as of `fold_in_slices`.
    """
    events = page.events
    touched: list[_Touched] = []
    runs = folding.runs_of(events)
    for member in members:
        with faults_of(member.projection):
            here, _ = _parted(member, runs, deferral)
            touched.append(await _load(thread, member, events, here, most_views))
        if touched[-1].events < len(events):
            events = events[: touched[-1].events]
            runs = folding.runs_of(events)
    last = page.rows[len(events) - 1]
    moved = {"position": last.seq, "digest": digest(last)}
    types = Counter(map(attrgetter("type"), events))
    parts: list[Part] = []
    for member, found in zip(members, touched, strict=True):
        with faults_of(member.projection):
            views, repaired = await _views(
                thread, member, found, last.seq, brief=brief, share=share
            )
            here, left = _parted(member, runs, deferral)
            folded = await fold_in_slices(member.projection, views, events, here, share=share)
            before = member.checkpoint
            after = msgspec.structs.replace(
                before,
                **moved,
                skipped=before.skipped + folded.skipped,
                deferred=before.deferred | _deferred(member, left, deferral),
            )
            of = types - Counter(event.type for run in left.values() for event in run)
            parts.append(_part(member, found, after, folded, repaired, of))
    return Batch(events, parts)


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
        return _part(member, found, after, folded, repaired, since.types)


def _parted(
    member: Member, runs: Runs, deferral: Deferral
) -> tuple[Runs, dict[str, Sequence[Event]]]:
    """The events to be folded, and by view those that are left for later."""
    name, deferred = member.projection.name, member.checkpoint.deferred
    if not (member.projection.built_in and (deferred or deferral.any_costly)):
        return runs, {}
    keys = {session: str(member.projection.key_of(run[0])) for session, run in runs.of.items()}
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
    member: Member, left: Mapping[str, Sequence[Event]], deferral: Deferral
) -> dict[str, Deferred]:
    """The views of some events that are deferred from here on."""
    return {
        key: deferral.defer(member.projection.name, key, run[0].seq - 1)
        for key, run in left.items()
        if key not in member.checkpoint.deferred
    }


async def _load(
    thread: Thread,
    member: Member,
    events: Sequence[Event | Rejected],
    runs: Runs,
    most_views: int | None,
) -> _Touched:
    """What events touch; of the first events only, if that is more than may be loaded, or more than
    `most_views`."""
    first = folding.touched(member.projection, events, runs)
    if most_views is not None and len(first) > most_views:
        *some, beyond = islice(first, most_views + 1)
        events = events[: bisect_left(events, first[beyond], key=attrgetter("seq"))]
        first = {key: first[key] for key in some}
    cached = member.cache.take(first)
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


def _part(
    member: Member,
    touched: _Touched,
    after: Checkpoint,
    folded: Folded,
    repaired: Mapping[str, Any],
    types: Counter[str | None],
) -> Part:
    """What events of some types do to a projection, and the checkpoint `after` them."""
    projection, before = member.projection, member.checkpoint
    changed = {key: view for key, view in repaired.items() if view is not None} | folded.views
    # In the order of the index on the key: a third off the writing of many rows.
    settled = {key: projection.settled(changed[key]) for key in sorted(changed)}
    removed = [key for key in repaired if key in touched.rows and key not in changed]
    rows = [projection.to_row(view) for view in settled.values()]
    change = Change(projection.table, before, after, rows, removed, folded.quarantined)
    return Part(member, change, folded, settled, types)
