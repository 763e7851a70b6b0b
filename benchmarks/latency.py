"""Benchmarks of how soon a committed event is visible in its view, and of the effect on writers.

The writer is a separate process (`writer.py`). This process looks for what it commits: it spins on
`PRAGMA data_version` and reads the view whenever another process has committed.
"""

import sqlite3
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Final

import workload
from measure import PROJECTOR, WITHOUT_INOTIFY, Daemon, Figure, Options, daemon, quantile, written
from throughput import HOT, LOCAL, RANDOM, filled, sized
from workload import Log
from writer import PROGRAM, Writer, Written, row, writer

from session_projector.worker.storage.sqlite.wakeup import IDLE_POLL_S

SMALL: Final = Log(500, 50)
MISSED_AFTER_S: Final = 60.0
LOADED: Final = 200
"""So many appends as fast as they come, to one session."""


def appends(
    path: Path, writing: AbstractContextManager[Writer], count: int, sessions: int
) -> tuple[Written, list[float]]:
    """Run a writer; returns its commits, and when each event was seen in its view."""
    seen: list[float] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, writing as running:
        version, give_up = -1, time.monotonic() + 1 + MISSED_AFTER_S
        while len(seen) < count and (now := time.monotonic()) < give_up:
            if version == (version := connection.execute("PRAGMA data_version").fetchone()[0]):
                continue
            while len(seen) < count and _last(connection, len(seen) % sessions) >= len(seen):
                seen.append(time.monotonic())
                give_up = now + MISSED_AFTER_S
        return running.wait(), seen


def _last(connection: sqlite3.Connection, session: int, writer_name: str = "w") -> int:
    """Return the number of a writer's newest event in the view of a session, or -1."""
    query = "SELECT last_offset_id FROM view WHERE key = ?"
    event_id: str = connection.execute(query, (f"session:S-{session}",)).fetchone()[0]
    name, _, number = event_id.partition("-")
    return int(number) if name == writer_name else -1


def delays_ms(written_: Written, seen: Sequence[float]) -> list[float]:
    """Return the delay after each commit; 0 if the event was seen before the commit returned."""
    pairs = zip(seen, written_.commits, strict=False)
    return [max(at - end, 0) * 1000 for at, (_, end) in pairs]


def slowly(
    path: Path, count: int, program: Sequence[str] = PROGRAM
) -> AbstractContextManager[Writer]:
    """Run a writer with one event every 20 ms, over fifty sessions."""
    return writer(path, count=count, every_s=0.02, sessions=50, size=300, program=program)


def tail(options: Options) -> Iterator[Figure]:
    """Measure one event every 20 ms, with inotify and without it, and a writer that writes again as
    soon as it sees its event."""
    poll_ms = IDLE_POLL_S * 1000
    for name, command, count, seen_after_ms, targets in (
        ("commit → visible", PROJECTOR, 4000, _slowly, (1.0, 3.0, 20.0)),
        ("commit → visible, ping-pong", PROJECTOR, 4000, ping_pong, (1.0, 3.0, 20.0)),
        ("commit → visible, no inotify", WITHOUT_INOTIFY, 500, _slowly, (None, poll_ms + 5, None)),
    ):
        runs: list[list[float]] = []
        wanted = 20 if options.quick else count
        for _ in range(options.runs):
            path = workload.copied(filled(SMALL, options), options.folder / "run.db")
            with daemon(path, command=command) as running:
                running.caught_up(SMALL.events)
                runs.append(seen_after_ms(path, wanted))
            workload.check(path)
        yield Figure(f"{name}: p50", "ms", [*map(statistics.median, runs)], targets[0])
        yield Figure(f"{name}: p99", "ms", [quantile(run, 0.99) for run in runs], targets[1])
        yield Figure(f"{name}: longest", "ms", [*map(max, runs)], targets[2])
        yield Figure(f"{name}: missed", "events", [float(wanted - len(run)) for run in runs], 0)


def _slowly(path: Path, count: int) -> list[float]:
    return delays_ms(*appends(path, slowly(path, count), count, 50))


def ping_pong(path: Path, count: int, name: str = "w", every_s: float = 0) -> list[float]:
    """Write an event, synchronous FULL, as soon as the one before is seen and `every_s` has passed;
    returns the ms from each commit until its view has it."""
    delays: list[float] = []
    with workload.connected(path) as connection:
        due = time.monotonic()
        for number in range(count):
            time.sleep(max(due - time.monotonic(), 0))
            due += every_s
            connection.execute(workload.INSERT, row(name, number, 50, 300))
            committed = time.monotonic()
            while _last(connection, number % 50, name) < number:
                time.sleep(
                    0.00005
                )  # it leaves the processor to others, as a writer that waits would
                if time.monotonic() - committed > MISSED_AFTER_S:
                    return delays
            delays.append((time.monotonic() - committed) * 1000)
    return delays


