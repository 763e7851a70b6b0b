"""verify and replay of a long log: python benchmarks/replay.py [--events N] [--sessions N].

In random order of sessions. Prints seconds and peak memory of each, and how long a writer beside a
replay that replaces every row waited for the write lock.
"""

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

PROJECTOR = [sys.executable, "-P", "-m", "worker"]
MEASURED = (
    "import resource, subprocess, sys;"
    "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
    "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.db"
        subprocess.run([*PROJECTOR, "db", "setup", "-d", path], check=True, capture_output=True)
        fill(path, options.events, options.sessions)
        timed("replay of all from nothing", path, "replay")
        timed("verify", path, "verify")
        timed("replay that changes nothing", path, "replay")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE view SET data = x'80'")
            connection.execute("UPDATE session_index SET title = 'x'")
        waits: list[float] = []
        over = threading.Event()
        writer = threading.Thread(target=wait_for_lock, args=(path, waits, over))
        writer.start()
        timed("replay that replaces every row", path, "replay")
        over.set()
        writer.join()
        waits.sort()
        middle, high = (waits[len(waits) * part // 100] * 1000 for part in (50, 99))
        print(
            f"a writer beside it waited for the lock {len(waits):,} times: p50 {middle:.1f} ms,"
            f" p99 {high:.1f} ms, longest {waits[-1] * 1000:.1f} ms"
        )


def fill(path: Path, events: int, sessions: int) -> None:
    chance = random.Random(1)
    rows = []
    for number in range(events):
        session = number if number < sessions else chance.randrange(sessions)
        kind, data = "session_append", {"messages": [{"role": "user", "content": "x" * 300}]}
        if number < sessions:
            kind, data = "session_created", {"project": "P"}
        rows.append(
            (f"e{number}", f"session:S-{session}", json.dumps({"type": kind, "data": data}))
        )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, 1700000000)", rows
        )


def timed(what: str, path: Path, *command: str) -> None:
    started = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-c", MEASURED, *PROJECTOR, *command, "-d", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    code, mebibytes = said.split()
    took = time.perf_counter() - started
    print(f"{what}: {took:.1f} s, peak {mebibytes} MiB, exit {code}", flush=True)


def wait_for_lock(path: Path, waits: list[float], over: threading.Event) -> None:
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        while not over.wait(0.002):
            started = time.perf_counter()
            while True:
                try:
                    connection.execute("PRAGMA busy_timeout = 0")
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:
                    time.sleep(0.0002)
            waits.append(time.perf_counter() - started)
            connection.execute("ROLLBACK")


if __name__ == "__main__":
    main()
