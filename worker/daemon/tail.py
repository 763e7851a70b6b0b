"""One batch: read, load, fold, commit; then wait."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import anyio
import anyio.lowlevel
import msgspec
import structlog

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Folded, Rejected, Runs
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.rows import restore
from session_projector.worker.clock import wait
from session_projector.worker.daemon.view_cache import Hot
from session_projector.worker.errors import LostRace, ProjectionFailed, Unavailable
from session_projector.worker.folding.checkpoints import (
    checkpoint_of,
    does_not_fit,
    refuse_newer,
)
from session_projector.worker.folding.cooperative import fold_in_slices, read_in_slices
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.folding.history import refold
from session_projector.worker.folding.pacing import Gentle
from session_projector.worker.folding.tally import Outcomes, outcomes
from session_projector.worker.storage.port import (
    ANY_POSITION,
    BATCH_EVENTS,
    Change,
    Checkpoint,
    CommitStats,
    Store,
    Thread,
    Wakeup,
    digest,
    size_of,
)
from session_projector.worker.telemetry.state import Batch, DaemonState

FIRST_EVENTS: Final = 64
MOST_GROWTH: Final = 16
LEAST_GROWTH: Final = 2
"""Of our own projections: what takes long are large views, which each batch writes again."""
SHORT_BATCH_S: Final = 0.25
"""A batch grows so that the next one may take about as long, its commit apart."""
LONG_BATCH_S: Final = 1.0
"""A batch is a turn, and a tail that does not turn is taken for one that hangs."""
MUCH_BYTES: Final = 1024 * 1024
GLANCES: Final = 8
"""While idle only every so many of them is a whole look: one asks no more than whether others
committed."""
PATIENCE_S: Final = 0.008
"""inotify speaks when a commit is written, which can be seen once the disk has it."""
RETRY_S: Final = 0.5
"""Between two attempts at a database that is locked or has no room."""
AGAIN_S: Final = 0.00005
"""Between two questions of a look that waits for a commit."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Member(msgspec.Struct, frozen=True):
    """A projection, where it stands, and those of its views that are at hand as of there."""

    projection: Projection
    checkpoint: Checkpoint
    hot: Hot = msgspec.field(default_factory=Hot)


class Outage:
    """A database that is locked or has no room: said once, then counted, then said to be over."""

    def __init__(self, state: DaemonState, projection: str = "") -> None:
        """`projection`: one that is by itself; what it may not write, the lead may read."""
        self.state = state
        self._projection = projection
        self._fields = {"projection": projection} if projection else {}
        self._failures = 0

    async def wait_out(self, error: Unavailable, stop: anyio.Event) -> None:
        self.state.waited_for_database(self._projection)
        if not self._failures:
            log.warning("database_unavailable", why=str(error), hint=error.hint, **self._fields)
        self._failures += 1
        await wait(RETRY_S, stop)

    def over(self) -> None:
        if self._failures:
            self.state.database_available(self._projection)
            log.info("database_available_again", failures=self._failures, **self._fields)
            self._failures = 0


