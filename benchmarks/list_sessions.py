"""Time to list 50 of many sessions, by message size: python benchmarks/list_sessions.py [N].

There are N sessions (100,000 by default) in projects of 50. It prints the time of the query behind
`projector session list -p PROJECT` (median of 50) and of the whole command (median of 5).
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from session_projector.worker.sessions import read as readers
from session_projector.worker.storage.open import database
from session_projector.worker.storage.sqlite.connection import connect

T0 = 1_700_000_000_000
PROJECTOR = [sys.executable, "-P", "-m", "session_projector"]


def fill(path: Path, sessions: int, weight: int) -> None:
    """Write one event per session, with one message of `weight` bytes, and fold them."""
    database(str(path)).setup()
    connection = connect(path, mode="rw")
    connection.execute("BEGIN")
    for number in range(sessions):
        message = {"role": "user", "content": "x" * weight}
        data = {"project": f"P{number // 50}", "messages": [message]}
        event = {"type": "session_created", "data": data, "timestamp": T0 + number}
        connection.execute(
            "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)",
            (f"e{number}", f"session:S-{number}", msgspec.msgpack.encode(event), T0 + number),
        )
    connection.execute("COMMIT")
    connection.close()
    subprocess.run([*PROJECTOR, "run", "--once", "-d", path, "--log-level", "error"], check=True)


def query_ms(path: Path) -> float:
    with database(str(path)).open() as store:
        started = time.perf_counter()
        found = list(readers.sessions(store, project="P7"))
        took = time.perf_counter() - started
    assert len(found) == 50
    return took * 1000


def command_ms(path: Path) -> float:
    started = time.perf_counter()
    command = [*PROJECTOR, "session", "list", "-p", "P7", "-d", path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    sessions = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print("bytes a message   query ms   command ms")
    for weight in (10, 1000, 5000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "local.db"
            fill(path, sessions, weight)
            query = statistics.median(query_ms(path) for _ in range(50))
            command = statistics.median(command_ms(path) for _ in range(5))
        print(f"{weight:15}   {query:8.2f}   {command:10.0f}", flush=True)


if __name__ == "__main__":
    main()
