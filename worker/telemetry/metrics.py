"""A daemon's state as Prometheus' metrics: read from memory, so that a scrape neither waits for the
database nor slows the tail."""

import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from session_projector.worker.telemetry.state import DaemonState, Histogram


class StateCollector(Collector):
    """A daemon's state as Prometheus' metrics."""

    def __init__(
        self, state: DaemonState, engine: Mapping[str, str], wal_bytes: Callable[[], int]
    ) -> None:
        """`engine`: the name and version of the database engine."""
        self._state = state
        self._wal_bytes = wal_bytes
        self._build = {
            "version": version("session-projector"),
            "python": platform.python_version(),
            **engine,
        }

    def collect(self) -> Iterator[Metric]:
        now = self._state.snapshot()
        yield InfoMetricFamily(
            "projector_build", "The version of projector, and of what it runs on.", self._build
        )
        yield from _about_projections(now)
        yield from _about_events(now)
        yield from _about_batches(now)
        yield _gauge(
            "newest_event",
            "The seq of the newest event of the log; it is not there until the log was looked at.",
            now.newest if now.looks else None,
        )
        yield _counter(
            "busy_waits",
            "Turns put off because the database was locked for too long, or had no room.",
            now.unavailable,
        )
        yield _gauge(
            "last_turn_timestamp_seconds",
            "When the tail last looked at the log; it does once a second when idle.",
            now.last_turn_at,
        )
        yield _gauge(
            "standing_by", "1 while another daemon tails, and this one waits.", int(now.standing_by)
        )
        yield _gauge("wal_bytes", "The size of the write-ahead log file.", self._wal_bytes())


def _about_projections(now: DaemonState) -> Iterator[Metric]:
    """Where they stand is not known to one that stands by."""
    there = [] if now.standing_by else sorted(now.standings)
    yield _by_projection(
        "position",
        "The seq of the last event that a projection has folded, skipped or quarantined.",
        {name: now.standings[name].position for name in there},
    )
    yield _by_projection(
        "lag_events",
        "How far a projection's position is behind the newest event.",
        {name: now.lag_events_of(name) for name in there},
    )
    yield _by_projection(
        "lag_seconds",
        "How old what a projection shows may be; 0 when it has caught up.",
        {name: now.lag_s_of(name) for name in there},
    )
    yield _by_projection(
        "projection_failing",
        "1 while a projection is set aside because its code fails.",
        {name: int(name in now.failing) for name in now.projections},
    )
    yield _by_projection(
        "rebuild_progress_ratio",
        "How far the rebuild of a projection's views is; 1 while there is none.",
        {name: _progress(now.rebuilds.get(name)) for name in now.projections},
    )


def _progress(rebuild: tuple[int, int] | None) -> float:
    if rebuild is None:
        return 1.0
    done, total = rebuild
    return min(done / max(total, 1), 1.0)


def _about_events(now: DaemonState) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "projector_events",
        "Events by what became of them: folded, skipped or quarantined.",
        labels=["projection", "type", "outcome"],
    )
    for labels, count in now.outcomes.items():
        events.add_metric(labels, count)
    yield events
    findings = CounterMetricFamily(
        "projector_verify_findings",
        "Rows that differ from the log, counted whenever --verify-every comes upon them.",
        labels=["projection", "kind"],
    )
    for pair, count in now.findings.items():
        findings.add_metric(pair, count)
    yield findings
    yield _by_projection(
        "verify_last_round_timestamp_seconds",
        "When --verify-every was last through with all views; not there before the first time.",
        now.rounds,
    )


def _about_batches(now: DaemonState) -> Iterator[Metric]:
    yield _histogram("batch_events", "Events in a committed batch.", now.batch_events)
    yield _histogram(
        "batch_duration_seconds", "Time that a batch took, from read to commit.", now.batch_s
    )
    yield _histogram(
        "lock_wait_seconds", "Time that a batch waited for the write lock.", now.lock_wait_s
    )
    yield _histogram("lock_held_seconds", "Time that a batch held the write lock.", now.lock_held_s)
    yield _histogram(
        "wakeup_to_commit_seconds",
        "Time from noticing new events in a quiet log to the commit of their first batch.",
        now.wakeup_s,
    )


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"projector_{name}", text, value=value)


def _by_projection(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(f"projector_{name}", text, labels=["projection"])
    for projection, value in values.items():
        gauge.add_metric([projection], value)
    return gauge


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"projector_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    return HistogramMetricFamily(
        f"projector_{name}", text, buckets=buckets, sum_value=histogram.sum
    )
