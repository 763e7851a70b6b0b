"""Benchmarks of what the daemon costs while idle, at the start, and in memory."""

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import workload
from latency import SMALL, appends
from measure import (
    PROJECTOR,
    Figure,
    Options,
    cpu_s,
    daemon,
    memory_mib,
    timed,
    wake_ups,
    written,
)
from throughput import LONG, filled, sized
from workload import INSERT, T0, Log
from writer import writer

MANY: Final = Log(200_000, 100_000)
LARGE: Final = Log(10_001, 1, content_bytes=1000)
"""A log with one session of 10 MB."""


def idle(options: Options) -> Iterator[Figure]:
    """Measure an idle daemon after a burst: processor time, writes and wake-ups."""
    seconds = 2 if options.quick else 20
    cpu, writes, waking, own, beside = [], [], [], [], []
    path = workload.copied(filled(SMALL, options), options.folder / "run.db")
    with daemon(path) as running:
        running.caught_up(SMALL.events)
        for _ in range(options.runs):
            _burst(path, 200)
            time.sleep(3)
            before, woken, at = cpu_s(running.pid), wake_ups(running.pid), time.monotonic()
            time.sleep(seconds)
            elapsed = time.monotonic() - at
            cpu.append((cpu_s(running.pid) - before) / elapsed * 100)
            waking.append((wake_ups(running.pid) - woken) / elapsed)
            writes.append(float(_writes(running.pid, seconds / 2, options.folder)))
            woken = wake_ups(running.pid)
            _burst(path, 1)
            time.sleep(1)
            own.append(float(wake_ups(running.pid) - woken))
            beside.append(_beside(running.pid, path.with_name("notes.txt"), seconds))
    workload.check(path)
    yield Figure("idle: processor", "%", cpu, 0.1)
    yield Figure("idle, 3,000 writes a second to another file: processor", "%", beside, 3)
    yield Figure("idle: writes and syncs", "calls", writes, 0)
    yield Figure("idle: threads wake up", "1/s", waking)
    yield Figure("one event: threads wake up in the second after it", "times", own)


def _beside(pid: int, file: Path, seconds: float) -> float:
    """Write to another file in the folder; returns the processor time of the daemon in %."""
    before, began, written = cpu_s(pid), time.monotonic(), 0
    with file.open("wb", buffering=0) as other:
        while (elapsed := time.monotonic() - began) < seconds:
            while written < 3000 * elapsed:
                written += other.write(b"x")
            time.sleep(0.001)
    return (cpu_s(pid) - before) / elapsed * 100


def _burst(path: Path, count: int) -> None:
    """Write `count` events as fast as possible, and check that all become visible."""
    writing = writer(path, count=count, every_s=0, sessions=50, size=300)
    _, seen = appends(path, writing, count, 50)
    if len(seen) < count:
        raise workload.WrongViews("an event was not seen")


def _writes(pid: int, seconds: float, folder: Path) -> int:
    """Count the calls that write or sync, with strace or, if it is missing, from the kernel."""
    traced = folder / "strace"
    if shutil.which("strace"):
        calls = "trace=write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate"
        command = ["strace", "-f", "-qq", "-e", calls, "-o", str(traced), "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        failed = tracer.poll() is not None
        tracer.terminate()
        tracer.wait()
        if not failed:
            return sum("(" in line for line in traced.read_text().splitlines())
    before = written(pid)["syscw"]
    time.sleep(seconds)
    return written(pid)["syscw"] - before


def start(options: Options) -> Iterator[Figure]:
    """Measure the time from exec to the first new view, and the time of `--help`."""
    ready, helped = [], []
    for _ in range(options.runs * 2):
        path = workload.copied(filled(SMALL, options), options.folder / "run.db")
        with daemon(path) as running:
            running.caught_up(SMALL.events)
        with closing(sqlite3.connect(path)) as connection, connection:
            made = workload.event(0, 300, SMALL.events, created=False)
            data = msgspec.msgpack.encode(made)
            connection.execute(INSERT, ("new", "session:S-0", data, T0))
        with closing(sqlite3.connect(path)) as connection, daemon(path) as running:
            query = "SELECT last_offset_id = 'new' FROM view WHERE key = 'session:S-0'"
            while connection.execute(query).fetchone() != (1,):
                time.sleep(0.001)
            ready.append((time.monotonic() - running.executed_at) * 1000)
        workload.check(path)
        helped.append(timed(*PROJECTOR, "--help")[0] * 1000)
    yield Figure("daemon start to tailing, small database", "ms", ready, 250)
    yield Figure("projector --help", "ms", helped, 100)


def memory(options: Options) -> Iterator[Figure]:
    """Measure the peak memory during a catch-up, and the memory when idle after it."""
    for name, whole in (
        ("1M events", LONG),
        ("100k sessions", MANY),
        ("one view of 10 MB", LARGE),
    ):
        log, views_mib = sized(whole, options), 6 * whole.view_mib
        idle_mib, peak_mib = list[float](), list[float]()
        for _ in range(options.runs):
            path = workload.copied(filled(log, options), options.folder / "run.db")
            with daemon(path) as running:
                running.caught_up(log.events)
                time.sleep(0.5 if options.quick else 3)
                idle_mib.append(memory_mib(running.pid, "VmRSS"))
                peak_mib.append(memory_mib(running.pid, "VmHWM"))
            workload.check(path)
        yield Figure(f"memory, {name}: idle", "MiB", idle_mib, 100 + views_mib)
        yield Figure(f"memory, {name}: peak", "MiB", peak_mib, 200 + views_mib)
