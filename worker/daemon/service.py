"""Composition: the lock, the signals, the supervisor, shutdown."""

import asyncio
import math
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskStatus

from session_projector.projections.projection import Projection
from session_projector.worker.clock import wait
from session_projector.worker.daemon.background_verify import verify_in_background
from session_projector.worker.daemon.outage import Outage
from session_projector.worker.daemon.supervisor import Supervisor
from session_projector.worker.errors import (
    DatabaseUnavailable,
    ProjectorError,
    TransientError,
    no_thread,
)
from session_projector.worker.replay.difference import KINDS
from session_projector.worker.replay.round_robin import STANDBY_POLL_S
from session_projector.worker.storage.port import Database
from session_projector.worker.telemetry.state import DaemonState

LONGEST_STOP_S: Final = 20.0
"""After that it is forced, before systemd or a container would kill the process without a word."""
LAST_WORDS_S: Final = 1.0
"""For the thread that writes the log."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def run(
    database: Database,
    projections: Sequence[Projection] | Callable[[], Sequence[Projection]],
    state: DaemonState,
    *,
    verify_every_s: float | None = None,
) -> None:
    """Tail until SIGTERM or SIGINT what no other daemon does; stand by to take over the rest.

    What tells the `projections` is called until the database's server is there.
    """
    stop = anyio.Event()
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_stop_on_signal, database, stop, state)
            daemon = _Daemon(database, stop, state, verify_every_s)
            await daemon.run(projections)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    log.info("stopped")


class _Daemon:
    """What leads now and then, and works meanwhile."""

    def __init__(
        self,
        database: Database,
        stop: anyio.Event,
        state: DaemonState,
        verify_every_s: float | None,
    ) -> None:
        self._database = database
        self._stop = stop
        self._state = state
        self._verify_every_s = verify_every_s
        self._outage = Outage(state)
        self._projections: Sequence[Projection] = ()
        self._leadership = database.leadership()
        self._waits = anyio.CancelScope()

    async def run(
        self, projections: Sequence[Projection] | Callable[[], Sequence[Projection]]
    ) -> None:
        while callable(projections) and not self._stop.is_set():
            try:
                with no_thread():
                    projections = await anyio.to_thread.run_sync(projections)
            except DatabaseUnavailable as error:
                await self._wait_out(error)
        if callable(projections):
            return
        self._outage.over()
        self._projections = projections
        self._state.expect(projections, KINDS)
        self._state.troubled = lambda: self._waits.cancel()
        self._leadership = self._database.leadership({p.name: p.version for p in projections})
        try:
            while led := await self._take_over():
                await self._lead(led)
        finally:
            self._leadership.release()

    async def _take_over(self) -> list[Projection]:
        """The projections that are ours, once there are any; none when told to stop before."""
        announced = False
        check_identity = self._database.watch_identity()
        while not self._stop.is_set():
            check_identity()
            try:
                if led := await self._acquire():
                    self._state.took_over([projection.name for projection in led])
                    return led
                self._outage.over()
                self._state.stands_by()
                if not announced:
                    await anyio.to_thread.run_sync(self._announce)
                    announced = True
            except DatabaseUnavailable as error:
                await self._wait_out(error)
                continue
            await wait(STANDBY_POLL_S, self._stop)
        return []

    async def _lead(self, led: Sequence[Projection]) -> None:
        """Run some projections until told to stop, or until another daemon may lead them."""
        end = anyio.Event()
        supervisor = Supervisor(self._database, led, end, self._state, self._outage)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_at_stop, end)
            tasks.start_soon(self._watch, led, supervisor, end)
            if self._verify_every_s is not None:
                verified = (self._database, led, self._verify_every_s, end, self._state)
                tasks.start_soon(verify_in_background, *verified)
            try:
                await supervisor.run()
            except DatabaseUnavailable as error:
                await self._wait_out(error)
            tasks.cancel_scope.cancel()

    async def _watch(
        self, led: Sequence[Projection], supervisor: Supervisor, end: anyio.Event
    ) -> None:
        """Take over what other daemons lead when these end; tell when what is led is lost, and let
        others see what is waited for."""
        ours, told = list(led), None
        while True:
            while told != (trouble := self._state.trouble):
                told = trouble
                with suppress(DatabaseUnavailable), no_thread():
                    await anyio.to_thread.run_sync(self._leadership.tell, trouble)
            some = len(ours) < len(self._projections)
            with anyio.move_on_after(STANDBY_POLL_S if some else math.inf) as self._waits:
                await self._leadership.lost()
            if self._waits.cancelled_caught and not some:
                continue  # there is something to tell
            try:
                now = await self._acquire() if self._waits.cancelled_caught else []
            except DatabaseUnavailable:
                now = []
            if any(projection not in now for projection in ours):
                log.warning("leadership_lost", projections=[projection.name for projection in ours])
                end.set()
                return
            for projection in now:
                if projection not in ours:
                    log.info("took_over", projection=projection.name)
                    self._state.joins(projection.name)
                    supervisor.join(projection)
            ours = now

    async def _acquire(self) -> list[Projection]:
        acquire = partial(self._leadership.acquire_some, stand_by=True)
        with no_thread():
            led = await anyio.to_thread.run_sync(acquire)
        return [projection for projection in self._projections if projection.name in led]

    def _announce(self) -> None:
        leader = self._leadership.leader()
        if leader and not leader.pid:
            hint = f"no daemon that is seen from here; see who: {self._leadership.who_holds_it}"
            log.warning("lock_held", hint=hint)
        where = {"daemon_host": leader.host} if leader and leader.host else {}
        hint = "options of this one, such as --with, count only once it takes over"
        pid = leader.pid if leader else None
        log.info("standing_by", daemon_pid=pid, **where, hint=hint)

    async def _wait_out(self, error: DatabaseUnavailable) -> None:
        """A server may come back; a file that cannot be had at the start is told of."""
        if not self._database.is_served:
            raise error
        await self._outage.wait_out(error, self._stop)

    async def _end_at_stop(self, end: anyio.Event) -> None:
        await self._stop.wait()
        end.set()


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


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the first task, rather than the group that it is wrapped in."""
    if found := group.subgroup(ProjectorError):
        group = found
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first
