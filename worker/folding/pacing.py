"""Back-off beside other writers: short transactions, and the lock left to them for as long as it
was held."""

from typing import Final

from session_projector.worker.storage.limits import BATCH_EVENTS

TRANSACTIONS: Final = 50
"""So many after somebody else's last commit are still short."""
SMALL_EVENTS: Final = 512
LEAST_EVENTS: Final = 16
LONGEST_HOLD_S: Final = 0.0015
"""Of the lock: SQLite's own waiting for it goes in steps of 1, 2, 5, 10 ms."""
HOPELESS_HOLD_S: Final = 0.006
"""Where even the least batch would hold it for longer, as it writes a few large views, batches are
large instead: each of them writes the same views again."""


class WritePacing:
    """How large batches are while others write; true as long as they do, or did so lately."""

    def __init__(self) -> None:
        self.most_events = SMALL_EVENTS
        """Of a batch meanwhile."""
        self._left = 0

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
