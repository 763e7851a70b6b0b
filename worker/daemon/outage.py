"""What keeps the daemon from its work: said once, then counted, then said to be over."""

from typing import Final

import anyio
import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.clock import now_ms, wait
from session_projector.worker.errors import DatabaseUnavailable, ProjectionFailed
from session_projector.worker.storage.port import ProjectionStatus, Thread
from session_projector.worker.telemetry.state import DaemonState

RETRY_S: Final = 0.5
"""Between two attempts at a database that is locked or has no room."""
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
        self.state.waited_for_database(self._projection)
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
            log.error("projection_failed", projection=name, why=self._why, hint=error.hint)
        why = f"{error}: {error.hint}"
        status = ProjectionStatus("failed", version, why, 0, 0, self._since_ms, now)
        await thread.run(lambda store: store.checkpoints.report(name, status))

    async def over(self, thread: Thread) -> None:
        """An attempt succeeded."""
        name = self._projection.name
        if self._failures:
            log.info("projection_recovered", projection=name, failures=self._failures)
        await thread.run(lambda store: store.checkpoints.report(name, None))
