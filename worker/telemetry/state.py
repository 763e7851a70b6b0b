"""The state of a daemon in memory: its tasks update it, and `/metrics`, the health checks and the
messages to systemd are made from it."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from threading import Lock
from typing import Final

import msgspec

from session_projector.projections.projection import Projection
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import Lack
from session_projector.worker.folding.tally import Outcomes, none_yet
from session_projector.worker.storage.port import QuarantineCount, Trouble

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_EVENTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Histogram:
    """The number of values in each bucket, and their sum; bounds are inclusive."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = (*bounds, float("inf"))
        self.counts = [0] * len(self.bounds)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Batch(msgspec.Struct, frozen=True):
    """A committed batch; durations in seconds, `last_ms` is the time of its last event. Of several
    transactions that wrote it, `held_s` is the longest time."""

    events: int
    outcomes: Outcomes
    last_ms: int | None
    duration_s: float
    waited_s: float
    held_s: float
    wakeup_s: float | None
    """From noticing new events in a quiet log to their commit."""


class ProjectionProgress(msgspec.Struct):
    """How far a projection is, and what holds it up; moments are those of the monotonic clock."""

    position: int = 0
    """0 until its checkpoint is read, and while it is being rebuilt."""
    last_ms: int | None = None
    """The time of the last folded event, by its writer's clock."""
    caught_up: float | None = None
    """When it was last at the newest event."""
    moved: float = msgspec.field(default_factory=time.monotonic)
    since: float = msgspec.field(default_factory=time.monotonic)
    """When the daemon started or took over, or a rebuild began."""
    rebuild: tuple[int, int] | None = None
    """Events read so far, and about how many there are."""
    failing: bool = False
    locked_out: bool = False
    """True while it catches up separately and the database is unavailable to it."""
    deferred: Sequence[float] = ()
    """Of each view that is deferred, how long it may be, in seconds."""
    quarantine: QuarantineCount | None = None
    """As of a few seconds ago; None until it was counted."""
    verified_at: float | None = None
    """When --verify-every last finished a round over all of its views; Unix time."""

    def start_again(self) -> None:
        """Forget its progress, as a rebuild starts or the daemon takes over."""
        self.position, self.last_ms, self.caught_up = 0, None, None
        self.moved = self.since = time.monotonic()

    @property
    def rebuilt_ratio(self) -> float:
        done, total = self.rebuild or (1, 1)
        return min(done / max(total, 1), 1.0)

    def lag_events(self, newest: int) -> int:
        return max(newest - self.position, 0)

    def lag_s(self, newest: int) -> float:
        """How outdated a view may be: the age of the last folded event, by its writer's clock.

        At most as long as it has been behind, so that an hour without events is no lag.
        """
        if not self.lag_events(newest):
            return 0.0
        now, ages = time.monotonic(), list[float]()
        if self.last_ms is not None and (age := time.time() - self.last_ms / 1000) >= 0:
            ages.append(age)  # otherwise that clock is ahead
        if self.caught_up is not None:
            ages.append(now - self.caught_up)
        return min(ages, default=now - self.since)


