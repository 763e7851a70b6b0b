"""The projections of one database: who leads, who catches up alone, and who is rebuilt by whom."""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from session_projector.projections.projection import Projection
from session_projector.worker.clock import wait
from session_projector.worker.daemon.member import Member, load
from session_projector.worker.daemon.outage import Failures, Outage
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.errors import DatabaseUnavailable, LostRace, ProjectionFailed
from session_projector.worker.folding.checkpoints import checkpoint_of, needs_rebuild
from session_projector.worker.folding.deferral import Deferral
from session_projector.worker.folding.faults import faults_of, told
from session_projector.worker.replay.plan import Reaches, calls_for_full_scan
from session_projector.worker.replay.rebuild import rebuild
from session_projector.worker.replay.round_robin import STANDBY_POLL_S, Attempt, Scan, interleave
from session_projector.worker.replay.verify import leader_rebuilds
from session_projector.worker.replay.walk import Pages
from session_projector.worker.storage.port import Checkpoint, Database, Leadership, Thread, Wakeup
from session_projector.worker.telemetry.state import DaemonState

LONGEST_JOIN_S: Final = 0.02
"""How long the others may be made to wait, so that one that was behind joins them."""
BEHIND_POLL_S: Final = 0.05
"""How often one that is further on than the others looks whether they have come."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Supervisor:
    """The projections of a daemon; what holds one of them up never holds up another."""

    def __init__(
        self,
        database: Database,
        projections: Sequence[Projection],
        stop: anyio.Event,
        state: DaemonState,
        outage: Outage | None = None,
    ) -> None:
        self._database = database
        self._projections = [*projections]
        self._stop = stop
        self._state = state
        self._outage = outage or Outage(state)
        self._start: Callable[[Projection], None] | None = None

    def join(self, projection: Projection) -> None:
        """Run one more, which catches up by itself."""
        if self._start:
            self._start(projection)
        else:
            self._projections.append(projection)

    async def run(self) -> None:
        """Tail until `stop`. Those furthest on lead; each of the others catches up by itself, and
        joins them."""
        with closing(self._database.wakeup()) as wakeup:
            await self._run(wakeup)

    async def _run(self, wakeup: Wakeup) -> None:
        async with self._database.open_thread() as thread, anyio.create_task_group() as tasks:
            names = [projection.name for projection in self._projections]
            engine = await thread.run(lambda _: self._database.engine)
            log.info(
                "started",
                database=self._database.name,
                projections=names,
                version=_version(),
                pid=os.getpid(),
                host=socket.gethostname(),
                **dict([engine]),
            )
            gc.freeze()  # or now and then it takes 20 ms to look at what all imports have made
            lead = Tail(thread, [], self._outage, wakeup=wakeup, deferral=Deferral())
            unplaced = list(self._projections)

            def start(projection: Projection) -> None:
                tasks.start_soon(self._alone, projection, lead)

            self._start = start
            tasks.start_soon(self._close_at_stop, wakeup)
            while not self._stop.is_set():
                try:
                    async with lead.lock:
                        walked, alone = await self._place(thread, lead, unplaced)
                    unplaced = []
                    if walked:
                        tasks.start_soon(self._rebuild_together, thread, walked, lead, tasks)
                    for projection in alone:
                        tasks.start_soon(self._alone, projection, lead)
                    await lead.run(self._stop)
                    unplaced = lead.give_up()
                except LostRace:
                    log.info("checkpoint_moved_by_another")
                    unplaced = lead.give_up()
                except ProjectionFailed as error:
                    failed = [m for m in lead.members if m.projection.name == error.projection]
                    lead.members = [m for m in lead.members if m not in failed]
                    for member in failed:
                        tasks.start_soon(self._alone, member.projection, lead)
                except DatabaseUnavailable as error:
                    await self._outage.wait_out(error, self._stop)

    async def _close_at_stop(self, wakeup: Wakeup) -> None:
        await self._stop.wait()
        wakeup.close()

    async def _place(
        self, thread: Thread, lead: Tail, projections: Sequence[Projection]
    ) -> tuple[list[Projection], list[Projection]]:
        """Let those lead that can; returns those to be rebuilt, and the others."""
        ready: list[Member] = []
        walked: list[Projection] = []
        reaches: Reaches = {}
        for projection in projections:
            name = projection.name
            try:
                with faults_of(projection):
                    checkpoint = await thread.run(lambda store: checkpoint_of(store, projection))
                    self._state.checkpoint_read(name, checkpoint.position)
                    member = await load(thread, projection)
                    if await _calls_for_full_scan(thread, member, reaches):
                        self._state.rebuilding(name, 0, 1)
                        walked.append(projection)
                    else:
                        await thread.run(lambda store: store.checkpoints.report(name, None))
                        # Both may have been said before the database was unavailable for another.
                        self._state.rebuilt(name, member.checkpoint.position)
                        self._state.recovered(name)
                        ready.append(member)
            except ProjectionFailed:
                self._state.fails(name)
                continue  # as it will again, where it is alone and told of
        furthest = max((member.checkpoint.position for member in ready), default=0)
        if not lead.members or lead.position == furthest:
            lead.members += [m for m in ready if m.checkpoint.position == furthest]
        placed = [*walked, *(member.projection for member in lead.members)]
        return walked, [projection for projection in projections if projection not in placed]

    async def _rebuild_together(
        self, thread: Thread, projections: Sequence[Projection], lead: Tail, tasks: TaskGroup
    ) -> None:
        """Rebuild some side by side; then they lead, or each catches up by itself.

        What goes wrong here is met again and told of by `_alone`.
        """
        outage, share = Outage(self._state), bool(lead.members)
        try:
            async with self._database.open_thread() as own:
                await _rebuild(own, projections, _but_for_failures, self._stop, outage, share=share)
                await own.run(lambda store: store.release_memory())
            if self._stop.is_set():
                return  # what is said of them stays
            async with lead.lock:
                rest = [*chain(*await self._place(thread, lead, projections))]
            for projection in projections:
                if projection not in rest:
                    log.info("caught_up", projection=projection.name)
            projections = rest
        except (LostRace, ProjectionFailed, DatabaseUnavailable):
            self._state.database_available()  # as far as this task knows: it waits no more
        for projection in projections:
            tasks.start_soon(self._alone, projection, lead)

    async def _alone(self, projection: Projection, lead: Tail) -> None:
        """Catch up, and join the others; tried again for as long as it fails."""
        failures, outage = Failures(projection), Outage(self._state, projection.name)
        while not self._stop.is_set():
            try:
                async with self._database.open_thread() as thread:
                    try:
                        with faults_of(projection):
                            await self._catch_up(thread, projection, lead, outage)
                        if self._stop.is_set():
                            return  # whether or not it got there: what is said of it stays
                        self._state.recovered(projection.name)
                        await failures.over(thread)
                        return
                    except ProjectionFailed as error:
                        self._state.fails(projection.name)
                        await failures.tell(thread, error)
                await wait(failures.retry_s, self._stop)
            except LostRace:
                log.info("checkpoint_moved_by_another", projection=projection.name)
            except DatabaseUnavailable as error:
                await outage.wait_out(error, self._stop)

    async def _catch_up(
        self, thread: Thread, projection: Projection, lead: Tail, outage: Outage
    ) -> None:
        """Bring one projection to where the others stand, on a connection of its own."""
        member = await load(thread, projection)
        if await _calls_for_full_scan(thread, member, {}):
            await _rebuild(thread, [projection], faults_of, self._stop, outage, share=True)
            member = await load(thread, projection)
        self._state.rebuilt(projection.name, member.checkpoint.position)
        alone = Tail(thread, [member], outage, share=True)
        while not self._stop.is_set():
            started, before = time.perf_counter(), alone.position
            newest = await thread.run(lambda store: store.log.newest())
            await alone.run(self._stop, until=newest)
            pace_s = (time.perf_counter() - started) / max(alone.position - before, 1)
            async with lead.lock:
                if (lead.position - alone.position) * pace_s <= LONGEST_JOIN_S:
                    # What the others folded since is little, and they wait for it here.
                    await alone.run(self._stop, until=lead.position)
                if not lead.members or alone.position == lead.position:
                    lead.members += alone.members
                    log.info("caught_up", projection=projection.name)
                    return
            if alone.position > lead.position:
                await wait(BEHIND_POLL_S, self._stop)


async def run_once(
    database: Database, projections: Sequence[Projection], state: DaemonState | None = None
) -> None:
    """Catch up with the newest event there is now; works beside a daemon by compare-and-set.
    `state` tells then what was done.

    One that fails does not keep the others from it; the first such failure is raised at the end.
    """
    stop = anyio.Event()  # nobody sets it
    state = state or DaemonState()
    leadership = database.leadership()
    failed: list[ProjectionFailed] = []
    try:
        async with database.open_thread() as thread:
            until = await thread.run(lambda store: store.log.settled())
            while True:
                failing = {error.projection for error in failed}
                rest = [p for p in projections if p.name not in failing]
                try:
                    for group in await _groups(thread, rest, leadership, stop, state):
                        await Tail(thread, group, state=state).run(stop, until=until)
                    break
                except LostRace:
                    log.info("checkpoint_moved_by_another")
                except ProjectionFailed as error:
                    log.error("projection_failed", **told(error))
                    failed.append(error)
    finally:
        leadership.release()
    if failed:
        raise failed[0]


async def _groups(
    thread: Thread,
    projections: Sequence[Projection],
    leadership: Leadership,
    stop: anyio.Event,
    state: DaemonState,
) -> Iterable[list[Member]]:
    """The projections by the position where they stand, none of them in need of a rebuild."""
    walked: list[Projection] = []
    reaches: Reaches = {}
    for projection in projections:
        with faults_of(projection):
            await load(thread, projection)
            ours = await _is_ours(thread, projection, leadership)
            member = await load(thread, projection)
            if ours and await _calls_for_full_scan(thread, member, reaches):
                walked.append(projection)
    await _rebuild(thread, walked, faults_of, stop, state=state)
    groups: dict[int, list[Member]] = {}
    for projection in projections:
        with faults_of(projection):
            member = await load(thread, projection)
            checkpoint = member.checkpoint
            if await thread.run(lambda store: needs_rebuild(store, projection, checkpoint)):
                raise LostRace  # to a daemon that has begun just now
        state.rebuilt(projection.name, checkpoint.position)
        groups.setdefault(checkpoint.position, []).append(member)
    return groups.values()


async def _is_ours(thread: Thread, projection: Projection, leadership: Leadership) -> bool:
    """Whether a full scan is up to us: two at once would each void the other's claim. Where the
    daemon that leads must rebuild, waits until that is done."""
    while not leadership.acquire():
        if not leader_rebuilds(leadership, projection):
            return True
        if not await thread.run(
            lambda store: needs_rebuild(store, projection, checkpoint_of(store, projection))
        ):
            return False
        await anyio.sleep(STANDBY_POLL_S)
    return True


async def _rebuild(
    thread: Thread,
    projections: Sequence[Projection],
    attempt: Attempt,
    stop: anyio.Event,
    outage: Outage | None = None,
    *,
    state: DaemonState | None = None,
    share: bool = False,
) -> None:
    """Rebuild some projections, a page each in turn, until that is done or `stop`. Waits out an
    `Outage` if it was given one."""
    state = state or (outage.state if outage else DaemonState())

    async def hold_on(error: DatabaseUnavailable) -> None:
        if outage is None or stop.is_set():
            raise error
        await outage.wait_out(error, stop)

    async def scan(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Scan:
        name, done = projection.name, 0
        total = await thread.run(lambda store: store.log.newest())
        state.rebuilding(name, done, total)
        steps = rebuild(thread, projection, checkpoint, pages=pages, hold_on=hold_on, brief=True)
        async with aclosing(steps):
            async for step in steps:
                if outage:
                    outage.over()
                done += step.events
                state.refolded(step.outcomes)
                state.rebuilding(name, done, total)
                if stop.is_set():
                    return
                yield True

    await interleave(thread, projections, scan, attempt, share=share)


async def _calls_for_full_scan(thread: Thread, member: Member, reaches: Reaches) -> bool:
    return await thread.run(
        lambda store: calls_for_full_scan(store, member.projection, member.checkpoint, reaches)
    )


def _version() -> str:
    try:
        return version("session-projector")
    except PackageNotFoundError:  # it runs from a clone
        return "unknown"


@contextmanager
def _but_for_failures(projection: Projection) -> Iterator[None]:
    """What it raises is its own concern, and not now."""
    with suppress(ProjectionFailed, LostRace), faults_of(projection):
        yield
