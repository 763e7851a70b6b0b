"""Catch-up rate of `projector`: python benchmarks/catch_up.py [EVENTS] [SESSIONS] [LIVE].

Events of about 400 B over SESSIONS sessions of which LIVE are written to at a time, `run --once` as
its own process, start-up included. Prints events per second and the peak memory.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from worker import schema
from worker.database import connect

T0 = 1_700_000_000_000


def fill(path: Path, events: int, sessions: int, live: int) -> None:
    """The log, in one transaction."""
    chance = random.Random(1)
    schema.setup(path)
    connection = connect(path, mode="rw")
    connection.execute("BEGIN")
    created = 0
    for number in range(events):
        window = max(0, (sessions - live) * number // events)
        if created < min(window + live, sessions):
            session, created = created, created + 1
            kind, data = "session_created", {"project": "bench"}
        else:
            session = window + chance.randrange(live)
            kind = "session_append"
            data = {"messages": [{"role": "assistant", "content": "x" * 300, "timestamp": T0}]}
        event = {"type": kind, "sessionId": f"S-{session}", "data": data, "timestamp": T0 + number}
        connection.execute(
            "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)",
            (f"e{number}", f"session:S-{session}", msgspec.msgpack.encode(event), T0 + number),
        )
    connection.execute("COMMIT")
    connection.close()


def main() -> None:
    numbers = [int(argument) for argument in sys.argv[1:]]
    events, sessions, live = numbers + [200_000, 10_000, 200][len(numbers) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.db"
        fill(path, events, sessions, live)
        started = time.perf_counter()
        command = [sys.executable, "-P", "-m", "worker", "run", "--once", "-d", str(path)]
        subprocess.run([*command, "--log-level", "error"], check=True)
        took = time.perf_counter() - started
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{events} events, {sessions} sessions, {live} live: {events / took:,.0f} events/s")
    print(f"{took:.2f} s, peak {peak_mib:.0f} MiB")


if __name__ == "__main__":
    main()
