"""The tail: page by page, the events that are new are folded and committed; then it waits."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio
import msgspec
import structlog

from session_projector.worker.daemon.batch import Batch, fold_batch, fold_deferred
from session_projector.worker.daemon.batch_log import BatchLog
from session_projector.worker.daemon.batch_size import BatchSize
from session_projector.worker.daemon.member import Member
from session_projector.worker.daemon.outage import HeldBack, Outage
from session_projector.worker.daemon.page import Page, read_page
from session_projector.worker.errors import DatabaseUnavailable, LostRace, ProjectionFailed
from session_projector.worker.folding.cooperative import read_in_slices
from session_projector.worker.folding.deferral import Deferral, delay_s
from session_projector.worker.folding.pacing import WritePacing
from session_projector.worker.folding.tally import outcomes
from session_projector.worker.storage.port import CommitStats, Store, Thread, Wakeup, size_of
from session_projector.worker.telemetry.state import Batch as BatchStats
from session_projector.worker.telemetry.state import DaemonState

MUCH_BYTES: Final = 1024 * 1024
VAIN_WAITS: Final = 8
"""So many in a row, each of which asked at its end whether others committed, and a read is due."""
PATIENCE_S: Final = 0.008
"""inotify speaks when a commit is written, which can be seen once the disk has it."""

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
    ) -> None:
        """`wakeup`: the others join it; `share`: it leaves the others as much time as it takes.
        `deferral` has views that cost much written less often than their events come."""
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
        self._pacing = WritePacing()
        self._size = BatchSize(self._pacing)
        self._newest = 0
        self._counts_at = 0.0
        self._held_back = HeldBack()
        self._batch_log = BatchLog()
        self._took_memory = False
        self._woken: float | None = None
        """When something was found to be new, until it is committed."""

    @property
    def position(self) -> int:
        return self.members[0].checkpoint.position if self.members else 0

    async def run(self, stop: anyio.Event, *, until: int | None = None) -> None:
        """Fold events as they come until `stop`; without a `Wakeup` only those that are there, with
        `until` only up to that position. Then no view is deferred any more.

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
                more = bool(self.members) and self._newest > self.position
                await self._held_back.look(self._thread, waiting=more and not moved)
                await self._count_quarantined(caught_up=not more)
                found = moved and (more or not self._wakeup.hears_on())
                await self._wait(self._wakeup, stop, found=found)
            elif not moved:
                return
        try:
            while deferred := self._deferred():
                async with self.lock:
                    await self._write_deferred(*deferred[0])
        except (DatabaseUnavailable, ProjectionFailed):  # it takes longer than a stop may
            log.warning("views_left_deferred", views=len(deferred))

    async def _wait(self, wakeup: Wakeup, stop: anyio.Event, *, found: bool) -> None:
        """Wait until there may be something new, or a read is due all the same."""
        for _ in range(VAIN_WAITS):
            if self._due():
                return
            if await wakeup.wait(self._changed, found=found):
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
        """Fold one batch, and a deferred view that is due; returns whether there was either."""
        moved = await self._fold_page(until)
        due = self._due()
        if due:
            await self._write_deferred(*due[0])
        return moved or bool(due)

    async def _fold_page(self, until: int | None) -> bool:
        started = time.perf_counter()
        page = await self._next_page(until)
        if not self.members or not page.rows:
            return False
        brief = self._leading and len(self.members) > 1  # so as not to hold up the others
        batch = await fold_batch(
            self._thread, self.members, page, self._deferral, brief=brief, share=self._share
        )
        if page.more:
            self._size.grow(time.perf_counter() - started, built_in=batch.built_in)
        committed = await self._commit(batch, page)
        self._note_costs(batch, committed)
        self._report(batch, page, committed, started)
        await self._learn(batch, page, committed, started)
        return True

    async def _next_page(self, until: int | None) -> Page:
        """The page that was read ahead, if it is what follows; else one that is read now. Its
        events are decoded."""
        checkpoints = [member.checkpoint for member in self.members]
        if until is not None:
            until = max(until, self.position)
        page, self._ahead = self._ahead, None  # what fails from here on is read again
        if page is None or (page.checkpoints, page.until) != (checkpoints, until):
            most = self._size.events if self.members else 1
            patience_s = 0 if self._woken is None else PATIENCE_S
            page = await self._thread.run(
                lambda store: read_page(store, checkpoints, until, most, patience_s)
            )
        self._newest = page.newest
        self._state.polled(page.newest, self._positions(), leading=self._leading)
        if page.events or not self.members:
            return page
        projections = [member.projection for member in self.members]
        events = await read_in_slices(page.rows, projections, share=self._share)
        return msgspec.structs.replace(page, events=events)

    async def _commit(self, batch: Batch, page: Page) -> CommitStats:
        """Commit a batch, and move the members on. In the same hop what follows is read ahead,
        unless it is the rest of this page."""
        after, done = [change.after for change in batch.changes], len(batch.events)
        much = batch.size > MUCH_BYTES
        self._took_memory = self._took_memory or much
        changes, bulk, most = batch.changes, much and not self._pacing, self._size.events
        rest = msgspec.structs.replace(
            page, checkpoints=after, rows=page.rows[done:], events=page.events[done:]
        )

        def work(store: Store) -> tuple[CommitStats, Page]:
            committed = store.commit(changes, bulk=bulk)
            if page.more and not rest.rows:
                with suppress(DatabaseUnavailable, LostRace):  # the next read meets it again
                    return committed, read_page(store, after, page.until, most)
            return committed, rest

        committed, ahead = await self._thread.run(work)
        self.members = [part.committed() for part in batch.parts]
        self._ahead = ahead if ahead.rows else None
        return committed

    def _note_costs(self, batch: Batch, committed: CommitStats) -> None:
        """Which views took much of the time that a commit took, by the size of their rows."""
        if committed.held_s <= self._deferral.costly_s:
            return
        all_bytes = max(batch.size, 1)
        for part in (p for p in batch.parts if p.member.projection.built_in):
            for key, row in zip(part.views, part.change.rows, strict=True):
                cost_s = committed.held_s * size_of(row) / all_bytes
                self._deferral.wrote(part.change.after.name, key, size_of(row), cost_s, alone=False)

    def _deferred(self) -> list[tuple[Member, str]]:
        """The views that are deferred, those of one projection by how long they have been."""
        return [(member, key) for member in self.members for key in member.checkpoint.deferred]

    def _due(self) -> list[tuple[Member, str]]:
        """Those of them that may be written now."""
        return [
            (member, key)
            for member, key in self._deferred()
            if self._deferral.is_due(member.projection.name, key)
        ]

    async def _write_deferred(self, member: Member, key: str) -> None:
        """Bring a view that is deferred to where the others are, by a commit of its own."""
        started = time.perf_counter()
        part = await fold_deferred(self._thread, member, key, share=self._share)
        size = sum(map(size_of, part.change.rows))
        much = size > MUCH_BYTES
        self._took_memory = self._took_memory or much
        committed = await self._thread.run(lambda store: store.commit([part.change], bulk=much))
        self.members[self.members.index(member)] = part.committed()
        cost_s = time.perf_counter() - started - committed.waited_s
        self._deferral.wrote(member.projection.name, key, size, cost_s, alone=True)
        if self._deferral.is_costly(member.projection.name, key):
            member.cache.pin(key)
        self._state.refolded(outcomes(member.projection, part.types, part.folded))
        self._tell_deferred()

    def _tell_deferred(self) -> None:
        for member in self.members:
            views = member.checkpoint.deferred.values()
            delays_s = [delay_s(view.cost_ms / 1000) for view in views]
            self._state.defers(member.projection.name, delays_s)

    async def _learn(
        self, batch: Batch, page: Page, committed: CommitStats, started: float
    ) -> None:
        """Size the next batches by how this one went, and leave the lock to others that write."""
        self._size.shrink(time.perf_counter() - started, built_in=batch.built_in)
        self._pacing.wrote(others=committed.exclusive and page.touched and page.more)
        if self._pacing and page.more:
            rows = sum(len(change.rows) for change in batch.changes)
            self._pacing.held(committed.held_s, rows=rows, projections=len(batch.parts))
            await anyio.sleep(committed.held_s)

    def _report(self, batch: Batch, page: Page, committed: CommitStats, started: float) -> None:
        """Tell the metrics, systemd and the log of a batch that is committed."""
        now = time.perf_counter()
        stats = BatchStats(
            events=len(batch.events),
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
            batch.changes,
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

    async def _changed(self) -> bool:
        return await self._thread.run(lambda store: store.changed())

    def _iterated(self) -> None:
        """Tell the metrics and systemd that this goes on."""
        self._state.iterated(self._newest, self._positions(), leading=self._leading)

    def _positions(self) -> dict[str, int]:
        return {member.projection.name: self.position for member in self.members}
