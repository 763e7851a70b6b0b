"""Benchmarks of how cost grows with the log, sessions, messages, projections and writers."""

from collections.abc import Iterable, Iterator

import workload
from latency import SMALL, appended_ms
from measure import PROJECTOR, SESSIONS_ALONE, Curve, Options, daemon, quantile
from throughput import LOCAL, catch_up, filled, sized
from workload import Log
from writer import at_once, together

Points = list[tuple[float, list[float]]]
RUNS = 3
"""The maximum number of runs per point."""


def curves(options: Options) -> Iterator[Curve]:
    """Measure all curves."""
    yield from log_length(options)
    yield from sessions(options)
    yield from messages(options)
    yield from projections(options)
    yield from writers(options)


def log_length(options: Options) -> Iterator[Curve]:
    """Measure logs of growing length, with a session per hundred events, 200 of them live."""
    lengths = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    rates, peaks = _caught_up([(n, Log(n, n // 100)) for n in lengths], options)
    yield Curve("catch-up by log length", "events in the log", "events/s", rates)
    yield Curve("memory by log length", "events in the log", "peak MiB", peaks)


def sessions(options: Options) -> Iterator[Curve]:
    """Measure 100,000 events over a growing number of sessions, up to 200 of them live."""
    counts = (10, 100, 1_000, 10_000, 100_000)
    rates, peaks = _caught_up([(n, Log(100_000, n)) for n in counts], options)
    yield Curve("catch-up by sessions", "sessions", "events/s", rates)
    yield Curve("memory by sessions", "sessions", "peak MiB", peaks)


def _caught_up(logs: Iterable[tuple[int, Log]], options: Options) -> tuple[Points, Points]:
    rates: Points = []
    peaks: Points = []
    for x, log in logs:
        runs = [catch_up(sized(log, options), options) for _ in range(min(options.runs, RUNS))]
        rates.append((x, [rate for rate, _, _ in runs]))
        peaks.append((x, [peak for _, peak, _ in runs]))
    return rates, peaks


def messages(options: Options) -> Iterator[Curve]:
    """Measure an append of 1 KB to a session with a growing number of messages."""
    delays: Points = []
    alone: Points = []
    loaded: Points = []
    for count in (10, 100, 1_000, 10_000):
        held = min(count, 100) if options.quick else count
        runs = [appended_ms(held, options) for _ in range(min(options.runs, RUNS))]
        delays.append((count, [ms for ms, _, _ in runs]))
        alone.append((count, [written / 1024 for _, written, _ in runs]))
        loaded.append((count, [written / 1024 for _, _, written in runs]))
    x = "messages of 1 KB in the session"
    yield Curve("append by messages", x, "ms until visible", delays)
    yield Curve("bytes written by messages, one at a time", x, "KiB per append", alone)
    yield Curve("bytes written by messages, under load", x, "KiB per append", loaded)


def projections(options: Options) -> Iterator[Curve]:
    """Measure the session view alone, with the index, and with one and two more projections."""
    rates: Points = []
    named = [f"--projection=extra_projections:{name}" for name in ("Counted", "CountedToo")]
    for count in range(1, 5):
        command = SESSIONS_ALONE if count == 1 else PROJECTOR
        arguments = named[: max(count - 2, 0)]
        runs = [
            catch_up(sized(LOCAL, options), options, *arguments, command=command)[0]
            for _ in range(min(options.runs, RUNS))
        ]
        rates.append((count, runs))
    yield Curve("catch-up by projections", "projections", "events/s", rates)


def writers(options: Options) -> Iterator[Curve]:
    """Measure processes that write as fast as they can while the daemon tails."""
    measured: dict[str, Points] = {"written": [], "p99": [], "lag": []}
    for count in (1, 2, 4, 8):
        runs = [_written(count, options) for _ in range(min(options.runs, RUNS))]
        for name, values in zip(measured, zip(*runs, strict=True), strict=True):
            measured[name].append((count, list(values)))
    x = "writers at once"
    yield Curve("events written by writers", x, "events/s", measured["written"])
    yield Curve("writer p99 by writers", x, "ms, INSERT and commit, p99", measured["p99"])
    yield Curve("lag by writers", x, "ms from the last commit to all views", measured["lag"])


def _written(count: int, options: Options) -> tuple[float, float, float]:
    """Measure events per second, a writer's p99 in ms, and the lag behind the last commit in ms."""
    seconds = 1 if options.quick else 4
    path = workload.copied(filled(SMALL, options), options.folder / "run.db")
    with daemon(path) as running:
        running.caught_up(SMALL.events)
        done = at_once(path, count, seconds)
        last = max(one.commits[-1][1] for one in done)
        written = sum(len(one.commits) - one.busy for one in done)
        caught_up_at = running.caught_up(SMALL.events + written)
    workload.check(path)
    rate, took_ms = together(done)
    return rate, quantile(took_ms, 0.99), max(caught_up_at - last, 0) * 1000
