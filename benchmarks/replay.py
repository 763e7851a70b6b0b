"""The effect of replaying a long log on a writer: replay.py [--events N] [--sessions N].

The sessions are in random order. It prints the seconds and peak memory of each full scan, and how
long a writer waited for the write lock during a replay that replaces every row.
"""

import argparse
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import workload
from measure import PROJECTOR, quantile, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.db"
        workload.fill(path, workload.Log(options.events, options.sessions, "random"))
        walk("replay of all from nothing", path, "replay")
        walk("verify", path, "verify")
        walk("replay that changes nothing", path, "replay")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE view SET data = x'80'")
            connection.execute("UPDATE session_index SET title = 'x'")
        waits_ms: list[float] = []
        over = threading.Event()
        writer = threading.Thread(target=wait_for_lock, args=(path, waits_ms, over))
        writer.start()
        walk("replay that replaces every row", path, "replay")
        over.set()
        writer.join()
        middle, high = quantile(waits_ms, 0.5), quantile(waits_ms, 0.99)
        print(
            f"a writer beside it waited for the lock {len(waits_ms):,} times: p50 {middle:.1f} ms,"
            f" p99 {high:.1f} ms, longest {max(waits_ms):.1f} ms"
        )


def walk(what: str, path: Path, command: str) -> None:
    took_s, peak_mib = timed(*PROJECTOR, command, "-d", str(path))
    workload.check(path)
    print(f"{what}: {took_s:.1f} s, peak {peak_mib:.0f} MiB", flush=True)


def wait_for_lock(path: Path, waits_ms: list[float], over: threading.Event) -> None:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        while not over.wait(0.002):
            started = time.perf_counter()
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:
                    time.sleep(0.0002)
            waits_ms.append((time.perf_counter() - started) * 1000)
            connection.execute("ROLLBACK")


if __name__ == "__main__":
    main()