class DaemonState:
    """The state of one daemon, updated by its tasks; `listener` is called after each sign of life.

    A sign of life is a finished iteration of the tail, whether or not it found events, and waiting
    for a lock, for disk space or for another daemon to end.

    It changes only under `lock`. A thread that holds the lock reads values of one moment; a scrape
    holds it for about 0.1 ms.
    """

    def __init__(self, listener: Callable[["DaemonState"], None] | None = None) -> None:
        self._listener = listener
        self.lock = Lock()
        self.last_iteration = time.monotonic()
        self.last_iteration_at = time.time()
        """The same by the wall clock."""
        self.standing_by = self.stopping = False
        self.caught_up = False
        """True once the tail has been at the newest event."""
        self.newest = 0
        self.polls = 0
        """How often the tail has polled the log; while it is 0, `newest` is unknown."""
        self.progress: defaultdict[str, ProjectionProgress] = defaultdict(ProjectionProgress)
        self.unavailable = 0
        self.unavailable_now = False
        self.troubles: dict[str, Trouble] = {}
        """What is waited for now, by the projection that catches up separately; '': the others."""
        self.held_back_by: Sequence[str] = ()
        """Whose open transactions keep events from being read, in words."""
        self.troubled: Callable[[], object] = lambda: None
        """Called when that changes."""
        self.outcomes = Outcomes()
        self.findings: Counter[tuple[str, str]] = Counter()
        """Differences that --verify-every found, by projection and kind."""
        self.batch_events = Histogram(_EVENTS)
        self.batch_s = Histogram(_SECONDS)
        self.lock_wait_s = Histogram(_SECONDS)
        self.lock_held_s = Histogram(_SECONDS)
        self.wakeup_s = Histogram(_SECONDS)

    def expect(self, projections: Sequence[Projection], kinds: Iterable[str]) -> None:
        """Start the counters at 0, so that the first event of a kind is seen as a change."""
        with self.lock:
            for projection in projections:
                self.progress[projection.name] = ProjectionProgress()
                self.outcomes.update(none_yet(projection))
                self.findings.update({(projection.name, kind): 0 for kind in kinds})

    def polled(self, newest: int, positions: dict[str, int], *, leading: bool = True) -> None:
        """Record a poll of the log, before folding, so that a lag shows while waiting for a lock.

        `leading`: it is the tail that the other ones join.
        """
        with self.lock:
            if leading:
                self.newest = newest
                self.polls += 1
            self._place(positions)

    def checkpoint_read(self, name: str, position: int) -> None:
        """Record a projection's position, whether or not it will tail from there."""
        with self.lock:
            if not self.progress[name].rebuild:
                self._place({name: position})

    def iterated(self, newest: int, positions: dict[str, int], *, leading: bool = True) -> None:
        """Record a finished iteration of a tail; only that of the leading one is a sign of life."""
        now = time.monotonic()
        with self.lock:
            if leading:
                self.newest = newest
                self.unavailable_now = False
            for at in self._place(positions):
                if at.position >= self.newest:
                    at.caught_up = now
            if leading and not self.caught_up and newest <= min(positions.values(), default=newest):
                nothing_tails = not positions and any(at.rebuild for at in self.progress.values())
                self.caught_up = not nothing_tails
        if leading:
            self._show_life()

    @property
    def trouble(self) -> Trouble | None:
        """What has been waited for the longest. It takes the lock."""
        with self.lock:
            return min(self.troubles.values(), key=lambda one: one.since, default=None)

    def waited_for_database(self, lacks: Lack, projection: str = "") -> None:
        """Record that a tail waits for a lock or for disk space, say.

        With `projection` it is a tail that catches up separately, and this is no sign of life.
        """
        with self.lock:
            self.unavailable += 1
            before = self.troubles.get(projection)
            if before is None or before.lacks != lacks:
                self.troubles[projection] = Trouble(lacks, now_ms())
            if projection:
                self.progress[projection].locked_out = True
            else:
                self.unavailable_now = True
        self.troubled()
        if not projection:
            self._show_life()

    def database_available(self, projection: str = "") -> None:
        """Record the end of a wait; `unavailable_now` ends with the next iteration."""
        with self.lock:
            self.troubles.pop(projection, None)
            if projection:
                self.progress[projection].locked_out = False
        self.troubled()

    def held_back(self, by: Sequence[str]) -> None:
        """Record whose open transactions keep events from being read: nobody's any more, where
        there is none."""
        with self.lock:
            self.held_back_by = by

    def stands_by(self) -> None:
        """Record that the daemon waits for another one to end."""
        with self.lock:
            self.standing_by = True
        self._show_life()

    def took_over(self, names: Collection[str] = ()) -> None:
        """Record that the daemon leads some projections, and no others; without names all."""
        with self.lock:
            self.standing_by = False
            self.held_back_by = ()
            self.troubles.clear()
            for name in self.progress.keys() - names if names else ():
                del self.progress[name]
            for name in names or self.progress:
                self.progress[name].start_again()

    def joins(self, name: str) -> None:
        """Record that the daemon leads one projection more."""
        with self.lock:
            self.progress[name].start_again()

    def stops(self) -> None:
        self.stopping = True
        self._show_life()

    def committed(self, batch: Batch, positions: dict[str, int]) -> None:
        with self.lock:
            for at in self._place(positions):
                if batch.last_ms is not None:
                    at.last_ms = batch.last_ms
            self.outcomes.update(batch.outcomes)
            self.batch_events.observe(batch.events)
            self.batch_s.observe(batch.duration_s)
            self.lock_wait_s.observe(batch.waited_s)
            self.lock_held_s.observe(batch.held_s)
            if batch.wakeup_s is not None:
                self.wakeup_s.observe(batch.wakeup_s)

    def defers(self, name: str, delays_s: Sequence[float]) -> None:
        """Record the views of a projection that are deferred."""
        with self.lock:
            self.progress[name].deferred = delays_s

    def refolded(self, outcomes: Outcomes) -> None:
        """Count the events that a rebuild folded, or that a deferred view lacked."""
        with self.lock:
            self.outcomes.update(outcomes)

    def differences_found(self, differences: Iterable[tuple[str, str]]) -> None:
        with self.lock:
            self.findings.update(differences)

    def verified(self, name: str, at: float) -> None:
        with self.lock:
            self.progress[name].verified_at = at

    def counted(self, counts: Mapping[str, QuarantineCount]) -> None:
        """Record how many events of some projections are in quarantine."""
        with self.lock:
            for name, count in counts.items():
                self.progress[name].quarantine = count

    def rebuilding(self, name: str, done: int, total: int) -> None:
        with self.lock:
            at = self.progress[name]
            if not at.rebuild:
                at.start_again()  # its position was that of another version's views
            at.rebuild = (done, total)

    def rebuilt(self, name: str, position: int) -> None:
        """Record that a projection has been rebuilt, by this daemon or another program."""
        with self.lock:
            self.progress[name].rebuild = None
            self._place({name: position})

    def fails(self, name: str) -> None:
        with self.lock:
            self.progress[name].failing = True
            self.progress[name].rebuild = None

    def recovered(self, name: str) -> None:
        with self.lock:
            self.progress[name].failing = False

    def stuck(self) -> dict[str, float]:
        """For each tailing projection, how many seconds it has been behind without progress; none
        where the events are held back, which no restart changes."""
        if self.held_back_by:
            return {}
        now = time.monotonic()
        return {
            name: now - max(at.moved, at.caught_up or at.moved)
            for name, at in sorted(self.progress.items())
            if at.lag_events(self.newest) and not (at.rebuild or at.failing or at.locked_out)
        }

    def _place(self, positions: dict[str, int]) -> list[ProjectionProgress]:
        for name, position in positions.items():
            at = self.progress[name]
            if at.position != position:
                at.position, at.moved = position, time.monotonic()
        return [self.progress[name] for name in positions]

    def _show_life(self) -> None:
        self.last_iteration, self.last_iteration_at = time.monotonic(), time.time()
        if self._listener:
            self._listener(self)