class Tail:
    """Projections that stand at one position: one read, one decoding, one transaction for all."""

    def __init__(
        self,
        thread: Thread,
        members: Sequence[Member],
        outage: Outage | None = None,
        *,
        leading: bool = False,
        wakeup: Wakeup | None = None,
    ) -> None:
        self.members = list(members)
        self.turn_lock = anyio.Lock()
        """Held during a turn; whoever holds it may add a member that stands where these do."""
        self._thread = thread
        self._outage = outage
        self._state = outage.state if outage else DaemonState()
        self._leading = leading
        self._ahead: _Ahead | None = None
        self._wakeup = wakeup
        self._most = FIRST_EVENTS
        """Events that a batch may have, by how long those before took."""
        self._gentle = Gentle()
        self._newest = 0
        self._took_memory = False
        self._woken: float | None = None
        """When something was found to be new, until it is committed."""

    @property
    def position(self) -> int:
        return self.members[0].checkpoint.position if self.members else 0

    async def run(self, stop: anyio.Event, *, until: int | None = None) -> None:
        """Fold events as they come until `stop`; with `until`, only up to that position.

        Waits out an `Outage` if it was given one. Raises `LostRace` where somebody else moved a
        checkpoint.
        """
        while not stop.is_set():
            try:
                async with self.turn_lock:
                    moved = await self.turn(until)
            except Unavailable as error:
                if self._outage is None:
                    raise
                await self._outage.wait_out(error, stop)
                continue
            if self._outage:
                self._outage.over()
            if moved:
                continue
            if until is not None:
                return
            await self._idle(stop)

    async def _idle(self, stop: anyio.Event) -> None:
        """Until there may be something new, or a look is due all the same."""
        for _ in range(GLANCES):
            assert self._wakeup, "only what goes up to a position needs none"
            if await self._wakeup.wait(self._changed, stop):
                self._woken = self._woken or time.perf_counter()
                return
            self._woken = None
            if stop.is_set():
                return
            if self._took_memory:
                await self._thread.run(lambda store: store.release_memory())
                self._took_memory = False
            if await self._changed():
                self._wakeup.looked(touched=True, found=False)
                return
            self._state.iterated(self._newest, self._positions(), leading=self._leading)

    async def turn(self, until: int | None = None) -> bool:
        """One batch, or none where there is nothing new; whether there was."""
        started = time.perf_counter()
        if until is not None:
            until = max(until, self.position)
        most = self._most_now() if self.members else 1
        if self._wakeup:
            self._wakeup.looks()
        ahead, self._ahead = self._ahead, None
        wanted = (self.position, until, self._projections())
        if (
            ahead
            and ahead.look
            and ahead.events
            and (ahead.start, ahead.until, ahead.read_for) == wanted
        ):
            look, read = ahead.look, ahead.events
        else:
            names = [projection.name for projection in self._projections()]
            patience_s = 0 if self._woken is None else PATIENCE_S
            look = await self._look(self.position, until, most, names, patience_s)
            read = []
        self._newest = newest = look.newest
        rows = look.rows
        self._state.polled(newest, self._positions(), leading=self._leading)
        if not self.members:
            self._state.iterated(newest, {}, leading=self._leading)
            return False
        if not _fits([member.checkpoint for member in self.members], rows):
            await self._check_log()
        rows = rows[1:] if self.position else rows
        if self._wakeup:
            self._wakeup.looked(touched=look.touched, found=bool(rows))
        if not rows:
            # A database restored in place stands elsewhere than what is remembered of it.
            if look.checkpoints != [member.checkpoint for member in self.members]:
                raise LostRace
            self._state.iterated(newest, self._positions(), leading=self._leading)
            return False
        more = rows[-1].seq < (newest if until is None else min(newest, until))
        read = read or await read_in_slices(rows, self._projections())
        batch = await self._fold(rows, read)
        left = rows[len(batch.events) :]
        ahead = _Ahead(rows[-1].seq, until, self._projections())
        quick = all(member.projection.built_in for member in self.members)
        if more:
            growth = min(SHORT_BATCH_S / (time.perf_counter() - started), MOST_GROWTH)
            growth = max(growth, LEAST_GROWTH if quick else 0)
            self._most = min(max(self._most, int(most * growth)), BATCH_EVENTS)
        async with _beside(self._look_ahead, ahead, wanted=more and not left):
            changes = [part.change for part in batch.parts]
            much = sum(map(size_of, chain(*(c.rows for c in changes)))) > MUCH_BYTES
            self._took_memory = self._took_memory or much
            bulk = much and not self._gentle
            committed = await self._thread.run(lambda store: store.commit(changes, bulk=bulk))
            # At once: what fails from here on must not fold again what is committed.
            self.members = [
                Member(member.projection, part.change.after, member.hot)
                for member, part in zip(self.members, batch.parts, strict=True)
            ]
            for part in batch.parts:
                part.keep()
        if left:
            ahead.start, ahead.events = batch.parts[0].change.after.position, read[-len(left) :]
            ahead.look = msgspec.structs.replace(look, rows=rows[-len(left) - 1 :])
        self._ahead = ahead  # not before: what fails begins anew
        self._measure(batch, committed, started)
        self._state.iterated(newest, self._positions(), leading=self._leading)
        _report(batch, newest, started)
        if time.perf_counter() - started > LONG_BATCH_S and not quick:
            self._most = max(self._most // 4, 1)
        self._gentle.wrote(others=look.touched and more)
        if self._gentle and more:
            await self._make_way(batch, committed)
        return True

    async def _look_ahead(self, ahead: "_Ahead") -> None:
        """Read and decode what comes next, while the database thread commits. It can be done
        without: where it fails it is forgotten, and the next look meets what was wrong."""
        with suppress(Exception):
            ahead.look = await self._look(ahead.start, ahead.until, self._most_now())
            ahead.events = await read_in_slices(ahead.look.rows[1:], ahead.read_for)

    async def _look(
        self,
        start: int,
        until: int | None,
        events: int,
        names: Sequence[str] = (),
        patience_s: float = 0,
    ) -> "Look":
        """One look at the log, in one hop."""
        return await self._thread.run(
            lambda store: look(store, start, until, events, names, patience_s)
        )

    async def _changed(self) -> bool:
        return await self._thread.run(lambda store: store.changed())

    async def _make_way(self, batch: "_Batch", committed: CommitStats) -> None:
        """While there is much to fold and others write."""
        rows = sum(len(part.change.rows) for part in batch.parts)
        self._gentle.held(committed.held_s, rows=rows, projections=len(batch.parts))
        await anyio.sleep(committed.held_s)

    def _most_now(self) -> int:
        return min(self._most, self._gentle.most_events) if self._gentle else self._most

    def _projections(self) -> tuple[Projection, ...]:
        return tuple(member.projection for member in self.members)

    def _positions(self) -> dict[str, int]:
        return {member.projection.name: self.position for member in self.members}

    def _measure(self, batch: "_Batch", committed: CommitStats, started: float) -> None:
        now = time.perf_counter()
        woken_s = None if self._woken is None else now - self._woken
        self._woken = None
        events = batch.events
        last = next((e.time for e in reversed(events) if isinstance(e, Event) and e.body), None)
        types = Counter(map(attrgetter("type"), events))
        counted = Outcomes()
        for part in batch.parts:
            counted.update(outcomes(part.member.projection, types, part.folded))
        self._state.committed(
            Batch(
                events=len(events),
                outcomes=counted,
                last_ms=last,
                duration_s=now - started,
                waited_s=committed.waited_s,
                held_s=committed.held_s,
                wakeup_s=woken_s,
            ),
            self._positions(),
        )

    async def _fold(self, rows: Sequence[LogRow], events: Sequence[Event | Rejected]) -> "_Batch":
        """What these rows change; of the first only, if all touch more than may be loaded."""
        touched: list[_Touched] = []
        runs = folding.runs_of(events)
        for member in self.members:
            with faults_of(member.projection):
                touched.append(await _load(self._thread, member, events, runs))
            if touched[-1].events < len(events):
                events = events[: touched[-1].events]
                runs = folding.runs_of(events)
        last = rows[len(events) - 1]
        shared = self._outage is not None and len(self.members) > 1
        parts: list[_Part] = []
        for member, found in zip(self.members, touched, strict=True):
            with faults_of(member.projection):
                views, mended = await _views(self._thread, member, found, last.seq, shared=shared)
                folded = await fold_in_slices(member.projection, views, events, runs)
                parts.append(_part(member, found, last, folded, {k: views[k] for k in mended}))
        return _Batch(events, parts)

    async def _check_log(self) -> None:
        """The log does not fit what is remembered: was the database restored in place?"""
        members = self.members

        def check(store: Store) -> LogRow | None:
            if any(checkpoint_of(store, m.projection) != m.checkpoint for m in members):
                raise LostRace
            return store.log.event(self.position)

        row = await self._thread.run(check)
        odd = [m for m in members if not _fits([m.checkpoint], [row] if row else [])]
        raise does_not_fit((odd or members)[0].projection.name, self.position)


async def load(thread: Thread, projection: Projection) -> Member:
    """Where a projection stands, its table in shape; refuses views of a newer version."""

    def prepared(store: Store) -> tuple[Checkpoint, Checkpoint]:
        before = checkpoint_of(store, projection)
        refuse_newer(projection, before.version)
        return before, store.views.prepare(projection)

    before, checkpoint = await thread.run(prepared)
    if checkpoint.position < before.position:
        log.warning("views_gone", projection=projection.name, position=before.position)
    return Member(projection, checkpoint)


class Look(msgspec.Struct, frozen=True):
    """Events, the newest position, whether another connection may have committed since the look
    before, and the checkpoints of some projections."""

    rows: list[LogRow]
    newest: int
    touched: bool
    checkpoints: list[Checkpoint | None]


def look(
    store: Store,
    start: int,
    until: int | None,
    events: int,
    names: Sequence[str] = (),
    patience_s: float = 0,
) -> Look:
    """The event at `start` and `events` of those after it; where there are none it waits for
    `patience_s`, here in the store's thread, as the event loop's timers are whole milliseconds."""
    last = ANY_POSITION if until is None else until
    touched = store.changed()  # before the rows: it misses nothing
    rows = store.log.page(start=start, until=last, events=events)
    until_s = time.perf_counter() + patience_s
    while patience_s and (not rows or rows[-1].seq <= start) and time.perf_counter() < until_s:
        time.sleep(AGAIN_S)
        if store.changed():
            touched = True
            rows = store.log.page(start=start, until=last, events=events)
    newest = max(store.log.newest(), rows[-1].seq if rows else 0)
    return Look(rows, newest, touched, [store.checkpoints.get(name) for name in names])


class _Touched(msgspec.Struct, frozen=True):
    """The views that so many events touch, each with the seq of the first one; of these, those at
    hand and the rows of the others."""

    events: int
    first: dict[str, int]
    hot: dict[str, Any]
    rows: dict[str, tuple[Any, ...]]


class _Part(msgspec.Struct, frozen=True):
    """What a batch does to one projection, and the views that come of it."""

    member: Member
    change: Change
    folded: Folded
    views: dict[str, Any]

    def keep(self) -> None:
        """Once it is committed. What others wrote may be less than it seems, so that their views
        are only kept as rows."""
        if self.member.projection.built_in:
            self.member.hot.forget(self.change.removed)
            self.member.hot.keep(self.views, map(size_of, self.change.rows))


class _Ahead(msgspec.Struct):
    """Events read before their turn: those after `start`, as these projections are to fold them."""

    start: int
    until: int | None
    read_for: tuple[Projection, ...]
    look: Look | None = None
    events: Sequence[Event | Rejected] = ()


@asynccontextmanager
async def _beside(
    work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, wanted: bool
) -> AsyncIterator[None]:
    """Some work beside the block; what either raises comes out as it is."""
    if not wanted:
        yield
        return
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, *arguments)
            await (
                anyio.lowlevel.checkpoint()
            )  # so that the database thread gets it before the block's
            yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


