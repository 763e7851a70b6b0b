"""What a daemon knows of itself, in memory: fed by the tail, read by whoever asks."""

import copy
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Final

import msgspec

from session_projector.projections.projection import Projection
from session_projector.worker.folding.tally import Outcomes

SECONDS: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
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

    def copy(self) -> "Histogram":
        taken = Histogram(self.bounds)
        taken.counts, taken.sum = [*self.counts], self.sum
        return taken


class Batch(msgspec.Struct, frozen=True):
    """One committed batch; times in seconds, `last_ms` the time of its last event."""

    events: int
    outcomes: Outcomes
    last_ms: int | None
    duration_s: float
    waited_s: float
    held_s: float
    wakeup_s: float | None
    """Since something was found to be new in a log that was quiet."""


class ProjectionProgress(msgspec.Struct):
    """Where a projection is."""

    position: int
    last_ms: int | None = None
    """The time of the last event that it folded, by its writer's clock."""
    even: float | None = None
    """When it last was at the newest event, by the monotonic clock."""
    moved: float = msgspec.field(default_factory=time.monotonic)
    """When it last moved, by the same."""
    since: float = msgspec.field(default_factory=time.monotonic)
    """When it began there, by the same."""


class DaemonState:
    """Fed by the tasks of one daemon; `listener` is called after each turn.

    A turn is one look at the log by the tail, whether there was anything; waiting for a lock, for
    room or for another daemon to end counts as one. A turn that does not come back is none.

    Another thread reads a `snapshot`: what is fed changes under one lock, which is only ever held
    for microseconds.
    """

    def __init__(self, listener: Callable[["DaemonState"], None] | None = None) -> None:
        self._listener = listener
        self._lock = Lock()
        self.last_turn = time.monotonic()
        self.last_turn_at = time.time()
        """The same by the wall clock."""
        self.standing_by = self.stopping = False
        self.caught_up = False
        """Whether the tail was once at the newest event."""
        self.newest = 0
        self.looks = 0
        """How often the tail looked at the log; 0: `newest` is not known yet."""
        self.projections: tuple[str, ...] = ()
        self.standings: dict[str, ProjectionProgress] = {}
        """Where each projection is: at 0 until its checkpoint is read, and while it is rebuilt."""
        self.outcomes = Outcomes()
        self.batch_events = Histogram(EVENTS)
        self.batch_s = Histogram(SECONDS)
        self.lock_wait_s = Histogram(SECONDS)
        self.lock_held_s = Histogram(SECONDS)
        self.wakeup_s = Histogram(SECONDS)
        self.unavailable = 0
        self.unavailable_now = False
        self.locked_out: set[str] = set()
        """Projections by themselves for which the database is unavailable now."""
        self.rebuilds: dict[str, tuple[int, int]] = {}
        """Events read and about how many there are to read, by projection."""
        self.failing: set[str] = set()
        self.findings: Counter[tuple[str, str]] = Counter()
        """By projection and kind of difference."""
        self.rounds: dict[str, float] = {}
        """When a projection's views were last verified, all of them; Unix time."""

    def snapshot(self) -> "DaemonState":
        """All of it as of one moment, for another thread; nothing changes it any more."""
        with self._lock:
            taken = copy.copy(self)
            taken.standings = {name: copy.copy(at) for name, at in self.standings.items()}
            taken.outcomes = self.outcomes.copy()
            taken.findings = self.findings.copy()
            taken.rebuilds = self.rebuilds.copy()
            taken.rounds = self.rounds.copy()
            taken.failing = self.failing.copy()
            taken.locked_out = self.locked_out.copy()
            for name in ("batch_events", "batch_s", "lock_wait_s", "lock_held_s", "wakeup_s"):
                setattr(taken, name, getattr(self, name).copy())
        return taken

    def expect(self, projections: Sequence[Projection], kinds: Iterable[str]) -> None:
        """Count from 0 what may come of these, so that a first one is seen as a change."""
        with self._lock:
            self.projections = tuple(projection.name for projection in projections)
            self.standings = {name: ProjectionProgress(0) for name in self.projections}
            for projection in projections:
                name = projection.name
                for of in sorted(projection.events):
                    self.outcomes[name, of, "folded"] += 0
                    self.outcomes[name, of, "quarantined"] += 0
                self.outcomes[name, "other", "skipped"] += 0
                self.outcomes[name, "undecodable", "quarantined"] += 0
                self.findings.update({(name, kind): 0 for kind in kinds})

    def saw(self, newest: int, positions: dict[str, int], *, leading: bool = True) -> None:
        """Before anything is folded, so that a lag shows however long the database is locked."""
        with self._lock:
            if leading:
                self.newest = newest
                self.looks += 1
            self._stand(positions)

    def stands(self, name: str, position: int) -> None:
        """As its checkpoint says, whether or not it tails from there."""
        with self._lock:
            if name not in self.rebuilds:
                self._stand({name: position})

    def turned(self, newest: int, positions: dict[str, int], *, leading: bool = True) -> None:
        """`leading`: by the tail that the others join; only its turns are a sign of life."""
        now = time.monotonic()
        with self._lock:
            if leading:
                self.newest = newest
                self.unavailable_now = False
            for standing in self._stand(positions):
                if standing.position >= self.newest:
                    standing.even = now
            if leading:
                behind = newest > min(positions.values(), default=newest)
                nothing_tails = not positions and bool(self.rebuilds)
                self.caught_up = self.caught_up or not (behind or nothing_tails)
        if leading:
            self._turned()

    def waited(self, projection: str = "") -> None:
        """For a lock or for room; `projection`: one by itself, which is no sign of life."""
        with self._lock:
            self.unavailable += 1
            if projection:
                self.locked_out.add(projection)
            else:
                self.unavailable_now = True
        if not projection:
            self._turned()

    def available(self, projection: str = "") -> None:
        """Again; of the lead its next turn says so."""
        with self._lock:
            self.locked_out.discard(projection)

    def stands_by(self) -> None:
        """For another daemon to end."""
        with self._lock:
            self.standing_by = True
        self._turned()

    def took_over(self) -> None:
        with self._lock:
            self.standing_by = False
            self.standings = {name: ProjectionProgress(0) for name in self.projections}

    def stops(self) -> None:
        self.stopping = True
        self._turned()

    def committed(self, batch: Batch, positions: dict[str, int]) -> None:
        with self._lock:
            for standing in self._stand(positions):
                if batch.last_ms is not None:
                    standing.last_ms = batch.last_ms
            self.outcomes.update(batch.outcomes)
            self.batch_events.add(batch.events)
            self.batch_s.add(batch.duration_s)
            self.lock_wait_s.add(batch.waited_s)
            self.lock_held_s.add(batch.held_s)
            if batch.wakeup_s is not None:
                self.wakeup_s.add(batch.wakeup_s)

    def counted(self, outcomes: Outcomes) -> None:
        """What a rebuild made of events; the views are those of before until it is done."""
        with self._lock:
            self.outcomes.update(outcomes)

    def found(self, differences: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            self.findings.update(differences)

    def verified(self, name: str, at: float) -> None:
        with self._lock:
            self.rounds[name] = at

    def rebuilding(self, name: str, done: int, total: int) -> None:
        with self._lock:
            if name not in self.rebuilds:
                self.standings[name] = ProjectionProgress(
                    0
                )  # where it was, another version's views are
            self.rebuilds[name] = (done, total)

    def rebuilt(self, name: str, position: int) -> None:
        """By this daemon or another program."""
        with self._lock:
            self.rebuilds.pop(name, None)
            self._stand({name: position})

    def fails(self, name: str) -> None:
        with self._lock:
            self.failing.add(name)
            self.rebuilds.pop(name, None)

    def recovered(self, name: str) -> None:
        with self._lock:
            self.failing.discard(name)

    @property
    def positions(self) -> dict[str, int]:
        return {name: standing.position for name, standing in self.standings.items()}

    @property
    def lag_events(self) -> int:
        return max((self.lag_events_of(name) for name in self.standings), default=0)

    def lag_events_of(self, name: str) -> int:
        return max(self.newest - self.standings[name].position, 0)

    def lag_s_of(self, name: str) -> float:
        """How old a view may be: since the time of the last event folded, by its writer's clock,
        but no longer than it is behind. An hour without events is no lag of the next one."""
        if not self.lag_events_of(name):
            return 0.0
        standing = self.standings[name]
        ages: list[float] = []
        if standing.last_ms is not None and standing.last_ms / 1000 <= time.time():
            ages.append(time.time() - standing.last_ms / 1000)  # else that clock is ahead
        if standing.even is not None:
            ages.append(time.monotonic() - standing.even)
        return max(min(ages, default=time.monotonic() - standing.since), 0.0)

    @property
    def since_turn_s(self) -> float:
        return time.monotonic() - self.last_turn

    def stuck(self) -> dict[str, float]:
        """Projections that tail, are behind and do not move, and for how many seconds."""
        going = self.standings.keys() - self.rebuilds.keys() - self.failing - self.locked_out
        behind = [name for name in sorted(going) if self.lag_events_of(name)]
        now = time.monotonic()
        since = {name: self.standings[name] for name in behind}
        return {name: now - max(at.moved, at.even or at.moved) for name, at in since.items()}

    def _stand(self, positions: dict[str, int]) -> list[ProjectionProgress]:
        for name, position in positions.items():
            standing = self.standings.setdefault(name, ProjectionProgress(position))
            if standing.position != position:
                standing.position, standing.moved = position, time.monotonic()
        return [self.standings[name] for name in positions]

    def _turned(self) -> None:
        self.last_turn, self.last_turn_at = time.monotonic(), time.time()
        if self._listener:
            self._listener(self)
