"""The tail: page by page, the events that are new are folded and committed; then it waits."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Final

import anyio
import msgspec
import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.daemon.batch import Batch, Part, begun, fold_deferred, fold_page
from session_projector.worker.daemon.batch_log import BatchLog
from session_projector.worker.daemon.batch_size import BatchSize
from session_projector.worker.daemon.chunks import CHUNKED_VIEWS, split
from session_projector.worker.daemon.member import Member
from session_projector.worker.daemon.outage import HeldBack, Outage
from session_projector.worker.daemon.page import Page, read_page
from session_projector.worker.errors import DatabaseUnavailable, LostRace, ProjectionFailed
from session_projector.worker.folding.cooperative import read_in_slices
from session_projector.worker.folding.deferral import Deferral, delay_s
from session_projector.worker.folding.pacing import WritePacing
from session_projector.worker.folding.tally import outcomes
from session_projector.worker.storage.limits import BATCH_EVENTS
from session_projector.worker.storage.port import (
    Checkpoint,
    CommitStats,
    Store,
    Thread,
    Wakeup,
)
from session_projector.worker.telemetry.state import Batch as BatchStats
from session_projector.worker.telemetry.state import DaemonState

MUCH_BYTES: Final = 1024 * 1024
VAIN_WAITS: Final = 8
"""So many in a row, each of which asked at its end whether others committed, and a read is due."""
PATIENCE_S: Final = 0.008
"""inotify speaks when a commit is written, which can be seen once the disk has it."""

FAR_EVENTS: Final = 4 * BATCH_EVENTS
"""A tail that had caught up and is so far behind gives way: a full scan may be quicker."""
BATCH_S: Final = 0.5
BATCH_BYTES: Final = 24 * 1024 * 1024
"""A batch goes on to the next page up to this time and `Batch.size`: what many events change is
written once."""
Then = Callable[[Store, CommitStats, Sequence[Checkpoint]], None]
"""Called in the store's thread after a commit, with the checkpoints that the members have then."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
COUNT_EVERY_S: Final = 10.0
"""How often it is counted what is in quarantine."""


