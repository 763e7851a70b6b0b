"""Benchmarks of two Python libraries on the same events, used as their documentation recommends.

They run on SQLite, and are installed into their own venv, in the versions of
`peers-requirements.txt`. `peer_eventsourcing.py` and `peer_eventsource.py` explain what each does.
"""

import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import workload
from latency import SMALL, appends, delays_ms, slowly
from measure import Daemon, Figure, Options, cpu_s, daemon, quantile
from throughput import W1, W2, sized
from workload import Log

HERE: Final = Path(__file__).parent
PEERS: Final = (
    ("eventsourcing", "eventsourcing {}", "", "peer_eventsourcing.py"),
    ("eventsource-py", "eventsource-py {}, its projection", "", "peer_eventsource.py"),
    ("eventsource-py", "eventsource-py {}, a batch subscriber", "batch", "peer_eventsource.py"),
)
"""Package, name shown, variant and script of each peer."""
LONG_S: Final = 10.0
"""A run that takes longer than this is not repeated."""


class Peer(msgspec.Struct, frozen=True):
    """An installed library, and the command that runs it."""

    name: str
    command: list[str]


def compared(options: Options) -> Iterator[Figure]:
    """Measure catch-up of W1 and W2, commit to visible, and idling."""
    for package, called, variant, script in PEERS:
        version = _installed(package, options)
        if version is None:
            yield Figure(called.format("cannot be installed here"), "", [])
            continue
        python = str(options.peers_venv / "bin" / "python")
        command = ["env", f"PEER_VARIANT={variant}", python, str(HERE / script)]
        peer = Peer(called.format(version), command)
        for name, log in (("W1", W1), ("W2", W2)):
            rates = list(_rates(peer, sized(log, options), options))
            yield Figure(f"{name}: {peer.name}", "events/s", rates)
        yield from _tail(peer, options)


def _installed(package: str, options: Options) -> str | None:
    """Install the package into the peers' venv, creating it if needed; returns its version."""
    python = options.peers_venv / "bin" / "python"
    if not python.exists():
        subprocess.run([options.peers_python, "-m", "venv", options.peers_venv], check=True)
    requirements = (HERE / "peers-requirements.txt").read_text().splitlines()
    needed = [line for line in requirements if line.startswith((package, "greenlet", "msgspec"))]
    pip = subprocess.run([python, "-m", "pip", "install", "-q", *needed], capture_output=True)
    asked = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    said = subprocess.run([python, "-c", asked, package], capture_output=True, text=True)
    if pip.returncode or said.returncode:
        sys.stderr.buffer.write(pip.stderr)
        return None
    return said.stdout.strip()


def _filled(peer: Peer, log: Log, options: Options) -> Path:
    """Return a copy of a database in which the peer has stored the events of the log."""
    parts = (peer.name.partition(",")[0], log.events, log.sessions, log.content_bytes)
    template = options.folder / ("-".join(map(str, parts)).replace(" ", "-") + ".db")
    if not template.exists():
        events = options.folder / "events.jsonl"
        with events.open("wb") as lines:
            for row in log.rows():
                lines.write(msgspec.json.encode(_given(*row)) + b"\n")
        subprocess.run([*peer.command, "fill", template, events], check=True)
        with closing(sqlite3.connect(template)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return workload.copied(template, options.folder / "peer.db")


def _given(event_id: str, key: str, data: bytes, time_ms: int) -> dict[str, Any]:
    body = msgspec.msgpack.decode(data)["data"]
    given = {"session": key.removeprefix("session:"), "id": event_id, "time": time_ms}
    if "project" in body:
        return {**given, "project": body["project"]}
    return {**given, "message": body["messages"][0]}


def _check(path: Path, events: int, sessions: int) -> None:
    """Check that every message is in a view."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        rows = connection.execute("SELECT data FROM view").fetchall()
    messages = sum(len(msgspec.msgpack.decode(data)["messages"]) for (data,) in rows)
    if (len(rows), messages) != (sessions, events - sessions):
        raise workload.WrongViews(f"{len(rows)} views hold {messages} messages in {path}")


def _rates(peer: Peer, log: Log, options: Options) -> Iterator[float]:
    for _ in range(min(options.runs, 3)):
        path = _filled(peer, log, options)
        with daemon(path, command=peer.command) as running:
            took_s = running.caught_up(log.events) - running.started_at
        _check(path, log.events, log.sessions)
        yield log.events / took_s
        if took_s > LONG_S:
            return


def _tail(peer: Peer, options: Options) -> Iterator[Figure]:
    count, p50, p99, idle = 20 if options.quick else 200, [], [], []
    for _ in range(min(options.runs, 3)):
        path = _filled(peer, SMALL, options)
        with daemon(path, command=peer.command) as running:
            running.caught_up(SMALL.events)
            done, seen = appends(path, slowly(path, count, [*peer.command, "write"]), count, 50)
            delays = delays_ms(done, seen)
            p50.append(statistics.median(delays))
            p99.append(quantile(delays, 0.99))
            idle.append(_idle(running, 1 if options.quick else 10))
        _check(path, SMALL.events + count, SMALL.sessions)
    yield Figure(f"commit → visible: p50: {peer.name}", "ms", p50)
    yield Figure(f"commit → visible: p99: {peer.name}", "ms", p99)
    yield Figure(f"idle: processor: {peer.name}", "%", idle)


def _idle(running: Daemon, seconds: float) -> float:
    time.sleep(1)
    before = cpu_s(running.pid)
    time.sleep(seconds)
    return (cpu_s(running.pid) - before) / seconds * 100
