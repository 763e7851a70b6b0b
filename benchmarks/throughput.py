"""Benchmarks of how fast a log is folded: catch-up against the floor, `replay` and `verify`.

A catch-up is measured in the daemon, from the line `started` in its log to the line that reports
the commit of the newest event. It excludes the start of the process, which is a separate figure.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import workload
from measure import PROJECTOR, SESSIONS_ALONE, Figure, Options, daemon, memory_mib, timed
from workload import Log

LOCAL: Final = Log(200_000, 10_000)
W1: Final = Log(20_000, 1_000, "interleaved", content_bytes=300)
W2: Final = Log(10_000, 5, "interleaved", content_bytes=1000)
HOT: Final = Log(20_000, 5, "interleaved", content_bytes=1000)
RANDOM: Final = Log(200_000, 10_000, "random")
LONG: Final = Log(1_000_000, 10_000)
SHRUNK: Final = 100
"""How many times smaller logs are in a quick run."""


def sized(log: Log, options: Options) -> Log:
    return log.smaller(SHRUNK) if options.quick else log


def filled(log: Log, options: Options) -> Path:
    """Return a database with the log, filled once for all benchmarks of a run."""
    parts = (log.events, log.sessions, log.order, log.live, log.content_bytes)
    path = options.folder / ("-".join(map(str, parts)) + ".db")
    if not path.exists():
        workload.fill(path, log)
    return path


@contextmanager
def fresh(log: Log, options: Options) -> Iterator[Path]:
    """Give a database with the log that nobody has folded; it stays after the block."""
    yield workload.copied(filled(log, options), options.folder / "run.db")


def catch_up(
    log: Log,
    options: Options,
    *arguments: str,
    command: Sequence[str] = PROJECTOR,
) -> tuple[float, float, Path]:
    """Run one catch-up; returns events per second, peak MiB, and the database after it."""
    with fresh(log, options) as path:
        rate, peak_mib = folded(path, log, *arguments, command=command)
    return rate, peak_mib, path


def folded(
    database: Path | str, log: Log, *arguments: str, command: Sequence[str] = PROJECTOR
) -> tuple[float, float]:
    """Let a daemon fold a database that holds the log; returns events per second and peak MiB."""
    with daemon(database, *arguments, command=command) as running:
        took_s = running.caught_up(log.events) - running.started_at
        peak_mib = memory_mib(running.pid, "VmHWM")
    workload.check(database, index=command is not SESSIONS_ALONE)
    return log.events / took_s, peak_mib


def rates(options: Options) -> Iterator[Figure]:
    """Measure the catch-up of the logs that have a target in events per second."""
    for name, log, command, target in (
        ("catch-up, 10k sessions, 200 live, both projections", LOCAL, PROJECTOR, 60_000),
        ("catch-up, 10k sessions, 200 live, session view alone", LOCAL, SESSIONS_ALONE, 100_000),
        ("catch-up, 5 hot sessions, 1 KB", HOT, PROJECTOR, 60_000),
        ("catch-up, 10k sessions in random order", RANDOM, PROJECTOR, 35_000),
    ):
        runs = [
            catch_up(sized(log, options), options, command=command) for _ in range(options.runs)
        ]
        yield Figure(name, "events/s", [rate for rate, _, _ in runs], target, "more")
        peaks, allowed = [peak for _, peak, _ in runs], 200 + 6 * log.view_mib
        yield Figure(f"{name}: peak memory", "MiB", peaks, allowed)


def floor_s(kind: str, database: Path | str) -> float:
    script = Path(__file__).with_name("floor.py")
    return float(subprocess.check_output([sys.executable, str(script), kind, str(database)]))


def against_floor(options: Options) -> Iterator[Figure]:
    """Measure against the floor, run by run; both must give the same views."""
    for name, whole in (("W1", W1), ("W2", W2), ("LOCAL", LOCAL), ("HOT", HOT)):
        log = sized(whole, options)
        reached, floors, inside = [], [], []
        as_json = options.folder / "json.db"
        if log.order == "interleaved":  # in the others some sessions have no message
            workload.fill(as_json, log, json=True)
        for _ in range(options.runs):
            floor = workload.copied(filled(log, options), options.folder / "floor.db")
            floors.append(log.events / floor_s("python", floor))
            if as_json.exists():
                path = workload.copied(as_json, options.folder / "run.db")
                inside.append(log.events / floor_s("sqlite", path))
            rate, _, path = catch_up(log, options)
            reached.append(rate)
            if workload.views(path) != workload.views(floor):
                raise workload.WrongViews(f"the floor folds {name} to other views")
        as_json.unlink(missing_ok=True)
        yield Figure(f"{name}: projector", "events/s", reached)
        yield Figure(f"{name}: floor, one Python process", "events/s", floors)
        if inside:
            yield Figure(f"{name}: floor, inside SQLite", "events/s", inside)
        ratios = [rate / floor for rate, floor in zip(reached, floors, strict=True)]
        yield Figure(f"catch-up {name} against the floor", "ratio", ratios, 0.6, "more")


def replay(options: Options) -> Iterator[Figure]:
    """Measure `replay` from nothing, then `verify`, of a million events, with peak memory."""
    for order in ("local", "random"):
        log = sized(Log(LONG.events, LONG.sessions, order), options)
        yield from scanned(log, lambda log=log: fresh(log, options), options.runs, (15, 12))


def scanned(
    log: Log,
    place: Callable[[], AbstractContextManager[Path | str]],
    runs: int,
    targets: tuple[float | None, float | None] = (None, None),
    engine: str = "",
) -> Iterator[Figure]:
    """Measure `replay` and `verify` of databases that `place` gives, with the seconds of each."""
    measured: dict[str, list[tuple[float, float]]] = {"replay": [], "verify": []}
    for _ in range(runs):
        with place() as database:
            for command, taken in measured.items():
                taken.append(timed(*PROJECTOR, command, "-d", str(database)))
                workload.check(database)
    for (command, taken), target in zip(measured.items(), targets, strict=True):
        name = f"{engine}{command} of 1M events, {log.order} order"
        yield Figure(name, "s", [took for took, _ in taken], target)
        yield Figure(f"{name}: peak memory", "MiB", [mib for _, mib in taken], 150)
