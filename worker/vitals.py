"""What a daemon knows of itself, in memory: fed by the tail, read by whoever asks."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
EVENTS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Histogram:
    """How often something was at most each of its bounds, or above them all; and the sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Batch(msgspec.Struct, frozen=True):
    """One committed batch; times in seconds, `last_ms` the time of its last event."""

    events: int
    outcomes: Counter[tuple[str, str, str]]
    """Events by projection, type and outcome: folded, skipped or quarantined."""
    last_ms: int | None
    duration_s: float
    waited_s: float
    held_s: float


class Vitals:
    """Fed by the tasks of one daemon; `listener` is called after each turn.

    A turn is one look at the log by the tail, whether there was anything; waiting for a lock, for
    room or for another daemon to end counts as one. A turn that does not come back is none.
    """

    def __init__(self, listener: Callable[["Vitals"], None] | None = None) -> None:
        self._listener = listener
        self.started = self.last_turn = time.monotonic()
        self.standing_by = self.stopping = False
        self.caught_up = False
        """Whether the tail was once at the newest event."""
        self.newest = 0
        self.positions: dict[str, int] = {}
        self.last_ms: int | None = None
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.batch_events = Histogram(EVENTS)
        self.batch_s = Histogram(SECONDS)
        self.lock_wait_s = Histogram(SECONDS)
        self.lock_held_s = Histogram(SECONDS)
        self.wakeup_s = Histogram(SECONDS)
        self.unavailable = 0
        self.unavailable_now = False
        self.rebuilds: dict[str, tuple[int, int]] = {}
        """Events read and about how many there are to read, by projection."""
        self.failing: set[str] = set()
        self.findings: Counter[tuple[str, str]] = Counter()
        """By projection and kind of difference."""

    def turned(self, newest: int, positions: dict[str, int], *, leading: bool = True) -> None:
        """`leading`: by the tail that the others join; only its turns are a sign of life."""
        self.positions |= positions
        if not leading:
            return
        self.newest = newest
        self.unavailable_now = False
        self.caught_up = self.caught_up or newest <= min(positions.values(), default=newest)
        self._turned()

    def waited(self, *, standing_by: bool = False) -> None:
        """For a lock, for room, or for another daemon to end."""
        self.unavailable += not standing_by
        self.unavailable_now = not standing_by
        self.standing_by = standing_by
        self._turned()

    def took_over(self) -> None:
        self.standing_by = False

    def stops(self) -> None:
        self.stopping = True
        self._turned()

    def committed(self, batch: Batch) -> None:
        self.outcomes += batch.outcomes
        self.last_ms = batch.last_ms
        self.batch_events.add(batch.events)
        self.batch_s.add(batch.duration_s)
        self.lock_wait_s.add(batch.waited_s)
        self.lock_held_s.add(batch.held_s)

    def found(self, differences: Iterable[tuple[str, str]]) -> None:
        self.findings.update(differences)

    @property
    def lag_events(self) -> int:
        return max(self.newest - min(self.positions.values(), default=self.newest), 0)

    @property
    def lag_s(self) -> float:
        """Since the time of the last event folded, by its writer's clock; 0 when caught up."""
        if not self.lag_events or self.last_ms is None:
            return 0.0
        return max(time.time() - self.last_ms / 1000, 0.0)

    @property
    def since_turn_s(self) -> float:
        return time.monotonic() - self.last_turn

    def _turned(self) -> None:
        self.last_turn = time.monotonic()
        if self._listener:
            self._listener(self)
