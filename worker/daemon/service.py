"""Composition: the lock, the signals, the supervisor, shutdown."""

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

from session_projector.projections.projection import Projection
from session_projector.worker.clock import wait
from session_projector.worker.daemon.background_verify import verify_in_background
from session_projector.worker.daemon.supervisor import Supervisor
from session_projector.worker.errors import ProjectorError, TransientError
from session_projector.worker.replay.difference import KINDS
from session_projector.worker.replay.round_robin import STANDBY_POLL_S
from session_projector.worker.storage.port import Database, Leadership
from session_projector.worker.telemetry.state import DaemonState

LONGEST_STOP_S: Final = 20.0
"""After that it is forced, before systemd or a container would kill the process without a word."""
LAST_WORDS_S: Final = 1.0
"""For the thread that writes the log."""

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
            await tasks.start(_stop_on_signal, database, stop, state)
            if await _take_over(database, leadership, stop, state):
                if verify_every_s is not None:
                    verified = (database, projections, verify_every_s, stop, state)
                    tasks.start_soon(verify_in_background, *verified)
                await Supervisor(database, projections, stop, state).run()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first_error(group) from None
    finally:
        leadership.release()
    log.info("stopped")


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
            if leader and not leader.pid:
                hint = f"no daemon that is seen from here; see who: {leadership.who_holds_it}"
                log.warning("lock_held", hint=hint)
            log.info("standing_by", daemon_pid=leader.pid if leader else None)
            announced = True
        await wait(STANDBY_POLL_S, stop)
    return False


async def _stop_on_signal(
    database: Database,
    stop: anyio.Event,
    state: DaemonState,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            asyncio.get_running_loop().call_later(LONGEST_STOP_S, _force_stop)
            state.stops()
            database.hurry()
            stop.set()


def _force_stop() -> None:
    """End the process although a statement does not end, which SQLite cannot always interrupt: its
    transaction is rolled back, as after a kill. Whoever stops in time never comes here."""
    hint = "see which triggers other programs have: `projector doctor`"
    log.error("stop_forced", after_s=LONGEST_STOP_S, hint=hint)
    asyncio.get_running_loop().call_later(LAST_WORDS_S, os._exit, TransientError.exit_code)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the first task, rather than the group that it is wrapped in."""
    if found := group.subgroup(ProjectorError):
        group = found
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
