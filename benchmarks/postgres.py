"""Benchmarks of the PostgreSQL engine, beside the floor on the same server and beside SQLite.

The daemon, the writers and the server share the processors of this machine, unless another server
is named (see `server`).
"""

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import workload
from footprint import LARGE
from latency import SMALL, appends_of, delays_ms
from measure import Daemon, Figure, Options, cpu_s, daemon, quantile, wake_ups
from server import Server, running
from throughput import HOT, LOCAL, LONG, RANDOM, W1, W2, catch_up, floor_s, folded, scanned, sized
from workload import POSTGRES_INSERT, Log, WrongViews
from writer import Written, at_once, row, together

LOGS: Final[tuple[tuple[str, Log, float | None, float | None], ...]] = (
    ("W1, 1k sessions, 300 B", W1, None, 0.5),
    ("W2, 5 sessions, 1 KB", W2, None, None),
    ("LOCAL, 10k sessions, 200 live", LOCAL, 30_000, 0.5),
    ("HOT, 5 sessions, 1 KB", HOT, None, None),
    ("RANDOM, 10k sessions in random order", RANDOM, None, None),
)
"""Each log with its targets: events per second, and the ratio to the floor."""
SEEN: Final = "SELECT last_offset_id FROM view WHERE key = %s"
LOOK_S: Final = 0.0002
MISSED_AFTER_S: Final = 60.0
TRANSACTIONS: Final = (
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{}'"
)
BACKENDS: Final = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'projector@%'"


def compared(options: Options) -> Iterator[Figure]:
    """Measure all of it, on one server."""
    with running() as server:
        for benchmark in (rates, scans, tail, idle, writers, append, failover):
            for figure in benchmark(server, options):
                figure.name = f"PostgreSQL {figure.name}"
                yield figure


def rates(server: Server, options: Options) -> Iterator[Figure]:
    """Measure catch-up, the floor and SQLite, run by run; all must give the same views."""
    for name, whole, target, of_floor in LOGS:
        if options.quick and of_floor is None:
            continue
        log = sized(whole, options)
        reached, floors, in_sqlite = [], [], []
        for _ in range(options.runs):
            with server.fresh(log) as url:
                floors.append(log.events / floor_s("postgres", url))
                wanted = workload.views(url)
            with server.fresh(log) as url:
                reached.append(folded(url, log)[0])
                found = workload.views(url)
            rate, _, path = catch_up(log, options)
            in_sqlite.append(rate)
            if not found == wanted == workload.views(path):
                raise WrongViews(f"{name} is not folded to the same views everywhere")
        ratios = [rate / floor for rate, floor in zip(reached, floors, strict=True)]
        yield Figure(f"catch-up {name}", "events/s", reached, target, "more")
        yield Figure(f"catch-up {name}: floor, one Python process", "events/s", floors)
        yield Figure(f"catch-up {name}: against the floor", "ratio", ratios, of_floor, "more")
        yield Figure(f"catch-up {name}: SQLite in the same run", "events/s", in_sqlite)


def scans(server: Server, options: Options) -> Iterator[Figure]:
    """Measure `replay` from nothing, then `verify`, of a million events, with peak memory."""
    log = sized(LONG, options)
    yield from scanned(log, partial(server.fresh, log), options.runs)


def appended(
    url: str,
    running: subprocess.Popen[Any],
    count: int,
    *,
    every_s: float,
    log: Log,
    name: str = "w",
) -> list[float]:
    """Append events one at a time; returns the ms from each commit until it is seen in its view.

    This process writes and looks, so that nothing else needs a processor meanwhile.
    """
    size = log.content_bytes
    commits, seen = list[tuple[float, float]](), list[float]()
    with workload.connected(url) as connection:
        due = time.monotonic()
        for number in range(count):
            time.sleep(max(due - time.monotonic(), 0))
            due = time.monotonic() + every_s
            one = row(name, number, log.sessions, size)
            begin = time.monotonic()
            connection.execute(POSTGRES_INSERT, one)
            commits.append((begin, time.monotonic()))
            seen.append(_seen_at(connection, running, one))
    return delays_ms(Written(0, commits), seen)


def _seen_at(connection: Any, running: subprocess.Popen[Any], event: tuple[Any, ...]) -> float:
    event_id, key = event[:2]
    give_up = time.monotonic() + MISSED_AFTER_S
    while connection.execute(SEEN, (key,)).fetchone() != (event_id,):
        if time.monotonic() > give_up:
            raise WrongViews(f"{event_id} is not seen; exit code {running.poll()}")
        time.sleep(LOOK_S)
    return time.monotonic()


def tail(server: Server, options: Options) -> Iterator[Figure]:
    """Measure one event every 20 ms, and how soon a bare loop writes its view."""
    count = 20 if options.quick else 500
    p50, p99, longest, floor = [], [], [], []
    for _ in range(options.runs):
        with server.fresh(SMALL) as url:
            with daemon(url) as running:
                running.caught_up(SMALL.events)
                delays = appended(url, running.child, count, every_s=0.02, log=SMALL)
            workload.check(url)
            floor.append(statistics.median(_by_floor(url, count)))
        p50.append(statistics.median(delays))
        p99.append(quantile(delays, 0.99))
        longest.append(max(delays))
    yield Figure("commit → visible: p50", "ms", p50, 3)
    yield Figure("commit → visible: p99", "ms", p99, 10)
    yield Figure("commit → visible: longest", "ms", longest)
    yield Figure("commit → visible: p50 of the floor", "ms", floor)


