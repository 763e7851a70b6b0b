"""What differs is written: by chunks, each one a compare-and-set of the checkpoint."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec

from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Table
from session_projector.worker.errors import DatabaseUnavailable, LostRace
from session_projector.worker.folding.pacing import WritePacing
from session_projector.worker.replay.as_of import AsOf
from session_projector.worker.storage.port import Change, Checkpoint, Thread, size_of

CHUNK_CHANGES: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
"""What one transaction writes at most, so that no writer waits long."""
SHARE_BESIDE_WRITERS: Final = 8
"""While other processes write, a transaction has this part of them."""
Rows = Mapping[str, tuple[Any, ...]]
HoldOn = Callable[[DatabaseUnavailable], Awaitable[None]]


class Fixer:
    """Writes rows of one projection in short transactions.

    After each of them it pauses for as long as it took, where other processes write too.
    """

    def __init__(
        self, thread: Thread, table: Table, as_of: AsOf, hold_on: HoldOn | None = None
    ) -> None:
        """`hold_on` waits until a commit that failed may be tried again; without it that raises."""
        self._thread = thread
        self._table = table
        self._as_of = as_of
        self._hold_on = hold_on
        self._pacing = WritePacing()

    async def replace(
        self, now: Checkpoint, keys: Sequence[str], rows: Rows, stored: Rows | None = None
    ) -> list[str]:
        """Write the rows of some keys and delete those of the others, as of a checkpoint; returns
        the keys that are done, fewer than all where another process moved the checkpoint.

        `stored` are the rows as they are; where they were not read, each is deleted by itself.
        """
        done: list[str] = []
        chunk: list[str] = []
        size = 0
        for number, key in enumerate(keys, 1):
            chunk.append(key)
            sizes = (size_of(some.get(key, ())) for some in (rows, stored or {}))
            size += CHUNK_BYTES if stored is None else max(sizes)
            share = SHARE_BESIDE_WRITERS if self._pacing else 1
            full = len(chunk) * share >= CHUNK_CHANGES or size * share >= CHUNK_BYTES
            if number < len(keys) and not full:
                continue
            before, now = self._as_of.move(now)
            written = [rows[key] for key in chunk if key in rows]
            removed = [key for key in chunk if key not in rows]
            if not await self._commit(Change(self._table, before, now, written, removed)):
                break
            done += chunk
            chunk, size = [], 0
        return done

    async def quarantine(
        self, now: Checkpoint, added: Sequence[Rejected], cleared: Sequence[int]
    ) -> tuple[Sequence[Rejected], Sequence[int]]:
        """Write and delete the first of some rows of the quarantine; returns what is left to do."""
        before, after = self._as_of.move(now)
        change = Change(
            *(self._table, before, after),
            quarantined=added[:CHUNK_CHANGES],
            cleared=cleared[:CHUNK_CHANGES],
        )
        if await self._commit(change):
            return added[CHUNK_CHANGES:], cleared[CHUNK_CHANGES:]
        return added, cleared

    async def skipped(self, now: Checkpoint, count: int) -> bool:
        """Write how many events were skipped; whether the race was won."""
        before, after = self._as_of.move(now)
        after = msgspec.structs.replace(after, skipped=count)
        return await self._commit(Change(self._table, before, after))

    async def _commit(self, change: Change) -> bool:
        """Whether the race was won; one that is not to be run again raises `LostRace`."""
        while True:
            bulk = not self._pacing and sum(map(size_of, change.rows)) >= CHUNK_BYTES
            try:
                committed = await self._thread.run(lambda store: store.commit([change], bulk=bulk))
                break
            except LostRace:
                if not self._as_of.follows:
                    raise
                return False
            except DatabaseUnavailable as error:
                if self._hold_on is None:
                    raise
                await self._hold_on(error)
        self._pacing.wrote(others=committed.others_wrote)
        if self._pacing:
            await anyio.sleep(committed.held_s)
        return True
