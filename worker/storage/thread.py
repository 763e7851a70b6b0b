"""A store in a thread of its own, which the daemon's event loop hands work to.

The thread is aiosqlite's, the connection the store's, which alone knows whether it may be closed:
aiosqlite holds one to nothing. That several statements run in one hop, which
costs 50 µs there and back, needs `Connection._execute`, which aiosqlite does not publish. It is
called here alone, and looked for when this module is imported.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import aiosqlite
import anyio

from session_projector.worker.errors import no_thread
from session_projector.worker.storage.limits import ASK_EVERY_S
from session_projector.worker.storage.port import Store, T

if not callable(getattr(aiosqlite.Connection, "_execute", None)):
    raise ImportError("this version of aiosqlite has no Connection._execute")


LOOK_S: Final = 0.5


class StoreThread:
    """Implements `worker.storage.port.Thread`."""

    def __init__(
        self, connection: aiosqlite.Connection, store: Store, patience_s: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._store = store
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        """Whoever holds it uses the store."""

    async def changed(self, patience_s: float = 0) -> bool:
        if self._store.answers_at_once and self._lock.acquire(blocking=False):
            try:
                found = self._store.changed()
            finally:
                self._lock.release()
            if found or not patience_s:
                return found
        return await self.run(lambda store: _changed(store, patience_s))

    async def run(self, work: Callable[[Store], T]) -> T:
        def look() -> None:
            """End a statement that does not end by itself."""
            self._store.interrupt(self._patience_s())
            timers.append(self._loop.call_later(LOOK_S, look))

        timers = [self._loop.call_later(LOOK_S, look)]
        try:
            # A cancelled task does not take back what the thread has begun: a BEGIN that is
            # abandoned would open a transaction later, and lock every writer out.
            with anyio.CancelScope(shield=True):
                done: T = await self._connection._execute(self._do, work)  # type: ignore[no-untyped-call]
        finally:
            timers[-1].cancel()
        return done

    def _do(self, work: Callable[[Store], T]) -> T:
        with self._lock:
            return work(self._store)


def _changed(store: Store, patience_s: float) -> bool:
    until_s = time.perf_counter() + patience_s
    while not (found := store.changed()) and time.perf_counter() < until_s:
        time.sleep(ASK_EVERY_S)
    return found


@asynccontextmanager
async def opened(
    open_store: Callable[[], Store], patience_s: Callable[[], float]
) -> AsyncIterator[StoreThread]:
    """A thread for as long as the block lasts; `open_store` runs in it.

    `patience_s`: how long a statement may take.
    """
    stores: list[Store] = []

    def close() -> None:
        for store in stores:
            store.close()

    connection = aiosqlite.Connection(lambda: sqlite3.connect(":memory:"), iter_chunk_size=64)
    with anyio.CancelScope(shield=True), no_thread():
        await connection
    try:
        with anyio.CancelScope(shield=True):
            await connection._execute(lambda: stores.append(open_store()))  # type: ignore[no-untyped-call]
        yield StoreThread(connection, stores[0], patience_s)
    finally:
        # Also of a store that the thread has yet to open, for a task that is cancelled meanwhile.
        with anyio.CancelScope(shield=True):
            try:
                await connection._execute(close)  # type: ignore[no-untyped-call]
            finally:
                await connection.close()
