"""How many events the next batch may have."""

from typing import Final

from session_projector.worker.folding.pacing import WritePacing
from session_projector.worker.storage.limits import BATCH_EVENTS

FIRST_EVENTS: Final = 64
MOST_GROWTH: Final = 16
LEAST_GROWTH: Final = 2
"""Of our own projections: what takes long are large views, which each batch writes again."""
SHORT_BATCH_S: Final = 0.25
"""A batch grows so that the next one may take about as long, its commit apart."""
LONG_BATCH_S: Final = 1.0
"""The tail shows life once in a batch, and one that shows none is taken for one that hangs."""


class BatchSize:
    """The size of the next batch by how long those before took; `built_in` says of a batch whether
    all of its projections are ours, so that it may be written by several transactions."""

    def __init__(self, pacing: WritePacing) -> None:
        self._most = FIRST_EVENTS
        self._pacing = pacing

    def events(self, *, built_in: bool) -> int:
        if self._pacing and not built_in:
            return min(self._most, self._pacing.most_events)
        return self._most

    def grow(self, took_s: float, *, built_in: bool) -> None:
        """A batch of this size was read and folded, and there is more."""
        growth = min(SHORT_BATCH_S / took_s, MOST_GROWTH)
        growth = max(growth, LEAST_GROWTH if built_in else 0)
        self._most = min(
            max(self._most, int(self.events(built_in=built_in) * growth)), BATCH_EVENTS
        )

    def shrink(self, took_s: float, *, built_in: bool) -> None:
        """A batch was committed."""
        if took_s > LONG_BATCH_S and not built_in:
            self._most = max(self._most // 4, 1)
