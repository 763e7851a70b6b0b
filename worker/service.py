"""Composition: the lock, the signals, a tail for each projection, shutdown."""

import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from projections.projection import Projection
from worker.database import DaemonLock, FileIdentity
from worker.errors import LostRace, ProjectorError, Unavailable
from worker.replay import compare, needs_rebuild, rebuild_all
from worker.sqlite import SqliteStore
from worker.tail import Member, Outage, Tail, load, wait
from worker.walk import Step

STANDBY_POLL_S = 0.5

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(
    path: Path, projections: Sequence[Projection], *, verify_every_s: float | None = None
) -> None:
    """Tail until SIGTERM or SIGINT; while another daemon does, stand by to take over."""
    stop = anyio.Event()
    lock = DaemonLock(path)
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_stop_on_signal, stop)
            if await _take_over(path, lock, stop):
                if verify_every_s is not None:
                    tasks.start_soon(_verify_slowly, path, projections, verify_every_s, stop)
                await _tail_all(path, projections, stop)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first_error(group) from None
    finally:
        lock.release()
    log.info("stopped")


async def run_once(path: Path, projections: Sequence[Projection]) -> None:
    """Catch up with the newest event there is now; works beside a daemon by compare-and-set."""
    stop = anyio.Event()
    lock = DaemonLock(path)
    try:
        async with opened(path) as store:
            until = await store.newest()
            while True:
                try:
                    for group in await _groups(store, projections, lock):
                        await Tail(store, group).run(stop, until=until)
                    return
                except LostRace:
                    log.info("checkpoint_moved_by_another")
    finally:
        lock.release()


async def _groups(
    store: SqliteStore, projections: Sequence[Projection], lock: DaemonLock
) -> Iterable[list[Member]]:
    """The projections by the position where they stand, none of them in need of a rebuild."""
    groups: dict[int, list[Member]] = {}
    for projection in projections:
        await _leave_rebuild_to_holder(store, projection, lock)
        member = await load(store, projection)
        if await _stale(store, member):
            await rebuild_all(store, projection, member.checkpoint, anyio.Event())
            member = await load(store, projection)
        groups.setdefault(member.checkpoint.position, []).append(member)
    return groups.values()


async def _tail_all(path: Path, projections: Sequence[Projection], stop: anyio.Event) -> None:
    outage = Outage()
    async with opened(path) as store:
        log.info("started", database=str(path), projections=[p.name for p in projections])
        while not stop.is_set():
            try:
                await _tail_together(path, store, projections, outage, stop)
            except LostRace:
                log.info("checkpoint_moved_by_another")
            except Unavailable as error:
                await outage.wait_out(error, stop)


async def _tail_together(
    path: Path,
    store: SqliteStore,
    projections: Sequence[Projection],
    outage: Outage,
    stop: anyio.Event,
) -> None:
    """Those furthest on lead; each of the others catches up by itself, and joins them."""
    members = [await load(store, projection) for projection in projections]
    ready = [member for member in members if not await _stale(store, member)]
    furthest = max((member.checkpoint.position for member in ready), default=0)
    leaders = [member for member in ready if member.checkpoint.position == furthest]
    lead = Tail(store, leaders, outage)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lead.run, stop)
            for member in members:
                if member not in leaders:
                    tasks.start_soon(_catch_up, path, member, lead, outage, stop)
    except BaseExceptionGroup as group:
        raise _first_error(group) from None


async def _stale(store: SqliteStore, member: Member) -> bool:
    return await needs_rebuild(store, member.projection, member.checkpoint)


async def _catch_up(
    path: Path, member: Member, lead: Tail, outage: Outage, stop: anyio.Event
) -> None:
    """Bring one projection to where the others stand, on a connection of its own, and join them."""
    async with opened(path) as store:
        if await _stale(store, member):
            await rebuild_all(store, member.projection, member.checkpoint, stop)
            member = await load(store, member.projection)
        alone = Tail(store, [member], outage)
        while not stop.is_set():
            if alone.position < lead.position:
                await alone.run(stop, until=lead.position)
                continue
            async with lead.turn_lock:
                # What the others folded since is little, and they wait for it here.
                await alone.run(stop, until=lead.position)
                if not lead.members or alone.position == lead.position:
                    lead.members += alone.members
                    log.info("caught_up", projection=member.projection.name)
                    return
            await wait(STANDBY_POLL_S, stop)  # a rebuild came out further on than the others


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


async def _verify_slowly(
    path: Path, projections: Sequence[Projection], every_s: float, stop: anyio.Event
) -> None:
    """A page of the walk every so often, over and over: says what it finds, and mends nothing."""
    found = 0
    while True:
        for projection in projections:
            try:
                async with opened(path) as store, aclosing(compare(store, projection)) as steps:
                    async for step in steps:
                        found += len(step.differences)
                        _report_differences(step, found)
                        await wait(every_s, stop)
            except (ProjectorError, LostRace) as error:
                log.debug("verify_put_off", projection=projection.name, why=str(error))
            await wait(every_s, stop)


def _report_differences(step: Step, found: int) -> None:
    log.debug("verified", events=step.events, views=step.views)
    for difference in step.differences:
        log.warning(
            "difference_found",
            projection=difference.projection,
            row=difference.row,
            kind=difference.kind,
            key=difference.key,
            fields=[field.field for field in difference.fields][:10],
            found=found,
            hint="projector verify says what differs, projector replay mends it",
        )


async def _take_over(path: Path, lock: DaemonLock, stop: anyio.Event) -> bool:
    """Whether the lock is ours; False when told to stop before."""
    announced = False
    identity = FileIdentity(path)
    while not stop.is_set():
        identity.check()
        if lock.acquire():
            return True
        if not announced:
            log.info("standing_by", daemon_pid=lock.holder())
            announced = True
        await wait(STANDBY_POLL_S, stop)
    return False


async def _leave_rebuild_to_holder(
    store: SqliteStore, projection: Projection, lock: DaemonLock
) -> None:
    """Two walks at once would each void the other's claim: the holder of the lock does it."""
    while not lock.acquire():
        if not await needs_rebuild(store, projection, await store.checkpoint(projection)):
            return
        await anyio.sleep(STANDBY_POLL_S)


async def _stop_on_signal(
    stop: anyio.Event, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the first task, rather than the group that it is wrapped in."""
    if found := group.subgroup(ProjectorError):
        group = found
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
