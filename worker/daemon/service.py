"""Composition: the lock, the signals, the feed, shutdown."""

import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from session_projector.projections.projection import Projection
from session_projector.worker.daemon.background_verify import scrub
from session_projector.worker.daemon.supervisor import Feed
from session_projector.worker.daemon.tail import Member, Tail, faults_of, load
from session_projector.worker.errors import LostRace, ProjectionFailed, ProjectorError, RetryLater
from session_projector.worker.replay.difference import KINDS
from session_projector.worker.replay.rebuild import is_walked, needs_rebuild, rebuild
from session_projector.worker.replay.round_robin import STANDBY_POLL_S, Turn, side_by_side
from session_projector.worker.replay.walk import Pages
from session_projector.worker.storage.port import Checkpoint
from session_projector.worker.storage.sqlite.connection import DaemonLock, FileIdentity
from session_projector.worker.storage.sqlite.store import SqliteStore, opened
from session_projector.worker.storage.sqlite.wakeup import wait
from session_projector.worker.telemetry.state import DaemonState

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(
    path: Path,
    projections: Sequence[Projection],
    vitals: DaemonState,
    *,
    verify_every_s: float | None = None,
) -> None:
    """Tail until SIGTERM or SIGINT; while another daemon does, stand by to take over."""
    stop = anyio.Event()
    vitals.expect(projections, KINDS)
    lock = DaemonLock(path, {p.name: p.version for p in projections})
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_stop_on_signal, stop, vitals)
            if await _take_over(path, lock, stop, vitals):
                if verify_every_s is not None:
                    walk = (path, projections, verify_every_s, stop, vitals)
                    tasks.start_soon(scrub, *walk)
                await Feed(path, projections, stop, vitals).run()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first_error(group) from None
    finally:
        lock.release()
    log.info("stopped")


async def run_once(path: Path, projections: Sequence[Projection]) -> None:
    """Catch up with the newest event there is now; works beside a daemon by compare-and-set.

    One that fails does not keep the others from it; the first such failure is raised at the end.
    """
    stop = anyio.Event()
    lock = DaemonLock(path)
    failed: list[ProjectionFailed] = []
    try:
        async with opened(path) as store:
            until = await store.newest()
            while True:
                going = {error.projection for error in failed}
                rest = [p for p in projections if p.name not in going]
                try:
                    for group in await _groups(store, rest, lock):
                        await Tail(store, group).run(stop, until=until)
                    break
                except LostRace:
                    log.info("checkpoint_moved_by_another")
                except ProjectionFailed as error:
                    log.error("projection_failed", why=str(error), hint=error.hint)
                    failed.append(error)
    finally:
        lock.release()
    if failed:
        raise failed[0]


async def _groups(
    store: SqliteStore, projections: Sequence[Projection], lock: DaemonLock
) -> Iterable[list[Member]]:
    """The projections by the position where they stand, none of them in need of a rebuild."""
    walked: list[Projection] = []
    for projection in projections:
        with faults_of(projection):
            await load(store, projection)
            ours = await _is_ours(store, projection, lock)
            checkpoint = (await load(store, projection)).checkpoint
            if ours and await is_walked(store, projection, checkpoint):
                walked.append(projection)

    def turn(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Turn:
        return rebuild(store, projection, checkpoint, pages=pages, brief=True)

    await side_by_side(store, walked, turn, faults_of)
    groups: dict[int, list[Member]] = {}
    for projection in projections:
        with faults_of(projection):
            member = await load(store, projection)
            if await needs_rebuild(store, projection, member.checkpoint):
                raise LostRace  # to a daemon that has begun just now
        groups.setdefault(member.checkpoint.position, []).append(member)
    return groups.values()


async def _take_over(path: Path, lock: DaemonLock, stop: anyio.Event, vitals: DaemonState) -> bool:
    """Whether the lock is ours; False when told to stop before."""
    announced = False
    identity = FileIdentity(path)
    while not stop.is_set():
        identity.check()
        if lock.acquire(stand_by=True):
            vitals.took_over()
            return True
        vitals.stands_by()
        if not announced:
            log.info("standing_by", daemon_pid=lock.holder())
            announced = True
        await wait(STANDBY_POLL_S, stop)
    return False


def holder_rebuilds(lock: DaemonLock, projection: Projection) -> bool:
    """Whether the holder of the lock runs a projection, and will rebuild it.

    Raises `RetryLater` where it is a daemon of an older version, which never will.
    """
    running = lock.running()
    version = running.get(projection.name, projection.version)
    if version < projection.version:
        raise RetryLater(
            f"the daemon that is alive (process {lock.holder()}) runs version {version} of"
            f" {projection.name}, and this is version {projection.version}",
            "restart the daemon, and it rebuilds the views by itself",
        )
    return projection.name in running or not running


async def _is_ours(store: SqliteStore, projection: Projection, lock: DaemonLock) -> bool:
    """Whether to walk is up to us: two walks at once would each void the other's claim. Where the
    holder of the lock must rebuild, waits until that is done."""
    while not lock.acquire():
        if not holder_rebuilds(lock, projection):
            return True
        if not await needs_rebuild(store, projection, await store.checkpoint(projection)):
            return False
        await anyio.sleep(STANDBY_POLL_S)
    return True


async def _stop_on_signal(
    stop: anyio.Event,
    vitals: DaemonState,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            vitals.stops()
            stop.set()


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the first task, rather than the group that it is wrapped in."""
    if found := group.subgroup(ProjectorError):
        group = found
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
