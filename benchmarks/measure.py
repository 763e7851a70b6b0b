"""Code shared by the benchmarks: figures, `projector` as a process, and its data in /proc."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Final, Literal

import msgspec

PROJECTOR: Final = [str(Path(sys.executable).with_name("projector"))]
SESSIONS_ALONE: Final = [
    *(sys.executable, "-P", "-c"),
    "from session_projector import projections; projections.BUILT_IN = projections.BUILT_IN[:1];"
    "from session_projector.__main__ import main; main()",
]
"""`projector` with the session view as its only built-in projection."""
WITHOUT_INOTIFY: Final = [
    *(sys.executable, "-P", "-c"),
    "import sys; sys.modules.update(dict.fromkeys(['inotify_simple', 'asyncinotify', 'inotify',"
    "'watchfiles', 'watchdog', '_inotify']));"
    "from session_projector.__main__ import main; main()",
]
"""`projector` without any library that reports changes in a folder."""
PATIENCE_S: Final = 600.0
LOOK_S: Final = 0.01
"""Between two looks at the memory of a command."""


class Figure(msgspec.Struct):
    """A measurement, run by run, and its target."""

    name: str
    unit: str
    values: list[float]
    target: float | None = None
    better: Literal["more", "less"] = "less"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        if self.target is None or not self.values:
            return None
        return self.median >= self.target if self.better == "more" else self.median <= self.target


class Curve(msgspec.Struct):
    """How one figure grows with another: each x, and what was measured there, run by run."""

    name: str
    x: str
    y: str
    points: list[tuple[float, list[float]]]


class Options(msgspec.Struct, frozen=True):
    """How much to run, and in which folder."""

    runs: int
    quick: bool
    folder: Path
    peers_venv: Path
    peers_python: str


class Daemon:
    """A `projector run` with default options, which records what it logs and when."""

    def __init__(self, database: Path | str, command: Sequence[str], *arguments: str) -> None:
        self.executed_at = time.monotonic()
        self.child = subprocess.Popen(
            [*command, "run", "-d", str(database), *arguments],
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        self._reached: dict[str, tuple[int, float]] = {}
        self._expected: set[str] = set()
        self._heard: set[str] = set()
        self._news = Condition()
        self.started_at = 0.0
        Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self.child.pid

    def caught_up(self, position: int) -> float:
        """Wait until every projection has committed the position; returns that monotonic time."""
        with self._news:
            if not self._news.wait_for(lambda: self._are_at(position), PATIENCE_S):
                raise TimeoutError(f"not at {position}: {self._reached}")
            if self.child.poll() is not None:
                raise RuntimeError(f"projector ended with exit code {self.child.returncode}")
            return max(at for _, at in self._reached.values())

    def heard(self, event: str) -> None:
        """Wait until it has logged a line."""
        with self._news:
            if not self._news.wait_for(lambda: event in self._heard, PATIENCE_S):
                raise TimeoutError(f"no {event}: {self._heard}")

    def _are_at(self, position: int) -> bool:
        if self.child.poll() is not None:
            return True  # it ended, so stop waiting
        there = {name for name, (reached, _) in self._reached.items() if reached >= position}
        return bool(there) and self._expected <= there

    def _read(self) -> None:
        assert self.child.stderr is not None
        with self.child.stderr as lines:
            for line in lines:
                self._note(line, time.monotonic())
        with self._news:
            self.child.wait()
            self._news.notify_all()

    def _note(self, line: bytes, at: float) -> None:
        said: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
        with self._news:
            self._heard.add(said.get("event", ""))
            if said.get("event") == "started":
                self.started_at, self._expected = at, set(said["projections"])
            elif said.get("event") == "batch_committed":
                for name in said["views"]:
                    self._reached[name] = (said["position"], at)
            elif said.get("event") == "views_rebuilt":
                self._reached[said["projection"]] = (said["position"], at)
            elif said.get("level") != "info":
                sys.stderr.buffer.write(line)
            self._news.notify_all()

    def stop(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)


@contextmanager
def daemon(
    database: Path | str, *arguments: str, command: Sequence[str] = tuple(PROJECTOR)
) -> Iterator[Daemon]:
    running = Daemon(database, command, *arguments)
    try:
        yield running
    finally:
        running.stop()


def timed(*command: str, code: int = 0) -> tuple[float, float]:
    """Run a command that must exit with `code`; returns its seconds and peak MiB."""
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak_mib = 0.0
    # Not by `ru_maxrss` of the child, which counts what this process had when it was forked.
    while not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with suppress(OSError, KeyError):  # it ends just now
            peak_mib = memory_mib(child.pid, "VmHWM")
        time.sleep(LOOK_S)
    took = time.monotonic() - started
    if child.wait() != code:
        raise RuntimeError(f"{command} ended with exit code {child.returncode}")
    return took, peak_mib


def memory_mib(pid: int, field: Literal["VmRSS", "VmHWM"]) -> float:
    """Return the memory of a running process, now (VmRSS) or at its peak (VmHWM)."""
    return _status(Path(f"/proc/{pid}/status"))[field] / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads, in nanosecond steps; `stat` counts in ticks."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def wake_ups(pid: int) -> int:
    """Return how often a thread of the process waited for something."""
    threads = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(_status(thread)["voluntary_ctxt_switches"] for thread in threads)


def written(pid: int) -> dict[str, int]:
    """Return bytes and calls of `write`, including the logs, and bytes that went to a disk."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def _status(file: Path) -> dict[str, int]:
    """Return the numeric fields of a status file."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {
        line[0].rstrip(":"): int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()
    }


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