class Tail:
    """Projections that stand at one position: one read, one decoding, one transaction for all."""

    def __init__(
        self,
        thread: Thread,
        members: Sequence[Member],
        outage: Outage | None = None,
        *,
        state: DaemonState | None = None,
        share: bool = False,
        wakeup: Wakeup | None = None,
        deferral: Deferral | None = None,
        pacing: WritePacing | None = None,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """`wakeup`: the others join it; `share`: it leaves the others as much time as it takes.
        `deferral` has views that cost much written less often than their events come, `pacing` much
        written in short transactions while others write. A batch of `batch_bytes` is committed."""
        self.members = list(members)
        self.lock = anyio.Lock()
        """Held for an iteration; whoever holds it may add a member that stands where these do."""
        self._thread = thread
        self._outage = outage
        self._state = state or (outage.state if outage else DaemonState())
        self._leading = wakeup is not None
        self._share = share
        self._ahead: Page | None = None
        """What follows these members' position, where it is read already."""
        self._wakeup = wakeup
        self._deferral = Deferral(costly_s=math.inf) if deferral is None else deferral
        self._pacing = WritePacing() if pacing is None else pacing
        self._batch_bytes = batch_bytes
        self._size = BatchSize(self._pacing)
        self._newest = 0
        self._had_caught_up = False
        self._counts_at = 0.0
        self._held_back = HeldBack(self._state)
        self._batch_log = BatchLog()
        self._took_memory = False
        self._woken: float | None = None
        """When something was found to be new, until it is committed."""

    @property
    def position(self) -> int:
        return self.members[0].checkpoint.position if self.members else 0

    def give_up(self) -> list[Projection]:
        """Have no members any more; returns their projections, to be placed again."""
        projections, self.members = [member.projection for member in self.members], []
        return projections

    async def run(self, stop: anyio.Event, *, until: int | None = None) -> None:
        """Fold events as they come until `stop`; without a `Wakeup` only those that are there, with
        `until` only up to that position. Then no view is deferred any more. With a `Wakeup` it also
        returns where it has fallen far behind, as when the log was written to in its absence.

        Waits out an `Outage` if it was given one. Raises `LostRace` where somebody else moved a
        checkpoint.
        """
        try:
            await self._run(stop, until)
        finally:
            self._batch_log.say()

    async def _run(self, stop: anyio.Event, until: int | None) -> None:
        while not stop.is_set():
            try:
                async with self.lock:
                    moved = await self.iterate(until)
                    self._iterated()
            except DatabaseUnavailable as error:
                if self._outage is None:
                    raise
                await self._outage.wait_out(error, stop)
                continue
            if self._outage:
                self._outage.over()
            if self._wakeup:
                if self._fell_behind():
                    return
                more = bool(self.members) and self._newest > self.position
                await self._held_back.look(self._thread, waiting=more and not moved)
                await self._count_quarantined(caught_up=not more)
                found = moved and (more or not self._wakeup.hears_on())
                await self._wait(self._wakeup, stop, found=found)
            elif not moved:
                return
        try:
            while late := self._late(due=False):
                async with self.lock:
                    await self._write_deferred(*late)
        except (DatabaseUnavailable, ProjectionFailed):  # it takes longer than a stop may
            left = sum(len(member.checkpoint.deferred) for member in self.members)
            log.warning("views_left_deferred", views=left)

    def _fell_behind(self) -> bool:
        behind = self._newest - self.position
        if behind > FAR_EVENTS and self._had_caught_up:
            self._had_caught_up = False  # once each time
            return True
        self._had_caught_up = bool(self.members) and (self._had_caught_up or behind <= 0)
        return False

    async def _wait(self, wakeup: Wakeup, stop: anyio.Event, *, found: bool) -> None:
        """Wait until there may be something new, or a read is due all the same."""
        for _ in range(VAIN_WAITS):
            if self._late():
                return
            if await wakeup.wait(self._thread.changed, found=found):
                if not found:
                    self._woken = self._woken or time.perf_counter()
                return
            self._woken = None
            if stop.is_set():
                return
            if self._took_memory:
                for member in self.members:
                    member.cache.unpin()
                await self._thread.run(lambda store: store.release_memory())
                self._took_memory = False
            self._iterated()

    async def iterate(self, until: int | None = None) -> bool:
        """Fold one batch, and deferred views that are due; returns whether there was either."""
        moved = await self._fold_batch(until)
        if late := self._late():
            await self._write_deferred(*late)
        return moved or late is not None

    async def _fold_batch(self, until: int | None) -> bool:
        started = time.perf_counter()
        page = await self._next_page(self._checkpoints, until)
        if not self.members or not page.rows:
            return False
        batch = await self._fold_page(begun(self.members), page, started)
        with suppress(DatabaseUnavailable):  # it is met again, once what is folded is committed
            while page.more and self._folds_on(batch, page, started):
                read = time.perf_counter()
                following = await self._next_page(batch.checkpoints, until)
                if not following.rows:
                    break
                batch, page = await self._fold_page(batch, following, read), following
                self._iterated()
        parts = [folding.part() for folding in batch.foldings]
        is_long = page.more or batch.events > len(page.rows)
        self._pacing.wrote(others=page.others_wait and is_long)
        committed = await self._commit_batch(parts, batch, page)
        self._report(batch, parts, page, committed, started)
        await self._learn(parts, page, committed, started)
        return True

    async def _fold_page(self, batch: Batch, page: Page, started: float) -> Batch:
        batch = await fold_page(
            *(self._thread, batch, page, self._deferral),
            most_views=CHUNKED_VIEWS if self._in_chunks else None,
            brief=self._leading and len(self.members) > 1,  # so as not to hold up the others
            share=self._share,
        )
        if page.more:
            self._size.grow(time.perf_counter() - started, built_in=batch.built_in)
        return batch

    def _folds_on(self, batch: Batch, page: Page, started: float) -> bool:
        """Whether the next page is folded before a batch is committed: not beside other writers,
        nor where less than the page could be folded."""
        alone = batch.built_in and not (self._pacing or page.touched)
        small = batch.size < self._batch_bytes and time.perf_counter() - started < BATCH_S
        return alone and small and batch.done == len(page.rows)

    async def _next_page(self, checkpoints: Sequence[Checkpoint], until: int | None) -> Page:
        """What follows some checkpoints: the page that was read ahead, else one that is read now.
        Its events are decoded."""
        if until is not None:
            until = max(until, self.position)
        page, self._ahead = self._ahead, None  # what fails from here on is read again
        if page is None or (page.checkpoints, page.until) != (checkpoints, until):
            most = self._size.events(built_in=self._built_in) if self.members else 1
            patience_s = 0 if self._woken is None else PATIENCE_S
            committed = checkpoints == self._checkpoints
            page = await self._thread.run(
                lambda store: read_page(
                    store, checkpoints, until, most, patience_s, committed=committed
                )
            )
        self._newest = page.newest
        self._state.polled(page.newest, self._positions(), leading=self._leading)
        if page.events or not self.members:
            return page
        projections = [member.projection for member in self.members]
        events = await read_in_slices(page.rows, projections, share=self._share)
        return msgspec.structs.replace(page, events=events)

    @property
    def _checkpoints(self) -> list[Checkpoint]:
        return [member.checkpoint for member in self.members]

    @property
    def _built_in(self) -> bool:
        return all(member.projection.built_in for member in self.members)

    @property
    def _in_chunks(self) -> bool:
        """Whether a batch is written by several transactions."""
        return bool(self._pacing) and self._built_in

    async def _commit_batch(self, parts: Sequence[Part], batch: Batch, page: Page) -> CommitStats:
        """Commit a batch. In the hop of the last transaction what follows is read ahead, unless it
        is the rest of this page."""
        done, most = batch.done, self._size.events(built_in=batch.built_in)
        ahead = page

        def read_ahead(store: Store, _: CommitStats, after: Sequence[Checkpoint]) -> None:
            nonlocal ahead
            ahead = msgspec.structs.replace(
                page, checkpoints=after, rows=page.rows[done:], events=page.events[done:]
            )
            if page.more and not ahead.rows:
                with suppress(DatabaseUnavailable, LostRace):  # the next read meets it again
                    ahead = read_page(store, after, page.until, most)

        committed = await self._write(parts, read_ahead)
        self._ahead = ahead if ahead.rows else None
        return committed

    async def _write(self, parts: Sequence[Part], then: Then | None = None) -> CommitStats:
        """Commit some parts: in one transaction, or while others write in several short ones, the
        lock left to them in between for as long as it was held. `then` is called in the hop of the
        last one. What fails on the way leaves views deferred.

        Returns how long all of them waited, and how long one held the lock at most.
        """
        left, waited_s, held_s = parts, 0.0, 0.0
        while True:
            some, left = split(left, self._pacing.most_bytes) if self._in_chunks else (left, [])
            committed = await self._commit(some, _leave_room if left else then)
            waited_s, held_s = waited_s + committed.waited_s, max(held_s, committed.held_s)
            if not left:
                return msgspec.structs.replace(committed, waited_s=waited_s, held_s=held_s)
            self._pacing.wrote_bytes(committed.held_s, chain(*(part.sizes for part in some)))
            self._pacing.wrote(others=committed.others_wrote)
            self._iterated()

    async def _commit(self, parts: Sequence[Part], then: Then | None) -> CommitStats:
        """Commit some parts in one transaction, and move their members on."""
        changes = [part.change for part in parts]
        after = {change.after.name: change.after for change in changes}
        checkpoints = [after.get(m.projection.name, m.checkpoint) for m in self.members]
        much = sum(chain(*(part.sizes for part in parts))) > MUCH_BYTES
        self._took_memory = self._took_memory or much
        bulk = much and not self._pacing

        def work(store: Store) -> CommitStats:
            committed = store.commit(changes, bulk=bulk)
            if then:
                then(store, committed, checkpoints)
            return committed

        committed = await self._thread.run(work)
        moved = {part.change.after.name: part.committed() for part in parts}
        self.members = [moved.get(m.projection.name, m) for m in self.members]
        self._note_costs(parts, committed)
        return committed

    def _note_costs(self, parts: Sequence[Part], committed: CommitStats) -> None:
        """Which views took much of the time that a commit took, by the size of their rows."""
        if committed.held_s <= self._deferral.costly_s:
            return
        all_bytes = max(sum(chain(*(part.sizes for part in parts))), 1)
        for part in (p for p in parts if p.member.projection.built_in):
            for key, size in zip(part.views, part.sizes, strict=True):
                cost_s = committed.held_s * size / all_bytes
                self._deferral.wrote(part.change.after.name, key, size, cost_s, alone=False)

    def _late(self, *, due: bool = True) -> tuple[Member, list[str]] | None:
        """Deferred views to be written next, of those that are due, or of all: one that costs much,
        or some that are as of one position."""
        for member in self.members:
            name, deferred = member.projection.name, member.checkpoint.deferred
            keys = [key for key in deferred if not due or self._deferral.is_due(name, key)]
            if keys and deferred[keys[0]].is_costly:
                return member, keys[:1]
            if keys:
                at = deferred[keys[0]].position
                alike = (
                    k for k in keys if not deferred[k].is_costly and deferred[k].position == at
                )
                return member, [*islice(alike, CHUNKED_VIEWS)]
        return None

    async def _write_deferred(self, member: Member, keys: Sequence[str]) -> None:
        """Bring views that are deferred to where the others are."""
        started = time.perf_counter()
        part = await fold_deferred(self._thread, member, keys, share=self._share)
        committed = await self._write([part])
        if member.checkpoint.deferred[keys[0]].is_costly:
            name, size = member.projection.name, sum(part.sizes)
            cost_s = time.perf_counter() - started - committed.waited_s
            self._deferral.wrote(name, keys[0], size, cost_s, alone=True)
            if self._deferral.is_costly(name, keys[0]):
                member.cache.pin(keys[0])
        self._state.refolded(outcomes(member.projection, part.types, part.folded))
        self._tell_deferred()

    def _tell_deferred(self) -> None:
        for member in self.members:
            views = member.checkpoint.costly.values()
            delays_s = [delay_s(view.cost_ms / 1000) for view in views]
            self._state.defers(member.projection.name, delays_s)

    async def _learn(
        self, parts: Sequence[Part], page: Page, committed: CommitStats, started: float
    ) -> None:
        """Size the next batches by how this one went, and leave the lock to others that write."""
        built_in = self._built_in
        self._size.shrink(time.perf_counter() - started, built_in=built_in)
        if self._pacing and page.more:
            if not built_in:
                rows = sum(len(part.change.rows) for part in parts)
                self._pacing.held(committed.held_s, rows=rows, projections=len(parts))
            await anyio.sleep(committed.held_s)

    def _report(
        self,
        batch: Batch,
        parts: Sequence[Part],
        page: Page,
        committed: CommitStats,
        started: float,
    ) -> None:
        """Tell the metrics, systemd and the log of a batch that is committed."""
        now = time.perf_counter()
        stats = BatchStats(
            events=batch.events,
            outcomes=batch.outcomes(),
            last_ms=batch.last_ms,
            duration_s=now - started,
            waited_s=committed.waited_s,
            held_s=committed.held_s,
            wakeup_s=None if self._woken is None else now - self._woken,
        )
        self._woken = None
        self._state.committed(stats, self._positions())
        if self._deferral.any_costly:
            self._tell_deferred()
        self._batch_log.committed(
            [part.change for part in parts],
            position=self.position,
            lag=max(page.newest - self.position, 0),
            duration_s=time.perf_counter() - started,
        )

    async def _count_quarantined(self, *, caught_up: bool) -> None:
        """Tell now and then how many events are in quarantine; operators dismiss some."""
        now = time.monotonic()
        if not caught_up or now < self._counts_at:
            return
        self._counts_at = now + COUNT_EVERY_S
        names = [member.projection.name for member in self.members]
        self._state.counted(
            await self._thread.run(
                lambda store: {name: store.quarantine.count(name) for name in names}
            )
        )

    def _iterated(self) -> None:
        """Tell the metrics and systemd that this goes on."""
        self._state.iterated(self._newest, self._positions(), leading=self._leading)

    def _positions(self) -> dict[str, int]:
        return {member.projection.name: self.position for member in self.members}


def _leave_room(_store: Store, committed: CommitStats, _after: Sequence[Checkpoint]) -> None:
    """Leave the lock to others for as long as it was held: here, as timers of the event loop are
    whole milliseconds, and another hop is spared."""
    time.sleep(committed.held_s)