def beside_writer(options: Options) -> Iterator[Figure]:
    """Measure a writer at 200 events/s during a catch-up, and without a daemon."""
    log = sized(LOCAL, options)
    alone = []
    for _ in range(options.runs):
        path = workload.copied(filled(log, options), options.folder / "run.db")
        with writer(path, every_s=0.005, sessions=1, size=300) as running:
            time.sleep(1)
            alone.append(running.stop())
    for name, of, target in (
        ("during catch-up", LOCAL, 10.0),
        ("during catch-up in random order", RANDOM, 10.0),
        ("during catch-up of 5 hot sessions", HOT, 25.0),  # each row is of 4 MB, written as a whole
    ):
        runs = [_during_catch_up(sized(of, options), options) for _ in range(options.runs)]
        yield from _felt(f"a writer at 200/s {name}", [run for run, _ in runs], target, busy=0)
        yield Figure(f"a writer at 200/s {name}: it took", "s", [took for _, took in runs])
    yield from _felt("a writer at 200/s, no daemon", alone)


def _during_catch_up(log: Log, options: Options) -> tuple[Written, float]:
    """Return what the writer did during the catch-up, and how many seconds that took."""
    path = workload.copied(filled(log, options), options.folder / "run.db")
    with writer(path, every_s=0.005, sessions=1, size=300) as running, daemon(path) as folding:
        folding.caught_up(log.events)
        caught_up_at = time.monotonic()
        done = running.stop()
        folding.caught_up(log.events + len(done.commits) - done.busy)
    workload.check(path)
    during = [c for c in done.commits if folding.started_at <= c[0] <= caught_up_at]
    return Written(done.busy, during), caught_up_at - folding.started_at


def _felt(
    name: str, runs: Sequence[Written], target: float | None = None, busy: float | None = None
) -> Iterator[Figure]:
    times = [run.took_ms for run in runs]
    yield Figure(f"{name}: p50", "ms", [statistics.median(run) for run in times])
    yield Figure(f"{name}: p99", "ms", [quantile(run, 0.99) for run in times], target)
    yield Figure(f"{name}: longest", "ms", [max(run) for run in times])
    waited = [float(sum(ms > 5 for ms in run)) for run in times]
    yield Figure(f"{name}: above 5 ms", "commits", waited)
    yield Figure(f"{name}: BUSY", "commits", [float(run.busy) for run in runs], busy)


def one_session(messages: int, options: Options) -> Path:
    """Make a folded database with one session of `messages` messages of 1 KB."""
    log = Log(messages + 1, 1, content_bytes=1000)
    path = workload.copied(filled(log, options), options.folder / "run.db")
    with daemon(path) as running:
        running.caught_up(log.events)
    return path


def appends_of(messages: int, options: Options) -> tuple[int, float]:
    """How many appends are measured, and the seconds between two of them: so many that a view that
    costs much to write is not left for later, as it would be if appends came faster."""
    if messages > 2000:
        return 3, 25.0
    return 5 if options.quick else 20, 0.5


def appended_ms(messages: int, options: Options) -> tuple[float, float, float]:
    """Measure an append: median ms until it is visible, bytes written alone and under load."""
    path = one_session(messages, options)
    count, every_s = appends_of(messages, options)
    writing = writer(path, count=count, every_s=every_s, sessions=1, size=1000)
    with daemon(path) as running:
        time.sleep(1)  # by now it is tailing and idle
        before = written(running.pid)["wchar"]
        done, seen = appends(path, writing, count, 1)
        if len(seen) < count:
            raise workload.WrongViews("an append was not seen")
        single = (written(running.pid)["wchar"] - before) / count
        loaded = _under_load(path, running, LOADED, messages + 1 + count)
    workload.check(path)
    return statistics.median(delays_ms(done, seen)), single, loaded


def _under_load(path: Path, running: Daemon, count: int, position: int) -> float:
    """Measure the bytes that the daemon writes per append when appends come as fast as possible."""
    before = written(running.pid)["wchar"]
    with writer(path, "l", count=count, every_s=0, sessions=1, size=1000) as loading:
        loading.wait()
    running.caught_up(position + count)
    return (written(running.pid)["wchar"] - before) / count


def large_session(options: Options) -> Iterator[Figure]:
    """Measure an append to a session with many messages of 1 KB."""
    for messages, target in ((1_000, 4.0), (10_000, 40.0)):
        held = messages // (100 if options.quick else 1)
        runs = [appended_ms(held, options) for _ in range(options.runs)]
        name = f"append to {messages:,} messages of 1 KB"
        yield Figure(name, "ms", [ms for ms, _, _ in runs], target)
        yield Figure(f"{name}: written, alone", "KiB", [alone / 1024 for _, alone, _ in runs])
        yield Figure(f"{name}: written, under load", "KiB", [load / 1024 for _, _, load in runs])
        ratios = [load / alone for _, alone, load in runs]
        yield Figure(f"{name}: written under load against alone", "ratio", ratios, 1.0)
