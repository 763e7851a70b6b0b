"""How the tail hears of commits: a bell that writers ring only while a daemon waits for it.

A writer that inserts tries to share an advisory lock until its transaction ends, and notifies a
channel only where it cannot (the trigger `event_log_bell`). A daemon that has nothing to do takes
the lock for itself, which it can only while no writer is on its way, asks once more and listens:
every commit from then on rings. Once another rings while it works, it lets go until there is no
more to read, so that under load writers pay nothing.
"""

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal

import anyio
import anyio.to_thread
import psycopg
import structlog

from session_projector.worker.errors import InterventionRequired, ProjectorError
from session_projector.worker.storage.postgres.connection import connect, refuse_pooler
from session_projector.worker.storage.postgres.errors import translated
from session_projector.worker.storage.postgres.locks import BELL_CLASS, LISTENERS_CLASS
from session_projector.worker.storage.postgres.target import Target

LONGEST_IDLE_S: Final = 1.0
POLLS_S: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05)
"""Between two questions while nobody would ring; the last one is for all that follow."""
VAIN_S: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""Before the next answer, after so many for which the reads found nothing."""
ANOTHER_S: Final = 0.25
"""How often a daemon that relies on another's lock looks whether that one is still alive."""
RECONNECT_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
FREE: Final = "free"
"""What a daemon that lets go of the lock says to the others; writers say nothing."""
_RELY: Final = "SELECT pg_advisory_lock_shared({listeners}, {log})"
_TAKE: Final = """
    SELECT CASE
        WHEN pg_try_advisory_lock({bell}, {log}) THEN 'ours'
        WHEN pg_try_advisory_xact_lock_shared({bell}, {log}) THEN 'writers'
        ELSE 'another'
    END
"""
_LET_GO: Final = """
    SELECT pg_advisory_unlock({bell}, {log}), CASE
        WHEN NOT pg_try_advisory_xact_lock({listeners}, {log}) THEN pg_notify('{channel}', '{free}')
    END
"""
Holder = Literal["ours", "writers", "another", "unknown"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Bell:
    """Implements `worker.storage.port.Wakeup`, on a connection of its own.

    Where that is lost, it goes by the clock until it is made again. Nobody else is told: whoever
    reads meets the same server.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._raw: psycopg.Connection[Any] | None = None
        self._sql = {"take": b"", "let go": b""}
        self._held_by: Holder = "unknown"
        self._heard: set[str] = set()
        """What was said on the channel since this was last looked at."""
        self._rung = False
        """A writer rang while the lock was ours, which is to be let go then."""
        self._unheard = False
        """What was seen last has not rung."""
        self._said_yes = False
        self._vain = 0
        self._failures = 0
        self._retry_at = 0.0
        self._waiting: anyio.CancelScope | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._waiting:
            self._waiting.cancel()  # which then disconnects
        else:
            self._disconnect()

    def hears_on(self) -> bool:
        self._listen()
        if self._held_by != "ours" or self._heard or self._unheard:
            return False
        self._rung = self._said_yes = False  # what was found answers both
        return True

    async def wait(self, changed: Callable[[], Awaitable[bool]], *, found: bool) -> bool:
        if self._closed:
            return found
        yes, self._said_yes = self._said_yes and not found, False
        if found and self._unheard:  # it hangs at another server than the one that is read, say
            self._lose("an event did not ring")
        self._unheard = False
        self._vain = min(self._vain + 1, len(VAIN_S)) if yes else 0
        try:
            with anyio.move_on_after(LONGEST_IDLE_S) as self._waiting:
                if not found:
                    await self._hint(changed)
                    self._said_yes = True
                elif self._held_by == "ours":
                    await anyio.to_thread.run_sync(self._let_go)
        finally:
            self._waiting = None
            if self._closed:
                self._disconnect()
        if not (found or self._said_yes or self._closed) and self._held_by == "ours":
            self._said_yes = await self._overdue(changed)
        return found or (self._said_yes and not self._closed)

    async def _hint(self, changed: Callable[[], Awaitable[bool]]) -> None:
        """Wait until there may be something new."""
        if self._rung:
            await anyio.to_thread.run_sync(self._let_go)
        if self._vain and await self._rings(VAIN_S[self._vain - 1]):
            return
        is_due, polls = self._vain > 0, iter(POLLS_S)
        while True:
            if self._held_by != "ours":
                is_due = True
                await anyio.to_thread.run_sync(self._take)
            if is_due and await changed():
                return
            if await self._rings(self._pause_s(polls)):
                return

    def _pause_s(self, polls: Iterator[float]) -> float:
        if self._held_by == "ours":
            return math.inf
        return ANOTHER_S if self._held_by == "another" else next(polls, POLLS_S[-1])

    async def _overdue(self, changed: Callable[[], Awaitable[bool]]) -> bool:
        """Ask, after nothing was heard."""
        yes = await changed()
        self._listen()
        self._unheard = yes and not self._heard
        return yes

    async def _rings(self, within_s: float) -> bool:
        """Wait for a writer to ring, for a time at most, or until the lock may be had."""
        with anyio.move_on_after(within_s):
            while self._raw is not None:
                self._listen()
                heard, self._heard = self._heard, set()
                if heard - {FREE}:
                    self._rung = self._held_by == "ours"
                    return True
                if self._raw is None or (heard and self._held_by == "another"):
                    return False
                await anyio.wait_readable(self._raw.fileno())
            await anyio.sleep(within_s)
        return False

    def _listen(self) -> None:
        """Take in what the server has said, without waiting."""
        if self._raw is None:
            return
        try:
            self._raw.pgconn.consume_input()
            while said := self._raw.pgconn.notifies():
                self._hear(said.be_pid, said.extra.decode())
        except psycopg.Error as error:
            self._lose(str(error))

    def _hear(self, backend_pid: int, said: str) -> None:
        if self._raw and backend_pid != self._raw.info.backend_pid:
            self._heard.add(said)

    def _take(self) -> None:
        """Try to get the lock, in a thread. What writers rang for until now is forgotten: the
        caller asks for new events after this."""
        if self._raw is None and time.monotonic() < self._retry_at:
            return
        try:
            with translated(self._target.name):
                raw = self._raw = self._raw or self._connect()
                row = raw.execute(self._sql["take"]).fetchone()
            self._held_by = row[0] if row else "unknown"
            self._failures = 0
            self._heard &= {FREE}
        except ProjectorError as error:
            self._lose(str(error))

    def _connect(self) -> psycopg.Connection[Any]:
        raw = connect(self._target)
        try:
            refuse_pooler(self._target.name, raw)
            table = f"{self._target.prefix}event_log"
            row = raw.execute(
                b"SELECT to_regclass(%s)::oid, to_regclass(%s)::oid::int", [table] * 2
            )
            oid, key = row.fetchone() or (None, None)
            if oid is None:
                raise InterventionRequired(f"{self._target.name}: there is no event_log")
            keys = {"bell": BELL_CLASS, "listeners": LISTENERS_CLASS, "log": key, "free": FREE}

            def filled(sql: str) -> bytes:
                return sql.format(**keys, channel=f"projector_{oid}").encode()

            self._sql = {"take": filled(_TAKE), "let go": filled(_LET_GO)}
            raw.add_notify_handler(lambda said: self._hear(said.pid, said.payload))
            raw.execute(filled("LISTEN {channel}"))
            raw.execute(filled(_RELY))
        except BaseException:
            raw.close()
            raise
        return raw

    def _let_go(self) -> None:
        """Let writers pass without ringing, in a thread; the caller reads, or asks, after this."""
        self._rung, self._held_by = False, "unknown"
        if self._raw is None:
            return
        try:
            with translated(self._target.name):
                self._raw.execute(self._sql["let go"])
            self._heard.clear()
        except ProjectorError as error:
            self._lose(str(error))

    def _lose(self, why: str) -> None:
        """Go by the clock, until it is time to try again."""
        log.debug("bell_lost", why=why)
        self._retry_at = time.monotonic() + RECONNECT_S[min(self._failures, len(RECONNECT_S) - 1)]
        self._failures += 1
        self._disconnect()

    def _disconnect(self) -> None:
        """End the session, and with it the lock. The server is told what to do before that, and not
        waited for."""
        raw, self._raw = self._raw, None
        held_by, self._held_by, self._rung = self._held_by, "unknown", False
        if raw is None:
            return
        with suppress(psycopg.Error):
            if held_by == "ours":
                raw.pgconn.send_query(self._sql["let go"])
            raw.close()