class _Batch(msgspec.Struct, frozen=True):
    """Events, and what they do to each projection."""

    events: Sequence[Event | Rejected]
    parts: Sequence[_Part]


async def _load(
    thread: Thread, member: Member, events: Sequence[Event | Rejected], runs: Runs
) -> _Touched:
    """What events touch; of the first events only, if that is more than may be loaded."""
    first = folding.touched(member.projection, events, runs)
    hot = member.hot.take(first)
    cold = [key for key in first if key not in hot]
    if not cold:
        return _Touched(len(events), first, hot, {})
    loaded = await thread.run(lambda store: store.views.load(member.projection, cold))
    covered = len(events)
    if loaded.covered < len(cold):
        covered = bisect_left(events, first[cold[loaded.covered]], key=attrgetter("seq"))
    return _Touched(covered, first, hot, loaded.rows)


def _part(
    member: Member, touched: _Touched, last: LogRow, folded: Folded, mended: Mapping[str, Any]
) -> _Part:
    """What events up to and with the one of the row `last` do to a projection."""
    projection, before = member.projection, member.checkpoint
    after = msgspec.structs.replace(
        before,
        position=last.seq,
        digest=digest(last),
        skipped=before.skipped + folded.skipped,
    )
    changed = {key: view for key, view in mended.items() if view is not None} | folded.views
    # In the order of the index on the key: a third off the writing of many rows.
    settled = {key: projection.settled(changed[key]) for key in sorted(changed)}
    removed = [key for key in mended if key in touched.rows and key not in changed]
    rows = [projection.to_row(view) for view in settled.values()]
    change = Change(projection.table, before, after, rows, removed, folded.quarantined)
    return _Part(member, change, folded, settled)


