"""Composition: the lock, the signals, the feed, shutdown."""

import signal
from collections.abc import Iterable, Sequence

import anyio
import structlog
from anyio.abc import TaskStatus

from session_projector.projections.projection import Projection
from session_projector.worker.clock import wait
from session_projector.worker.daemon.background_verify import verify_in_background
from session_projector.worker.daemon.member import Member, load
from session_projector.worker.daemon.supervisor import Feed
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.errors import LostRace, ProjectionFailed, ProjectorError
from session_projector.worker.folding.checkpoints import checkpoint_of, needs_rebuild
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.replay.difference import KINDS
from session_projector.worker.replay.plan import is_walked
from session_projector.worker.replay.rebuild import rebuild
from session_projector.worker.replay.round_robin import STANDBY_POLL_S, Turn, side_by_side
from session_projector.worker.replay.verify import leader_rebuilds
from session_projector.worker.replay.walk import Pages
from session_projector.worker.storage.port import Checkpoint, Database, Leadership, Thread
from session_projector.worker.telemetry.state import DaemonState

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(
    database: Database,
    projections: Sequence[Projection],
    state: DaemonState,
    *,
    verify_every_s: float | None = None,
) -> None:
    """Tail until SIGTERM or SIGINT; while another daemon does, stand by to take over."""
    stop = anyio.Event()
    state.expect(projections, KINDS)
    leadership = database.leadership({p.name: p.version for p in projections})
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_stop_on_signal, stop, state)
            if await _take_over(database, leadership, stop, state):
                if verify_every_s is not None:
                    verified = (database, projections, verify_every_s, stop, state)
                    tasks.start_soon(verify_in_background, *verified)
                await Feed(database, projections, stop, state).run()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first_error(group) from None
    finally:
        leadership.release()
    log.info("stopped")


async def run_once(database: Database, projections: Sequence[Projection]) -> None:
    """Catch up with the newest event there is now; works beside a daemon by compare-and-set.

    One that fails does not keep the others from it; the first such failure is raised at the end.
    """
    stop = anyio.Event()
    leadership = database.leadership()
    failed: list[ProjectionFailed] = []
    try:
        async with database.open_thread() as thread:
            until = await thread.run(lambda store: store.log.newest())
            while True:
                going = {error.projection for error in failed}
                rest = [p for p in projections if p.name not in going]
                try:
                    for group in await _groups(thread, rest, leadership):
                        await Tail(thread, group).run(stop, until=until)
                    break
                except LostRace:
                    log.info("checkpoint_moved_by_another")
                except ProjectionFailed as error:
                    log.error("projection_failed", why=str(error), hint=error.hint)
                    failed.append(error)
    finally:
        leadership.release()
    if failed:
        raise failed[0]


async def _groups(
    thread: Thread, projections: Sequence[Projection], leadership: Leadership
) -> Iterable[list[Member]]:
    """The projections by the position where they stand, none of them in need of a rebuild."""
    walked: list[Projection] = []
    for projection in projections:
        with faults_of(projection):
            await load(thread, projection)
            ours = await _is_ours(thread, projection, leadership)
            checkpoint = (await load(thread, projection)).checkpoint
            if ours and await thread.run(lambda store: is_walked(store, projection, checkpoint)):
                walked.append(projection)

    def turn(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Turn:
        return rebuild(thread, projection, checkpoint, pages=pages, brief=True)

    await side_by_side(thread, walked, turn, faults_of)
    groups: dict[int, list[Member]] = {}
    for projection in projections:
        with faults_of(projection):
            member = await load(thread, projection)
            checkpoint = member.checkpoint
            if await thread.run(lambda store: needs_rebuild(store, projection, checkpoint)):
                raise LostRace  # to a daemon that has begun just now
        groups.setdefault(member.checkpoint.position, []).append(member)
    return groups.values()


async def _take_over(
    database: Database, leadership: Leadership, stop: anyio.Event, state: DaemonState
) -> bool:
    """Whether the lock is ours; False when told to stop before."""
    announced = False
    check_identity = database.watch_identity()
    while not stop.is_set():
        check_identity()
        if leadership.acquire(stand_by=True):
            state.took_over()
            return True
        state.stands_by()
        if not announced:
            leader = leadership.leader()
            log.info("standing_by", daemon_pid=leader.pid if leader else None)
            announced = True
        await wait(STANDBY_POLL_S, stop)
    return False


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


async def _stop_on_signal(
    stop: anyio.Event,
    state: DaemonState,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            state.stops()
            stop.set()


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the first task, rather than the group that it is wrapped in."""
    if found := group.subgroup(ProjectorError):
        group = found
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
