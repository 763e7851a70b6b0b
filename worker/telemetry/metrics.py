"""The metrics of a daemon for Prometheus, read from its state in memory, so that a scrape neither
waits for the database nor slows down the tail."""

import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Final

from prometheus_client import core
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from session_projector.worker.telemetry.state import DaemonState, Histogram

_HELP: Final = {
    "build": "Versions of projector, Python and the database engine.",
    "position": "Position of the last event that the projection folded, skipped or quarantined.",
    "lag_events": "Events that the projection has yet to fold.",
    "lag_seconds": "How outdated the projection's views may be; 0 when caught up.",
    "deferred_views": "Views that are behind, because they cost much to write.",
    "deferred_longest_seconds": "How long the one that costs most may be behind.",
    "projection_failing": "1 while the projection is failing and set aside.",
    "rebuild_progress_ratio": "Progress of the projection's rebuild, 0 to 1; 1 without a rebuild.",
    "verify_last_round_timestamp_seconds": "When --verify-every last finished a round.",
    "quarantined_events": "Events that are in the projection's quarantine.",
    "undismissed_events": "Those of them that nobody has dismissed.",
    "events": "Events by outcome: folded, skipped or quarantined.",
    "verify_findings": "Rows that --verify-every found to differ, counted again in each round.",
    "busy_waits": "Iterations postponed because the database was locked or the disk full.",
    "batch_events": "Events per committed batch.",
    "batch_duration_seconds": "Duration of a batch, from read to commit.",
    "lock_wait_seconds": "Time a batch waited for the write lock.",
    "lock_held_seconds": "Longest time that a batch held the write lock.",
    "wakeup_to_commit_seconds": "From noticing events in a quiet log to their commit.",
    "newest_event": "Position of the newest event in the log; absent until the first poll.",
    "last_turn_timestamp_seconds": "When the tail last polled the log; when idle, every second.",
    "standing_by": "1 while another daemon tails and this one stands by.",
    "wal_bytes": "Size of the write-ahead log.",
}


class StateCollector(Collector):
    """The metrics of a daemon, except for those of its process.

    The library's own instruments would be a second copy of the state, with values of different
    moments, and would write files if the environment has PROMETHEUS_MULTIPROC_DIR.
    """

    def __init__(
        self, state: DaemonState, engine: Mapping[str, str], wal_bytes: Callable[[], int]
    ) -> None:
        """`engine` has the name of the database engine and its version."""
        self._state = state
        self._wal_bytes = wal_bytes
        ours = {"version": version("session-projector"), "python": platform.python_version()}
        self._build = {**ours, **engine}

    def collect(self) -> Iterator[core.Metric]:
        yield core.InfoMetricFamily("projector_build", _HELP["build"], self._build)
        with self._state.lock:
            consistent = [*_families(self._state)]
        yield from consistent
        yield _gauge("wal_bytes", self._wal_bytes())


def _families(state: DaemonState) -> Iterator[core.Metric]:
    newest, all_ = state.newest, sorted(state.progress.items())
    placed = [] if state.standing_by else all_  # unknown while it stands by
    yield _by_projection("position", {name: at.position for name, at in placed})
    yield _by_projection("lag_events", {name: at.lag_events(newest) for name, at in placed})
    yield _by_projection("lag_seconds", {name: at.lag_s(newest) for name, at in placed})
    yield _by_projection("deferred_views", {name: len(at.deferred) for name, at in placed})
    longest = {name: max(at.deferred, default=0.0) for name, at in placed}
    yield _by_projection("deferred_longest_seconds", longest)
    yield _by_projection("projection_failing", {name: at.failing for name, at in all_})
    yield _by_projection("rebuild_progress_ratio", {name: at.rebuilt_ratio for name, at in all_})
    rounds = {name: at.verified_at for name, at in all_ if at.verified_at is not None}
    yield _by_projection("verify_last_round_timestamp_seconds", rounds)
    counts = {name: at.quarantine for name, at in placed if at.quarantine}
    standing = {name: one.quarantined for name, one in counts.items()}
    undismissed = {name: one.quarantined - one.dismissed for name, one in counts.items()}
    yield _by_projection("quarantined_events", standing)
    yield _by_projection("undismissed_events", undismissed)
    yield _counter("events", ("projection", "type", "outcome"), state.outcomes)
    yield _counter("verify_findings", ("projection", "kind"), state.findings)
    yield _counter("busy_waits", (), {(): state.unavailable})
    yield _histogram("batch_events", state.batch_events)
    yield _histogram("batch_duration_seconds", state.batch_s)
    yield _histogram("lock_wait_seconds", state.lock_wait_s)
    yield _histogram("lock_held_seconds", state.lock_held_s)
    yield _histogram("wakeup_to_commit_seconds", state.wakeup_s)
    yield _gauge("newest_event", newest if state.polls else None)
    yield _gauge("last_turn_timestamp_seconds", state.last_iteration_at)
    yield _gauge("standing_by", state.standing_by)


def _gauge(name: str, value: float | None) -> core.Metric:
    return core.GaugeMetricFamily(f"projector_{name}", _HELP[name], value=value)


def _by_projection(name: str, values: Mapping[str, float]) -> core.Metric:
    gauge = core.GaugeMetricFamily(f"projector_{name}", _HELP[name], labels=["projection"])
    for projection, value in values.items():
        gauge.add_metric([projection], value)
    return gauge


def _counter(name: str, labels: tuple[str, ...], counts: Mapping[Any, int]) -> core.Metric:
    counter = core.CounterMetricFamily(f"projector_{name}", _HELP[name], labels=labels)
    for values, count in counts.items():
        counter.add_metric(values, count)
    return counter


def _histogram(name: str, of: Histogram) -> core.Metric:
    buckets = [*zip(map(floatToGoString, of.bounds), accumulate(of.counts), strict=True)]
    return core.HistogramMetricFamily(f"projector_{name}", _HELP[name], buckets, of.sum)