async def _views(
    thread: Thread, member: Member, touched: _Touched, until: int, *, shared: bool
) -> tuple[dict[str, Any | None], list[str]]:
    """The views that events up to `until` touch, as they stand, and which of them were found
    damaged or gone, and so were folded from the log on the spot."""
    projection, checkpoint, standing = member.projection, member.checkpoint, touched.rows
    views: dict[str, Any | None] = {
        key: touched.hot.get(key) for key, seq in touched.first.items() if seq <= until
    }
    suspect: set[str] = set()
    for key in standing.keys() & views.keys():
        try:
            views[key] = restore(projection, standing[key])
        except CorruptRow as error:
            log.warning("damaged_view_found", projection=projection.name, key=key, why=str(error))
            suspect.add(key)
    absent = {
        spelling: key
        for key in views.keys() - standing.keys() - touched.hot.keys()
        for spelling in projection.log_keys(key) or ()
    }
    if checkpoint.position and absent:
        present = await thread.run(
            lambda store: store.log.present(
                [*absent], until=checkpoint.position, unless_quarantined=checkpoint.name
            )
        )
        suspect |= {absent[key] for key in present}
    if suspect and shared and projection.log_keys("") is None:
        raise ProjectionFailed(
            projection.name, "a row of it is damaged", "it is folded from the whole log by itself"
        )
    if suspect:
        found = await refold(thread, projection, suspect, until=checkpoint.position)
        for key in sorted(suspect):
            views[key] = found.get(key)
            if key in found:
                log.warning("view_folded_from_log", projection=projection.name, key=key)
    return views, sorted(suspect)


def _fits(checkpoints: Sequence[Checkpoint], rows: Sequence[LogRow]) -> bool:
    """Whether the first row is the event that each checkpoint remembers."""
    position = checkpoints[0].position
    if position == 0:
        return True
    if not rows or rows[0].seq != position:
        return False
    return {digest(rows[0])} == {checkpoint.digest for checkpoint in checkpoints}


def _report(batch: _Batch, newest: int, started: float) -> None:
    changes = [part.change for part in batch.parts]
    after = changes[0].after
    fields: dict[str, Any] = {
        "position": after.position,
        "lag_events": max(newest - after.position, 0),
        "views": {change.after.name: len(change.rows) for change in changes},
        "skipped": {c.after.name: c.after.skipped - c.before.skipped for c in changes},
        "duration_ms": round((time.perf_counter() - started) * 1000, 2),
    }
    quarantined = sorted({event.seq for change in changes for event in change.quarantined})
    if quarantined:
        fields |= {"quarantined": quarantined[:10], "quarantined_count": len(quarantined)}
    (log.warning if quarantined else log.info)("batch_committed", **fields)
