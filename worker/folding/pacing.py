"""Back-off beside other writers: short transactions, and the lock left to them for as long as it
was held."""

from collections.abc import Iterable
from typing import Final

from session_projector.worker.storage.limits import BATCH_EVENTS

TRANSACTIONS: Final = 50
"""So many after somebody else's last commit are still short."""
SMALL_EVENTS: Final = 512
LEAST_EVENTS: Final = 16
LONGEST_HOLD_S: Final = 0.0015
"""Of the lock: SQLite's own waiting for it goes in steps of 1, 2, 5, 10 ms."""
CHUNK_HOLD_S: Final = 0.003
"""Of the lock, by one of the transactions that write a batch: a writer that finds it taken comes
again 1 and 3 ms later."""
HOPELESS_HOLD_S: Final = 0.006
"""Where even the least batch would hold it for longer, as it writes a few large views, batches are
large instead: each of them writes the same views again."""


ROW_BYTES: Final = 2048
"""What writing a row takes besides its own bytes, in bytes that take as long."""
FIRST_BYTES: Final = 64 * 1024
"""Of a transaction, until it is known how long bytes take."""
SMOOTHING: Final = 0.2
"""How much the last transaction counts against those before it."""


def cost_of(size: int) -> int:
    """How long it takes to write a row of so many bytes, as the bytes that take as long."""
    return size + ROW_BYTES


class WritePacing:
    """How much is written at once while others write; true as long as they do, or did so lately."""

    def __init__(self) -> None:
        self.most_events = SMALL_EVENTS
        """Of a batch meanwhile, if it is written by one transaction."""
        self._byte_s = CHUNK_HOLD_S / FIRST_BYTES
        self._left = 0

    @property
    def most_bytes(self) -> float:
        """Of one of the transactions that write a batch meanwhile, by the `cost_of` its rows."""
        return CHUNK_HOLD_S / self._byte_s

    def wrote_bytes(self, seconds: float, sizes: Iterable[int]) -> None:
        """The lock was held by a transaction that wrote rows of so many bytes."""
        if cost := sum(map(cost_of, sizes)):
            # One that was held up by something else tells little of the next.
            byte_s = min(seconds / cost, 2 * self._byte_s)
            self._byte_s += SMOOTHING * (byte_s - self._byte_s)

    def __bool__(self) -> bool:
        return self._left > 0

    def wrote(self, *, others: bool) -> None:
        """A transaction of ours; `others`: somebody else committed since the one before."""
        self._left = TRANSACTIONS if others else max(self._left - 1, 0)

    def held(self, seconds: float, *, rows: int, projections: int) -> None:
        """The lock, by a batch that wrote so many rows: how large may the next one be?"""
        least_s = seconds * min(LEAST_EVENTS * projections / max(rows, 1), 1)
        if least_s > HOPELESS_HOLD_S:
            self.most_events = min(self.most_events * 2, BATCH_EVENTS)
        elif seconds <= LONGEST_HOLD_S:
            self.most_events = min(self.most_events * 2, SMALL_EVENTS)
        else:
            self.most_events = max(min(self.most_events, SMALL_EVENTS) // 2, LEAST_EVENTS)
