"""A daemon's state as Prometheus' metrics: read from memory, so that a scrape neither waits for the
database nor slows the tail."""

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
    "build": "The version of projector, and of what it runs on.",
    "position": "The seq of the last event that a projection has folded, skipped or quarantined.",
    "lag_events": "How far a projection's position is behind the newest event.",
    "lag_seconds": "How old what a projection shows may be; 0 when it has caught up.",
    "projection_failing": "1 while a projection is set aside because its code fails.",
    "rebuild_progress_ratio": "How far the rebuild of a projection is; 1 while there is none.",
    "verify_last_round_timestamp_seconds": "When --verify-every last ended a round; absent before.",
    "events": "Events by what became of them: folded, skipped or quarantined.",
    "verify_findings": "Rows that differ from the log, counted whenever --verify-every meets them.",
    "busy_waits": "Turns put off because the database was locked for too long, or had no room.",
    "batch_events": "Events in a committed batch.",
    "batch_duration_seconds": "Time that a batch took, from read to commit.",
    "lock_wait_seconds": "Time that a batch waited for the write lock.",
    "lock_held_seconds": "Time that a batch held the write lock.",
    "wakeup_to_commit_seconds": "From noticing events in a quiet log to their first commit.",
    "newest_event": "The seq of the newest event of the log; absent until the log was looked at.",
    "last_turn_timestamp_seconds": "When the tail last looked at the log: idle, every second.",
    "standing_by": "1 while another daemon tails, and this one waits.",
    "wal_bytes": "The size of the write-ahead log file.",
}


class StateCollector(Collector):
    """All metrics of a daemon, but for those of its process.

    The library's own instruments would be a second copy of the state, no two of one moment, and
    they write files where the environment has PROMETHEUS_MULTIPROC_DIR.
    """

    def __init__(
        self, state: DaemonState, engine: Mapping[str, str], wal_bytes: Callable[[], int]
    ) -> None:
        """`engine`: the name of the database engine and its version."""
        self._state = state
        self._wal_bytes = wal_bytes
        ours = {"version": version("session-projector"), "python": platform.python_version()}
        self._build = {**ours, **engine}

    def collect(self) -> Iterator[core.Metric]:
        yield core.InfoMetricFamily("projector_build", _HELP["build"], self._build)
        with self._state.lock:
            of_one_moment = [*_families(self._state)]
        yield from of_one_moment
        yield _gauge("wal_bytes", self._wal_bytes())


def _families(state: DaemonState) -> Iterator[core.Metric]:
    newest, all_ = state.newest, sorted(state.progress.items())
    placed = [] if state.standing_by else all_  # of one that stands by it is not known
    yield _by_projection("position", {name: at.position for name, at in placed})
    yield _by_projection("lag_events", {name: at.lag_events(newest) for name, at in placed})
    yield _by_projection("lag_seconds", {name: at.lag_s(newest) for name, at in placed})
    yield _by_projection("projection_failing", {name: at.failing for name, at in all_})
    yield _by_projection("rebuild_progress_ratio", {name: at.rebuilt_ratio for name, at in all_})
    rounds = {name: at.verified_at for name, at in all_ if at.verified_at is not None}
    yield _by_projection("verify_last_round_timestamp_seconds", rounds)
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
