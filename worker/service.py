"""Composition: the lock, the signals, a tail for each projection, shutdown."""

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from projections.projection import Projection
from worker.database import DaemonLock
from worker.errors import ProjectorError
from worker.replay import needs_rebuild
from worker.sqlite import SqliteStore
from worker.tail import tail

STANDBY_POLL_S = 0.5

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(path: Path, projections: Sequence[Projection]) -> None:
    """Tail until SIGTERM or SIGINT; while another daemon does, stand by to take over."""
    stop = anyio.Event()
    lock = DaemonLock(path)
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_stop_on_signal, stop)
            if await _take_over(lock, stop):
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
        for projection in projections:
            async with _opened(path) as store:
                until = await store.newest()
                await _leave_rebuild_to_holder(store, projection, lock)
                await tail(store, projection, stop, until=until)
    finally:
        lock.release()


async def _tail_all(path: Path, projections: Sequence[Projection], stop: anyio.Event) -> None:
    async with AsyncExitStack() as stores:
        opened = [await stores.enter_async_context(_opened(path)) for _ in projections]
        log.info("started", database=str(path), projections=[p.name for p in projections])
        async with anyio.create_task_group() as tasks:
            for store, projection in zip(opened, projections, strict=True):
                tasks.start_soon(tail, store, projection, stop)


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


async def _take_over(lock: DaemonLock, stop: anyio.Event) -> bool:
    """Whether the lock is ours; False when told to stop before."""
    announced = False
    while not stop.is_set():
        if lock.acquire():
            return True
        if not announced:
            log.info("standing_by", daemon_pid=lock.holder())
            announced = True
        with anyio.move_on_after(STANDBY_POLL_S):
            await stop.wait()
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
