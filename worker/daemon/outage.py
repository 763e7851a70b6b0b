"""What keeps the daemon from its work: said once, then counted, then said to be over."""

import time
from typing import Final

import anyio
import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.clock import now_ms, wait
from session_projector.worker.errors import DatabaseUnavailable, ProjectionFailed
from session_projector.worker.folding.faults import told
from session_projector.worker.storage.port import ProjectionStatus, Thread
from session_projector.worker.telemetry.state import DaemonState

RETRY_S: Final = 0.5
"""Between two attempts at a database that is locked or has no room."""
HELD_BACK_S: Final = 2.0
"""How long events may be held back before that is told."""
LONGEST_RETRY_S: Final = 60.0
"""Between two attempts at a projection that fails; the first is after a second."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Outage:
    """A database that is locked or has no room."""

    def __init__(self, state: DaemonState, projection: str = "") -> None:
        """`projection`: one that is by itself; what it may not write, the lead may read."""
        self.state = state
        self._projection = projection
        self._fields = {"projection": projection} if projection else {}
        self._failures = 0

    async def wait_out(self, error: DatabaseUnavailable, stop: anyio.Event) -> None:
        """Wait until another attempt is due."""
        self.state.waited_for_database(error.lacks, self._projection)
        if not self._failures:
            log.warning("database_unavailable", why=str(error), hint=error.hint, **self._fields)
        self._failures += 1
        await wait(RETRY_S, stop)

    def over(self) -> None:
        """An attempt succeeded."""
        if self._failures:
            self.state.database_available(self._projection)
            log.info("database_available_again", failures=self._failures, **self._fields)
            self._failures = 0


class HeldBack:
    """Events that are there and cannot be read, as a writer has not ended its transaction."""

    def __init__(self, state: DaemonState) -> None:
        self._state = state
        self._since: float | None = None
        self._said: list[str] = []

    async def look(self, thread: Thread, *, waiting: bool) -> None:
        """Say who it is, once, after a while; `waiting`: there are such events."""
        if not waiting:
            if self._said:
                log.info("events_held_back_no_longer")
                self._state.held_back(())
            self._since, self._said = None, []
            return
        now = time.monotonic()
        self._since = self._since or now
        if self._said or now - self._since < HELD_BACK_S:
            return
        self._since = now
        if holders := await thread.run(lambda store: store.log.held_back_by()):
            self._said = [holder.who for holder in holders]
            hint = f"end it where it was forgotten: {holders[0].cure}"
            log.warning("events_held_back", by=self._said, hint=hint)
            self._state.held_back(self._said)


class Failures:
    """A projection that fails, and is tried again ever more slowly."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self._why = ""
        self._failures = 0
        self._since_ms = 0

    @property
    def retry_s(self) -> float:
        """How long to wait before the next attempt."""
        return min(2.0 ** (self._failures - 1), LONGEST_RETRY_S)

    async def tell(self, thread: Thread, error: ProjectionFailed) -> None:
        """An attempt failed."""
        name, version = self._projection.name, self._projection.version
        now = now_ms()
        self._since_ms = self._since_ms or now
        self._failures += 1
        if str(error) != self._why:
            self._why = str(error)
            log.error("projection_failed", projection=name, **told(error))
        why = f"{error}: {error.hint}"
        status = ProjectionStatus("failed", version, why, 0, 0, self._since_ms, now)
        await thread.run(lambda store: store.checkpoints.report(name, status))

    async def over(self, thread: Thread) -> None:
        """An attempt succeeded."""
        name = self._projection.name
        if self._failures:
            log.info("projection_recovered", projection=name, failures=self._failures)
        await thread.run(lambda store: store.checkpoints.report(name, None))
