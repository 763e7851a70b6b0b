"""How a program that only looks on hears of commits: it hears writers ring for the daemon, and asks
until the commit is there that follows from it, for which nobody rings.

Unlike `wakeup.Bell` it takes no lock, so that nobody rings for it alone: while a daemon works, or
where there is none, it goes by the clock.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import anyio
import anyio.to_thread
import psycopg
import structlog

from session_projector.worker.errors import InterventionRequired, ProjectorError
from session_projector.worker.storage.postgres.connection import connect, refuse_pooler
from session_projector.worker.storage.postgres.errors import translated
from session_projector.worker.storage.postgres.target import Target

LONGEST_IDLE_S: Final = 1.0
AGAIN_S: Final = (0.001, 0.001, 0.002, 0.004, 0.008, 0.016, *[0.032] * 15)
"""Between two questions after something was heard or found."""
IDLE_POLL_S: Final = 0.25
DEAF_POLL_S: Final = 0.05
"""Between two questions where nothing is to be heard: behind a pooler, or at a standby."""
RECONNECT_S: Final = 3.0

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Listener:
    """Implements `worker.storage.port.Wakeup`, on a connection of its own."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._raw: psycopg.Connection[Any] | None = None
        self._again: Iterator[float] = iter(AGAIN_S)
        self._retry_at = 0.0
        self._waiting: anyio.CancelScope | None = None
        self._closed = False

    def hears_on(self) -> bool:
        return False

    def close(self) -> None:
        self._closed = True
        if self._waiting:
            self._waiting.cancel()  # which then disconnects
        else:
            self._disconnect()

    async def wait(self, changed: Callable[[], Awaitable[bool]], *, found: bool) -> bool:
        if found or self._closed:
            self._again = iter(AGAIN_S)
            return found
        try:
            with anyio.move_on_after(LONGEST_IDLE_S) as self._waiting:
                if self._raw is None and time.monotonic() >= self._retry_at:
                    await anyio.to_thread.run_sync(self._connect)
                return await self._hint(changed)
        finally:
            self._waiting = None
            if self._closed:
                self._disconnect()
        return not self._closed and await changed()

    async def _hint(self, changed: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until others have committed."""
        while True:
            idle_s = DEAF_POLL_S if self._raw is None else IDLE_POLL_S
            if await self._rings(next(self._again, idle_s)):
                self._again = iter(AGAIN_S)
            if await changed():
                return True

    async def _rings(self, within_s: float) -> bool:
        """Wait for a writer to ring, for a time at most."""
        with anyio.move_on_after(within_s):
            while self._raw is not None:
                if self._hears():
                    return True
                if self._raw is not None:
                    await anyio.wait_readable(self._raw.fileno())
            await anyio.sleep(within_s)
        return False

    def _hears(self) -> bool:
        """Take in what the server has said, without waiting."""
        heard = False
        try:
            if self._raw:
                self._raw.pgconn.consume_input()
                while self._raw.pgconn.notifies():
                    heard = True
        except psycopg.Error as error:
            self._lose(str(error))
        return heard

    def _connect(self) -> None:
        """In a thread."""
        try:
            raw = self._raw = connect(self._target, writable=False)
            with translated(self._target.name):
                refuse_pooler(self._target.name, raw)
                table = f"{self._target.prefix}event_log"
                row = raw.execute(b"SELECT to_regclass(%s)::oid", [table]).fetchone()
                if row is None or row[0] is None:
                    raise InterventionRequired(f"{self._target.name}: there is no event_log")
                raw.execute(f"LISTEN projector_{row[0]}".encode())
        except ProjectorError as error:
            self._lose(str(error))

    def _lose(self, why: str) -> None:
        """Go by the clock, until it is time to try again."""
        log.debug("bell_lost", why=why)
        self._retry_at = time.monotonic() + RECONNECT_S
        self._disconnect()

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(psycopg.Error):
                raw.close()