def _by_floor(url: str, count: int) -> list[float]:
    script = Path(__file__).with_name("floor.py")
    command = [sys.executable, str(script), "tail", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        try:
            return appended(url, running, count, every_s=0.02, log=SMALL, name="f")
        finally:
            running.kill()


def idle(server: Server, options: Options) -> Iterator[Figure]:
    """Measure an idle daemon after a burst, and what it asks of the server meanwhile."""
    seconds = 2 if options.quick else 20
    cpu, waking, asked, serving = [], [], [], []
    with server.fresh(SMALL) as url:
        name = url.partition("?")[0].rpartition("/")[2]
        with daemon(url) as running:
            running.caught_up(SMALL.events)
            for number in range(options.runs):
                _burst(url, 200, name=f"b{number}")
                running.caught_up(SMALL.events + 200 * (number + 1))
                time.sleep(3)
                backends = [pid for (pid,) in server.sql(BACKENDS)] if server.own else []
                before = _spent(server, name, running, backends)
                at = time.monotonic()
                time.sleep(seconds)
                elapsed = time.monotonic() - at
                spent = [
                    (now - then) / elapsed
                    for now, then in zip(
                        _spent(server, name, running, backends), before, strict=True
                    )
                ]
                cpu.append(spent[0] * 100)
                waking.append(spent[1])
                asked.append(spent[2])
                serving.append(spent[3] * 100)
        workload.check(url)
    yield Figure("idle: processor", "%", cpu, 0.5)
    yield Figure("idle: threads wake up", "1/s", waking)
    yield Figure("idle: transactions on the server", "1/s", asked)
    if server.own:
        yield Figure("idle: processor of its server processes", "%", serving)


def _spent(
    server: Server, name: str, running: Daemon, backends: list[int]
) -> tuple[float, float, float, float]:
    """Seconds and wake-ups of the daemon, transactions in its database, seconds of the server."""
    ((transactions,),) = server.sql(TRANSACTIONS.format(name))
    served = sum(map(cpu_s, backends))
    return cpu_s(running.pid), wake_ups(running.pid), transactions, served


def _burst(url: str, count: int, name: str) -> None:
    with workload.connected(url) as connection:
        for number in range(count):
            connection.execute(POSTGRES_INSERT, row(name, number, SMALL.sessions, 300))


def writers(server: Server, options: Options) -> Iterator[Figure]:
    """Measure writers that write as fast as they can, with a daemon that tails and without one."""
    seconds = 1 if options.quick else 5
    for count in (1, 4) if options.quick else (1, 8, 32):
        alone, beside, kept, p99, lag = [], [], [], [], []
        for _ in range(options.runs):
            with server.fresh(SMALL) as url:
                alone.append(together(at_once(url, count, seconds))[0])
            with server.fresh(SMALL) as url:
                with daemon(url) as running:
                    running.caught_up(SMALL.events)
                    done = at_once(url, count, seconds)
                    last = max(one.commits[-1][1] for one in done)
                    written = sum(len(one.commits) for one in done)
                    lag.append(max(running.caught_up(SMALL.events + written) - last, 0) * 1000)
                workload.check(url)
            rate, took_ms = together(done)
            beside.append(rate)
            p99.append(quantile(took_ms, 0.99))
            kept.append(rate / alone[-1] * 100)
        name = f"{count} writers" if count > 1 else "1 writer"
        yield Figure(f"{name}, no daemon", "events/s", alone)
        yield Figure(f"{name}, daemon", "events/s", beside)
        yield Figure(f"{name}: kept beside the daemon", "%", kept, 90, "more")
        yield Figure(f"{name}, daemon: INSERT and commit, p99", "ms", p99)
        yield Figure(f"{name}, daemon: last commit → all views", "ms", lag)


def append(server: Server, options: Options) -> Iterator[Figure]:
    """Measure an append to a session with many messages of 1 KB."""
    for messages in (1_000,) if options.quick else (1_000, 10_000):
        held = messages // (100 if options.quick else 1)
        log = Log(held + 1, 1, content_bytes=LARGE.content_bytes)
        count, every_s = appends_of(held, options)
        taken = []
        for _ in range(options.runs):
            with server.fresh(log) as url:
                with daemon(url) as running:
                    running.caught_up(log.events)
                    time.sleep(1)  # by now it is tailing and idle
                    delays = appended(url, running.child, count, every_s=every_s, log=log)
                workload.check(url)
            taken.append(statistics.median(delays))
        yield Figure(f"append to {messages:,} messages of 1 KB", "ms", taken)


def failover(server: Server, options: Options) -> Iterator[Figure]:
    """Measure how soon the next event is visible once the leader, or the server, is gone."""
    taken, back = [], []
    for number in range(options.runs):
        with server.fresh(SMALL) as url, daemon(url) as leader:
            leader.caught_up(SMALL.events)
            with daemon(url) as standby:
                standby.heard("standing_by")
                leader.child.send_signal(signal.SIGKILL)
                taken.append(_visible_ms(url, standby, f"k{number}"))
                if server.own:
                    server.own.stop("SIGQUIT")
                    server.own.start()
                    back.append(_visible_ms(url, standby, f"r{number}"))
            workload.check(url)
    yield Figure("kill -9 of the leader → the next event is visible", "ms", taken, 1000)
    if server.own:
        yield Figure("immediate restart of the server → the next event is visible", "ms", back)


def _visible_ms(url: str, running: Daemon, name: str) -> float:
    """Write an event now; returns the ms until it is seen."""
    began = time.monotonic()
    with workload.connected(url) as connection:
        one = row(name, 0, SMALL.sessions, 300)
        connection.execute(POSTGRES_INSERT, one)
        return (_seen_at(connection, running.child, one) - began) * 1000
