"""A day of a database in minutes: python benchmarks/mixed.py [--seconds N] [--seed N].

Two writers insert all the time. Meanwhile the daemon is killed, stopped and started, the database
is vacuumed, replayed and verified, its journal mode is switched, and its `-wal` and `-shm` are
removed under the daemon. At the end every event that a writer was told is stored must be in the
log, and all that `run --once` leaves must equal a second, naive fold of it. The exit code is 1 if
anything differs.
"""

import argparse
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Final

from fuzz_decoder import Chance
from kills import Difference, check, written
from places import Place
from support import PROJECTOR, projector

COPIED_BACK_S: Final = 2.0
"""After which what was committed is in the database file, whatever happens to the files beside."""


class Day:
    """The database, its daemon, and the writers, which `gate` lets pass."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.chance = Chance(seed)
        self.gate = threading.Lock()
        self.over = threading.Event()
        self.stored: list[str] = []
        self.done: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        with self.path.with_suffix(".log").open("ab") as said:
            command = [*PROJECTOR, "run", "-d", str(self.path), "--log-level", "warning"]
            self.daemon = subprocess.Popen(command, stderr=said)

    def end(self, number: int) -> None:
        """End the daemon by a signal: with exit code 0, or by it where that was while it starts."""
        self.daemon.send_signal(number)
        if (code := self.daemon.wait(timeout=60)) not in (0, -number):
            raise Difference(f"after signal {number} the daemon ended with {code}")

    def write(self, name: str, seed: int) -> None:
        chance, number = Chance(seed), 0
        while not self.over.is_set():
            rows = [written(chance, f"{name}-{number + more}") for more in range(chance.below(5))]
            with self.gate:
                done = Place(self.path).insert_all(rows)
            if done:
                number += len(rows)
                self.stored += [row[0] for row in rows]
            time.sleep(chance.random() * 0.02)

    # What happens

    def kill(self) -> None:
        self.end(signal.SIGKILL)
        self.start()

    def stop(self) -> None:
        self.end(signal.SIGTERM)
        self.start()

    def vacuum(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=60)) as connection:
            connection.execute("VACUUM")

    def switch_journal(self) -> None:
        """To a rollback journal while no daemon is there, and back by the next one."""
        self.end(signal.SIGTERM)
        with self.gate, closing(sqlite3.connect(self.path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        time.sleep(0.3)
        self.start()

    def replay(self) -> None:
        projector("replay", "-d", self.path)

    def verify(self) -> None:
        projector("verify", "-d", self.path)

    def remove_sidecars(self) -> None:
        """Exit 3 within a second, and nothing is lost that was there, or is written afterwards."""
        with self.gate:
            time.sleep(COPIED_BACK_S)
            for end in ("-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        if (code := self.daemon.wait(timeout=10)) != 3:
            raise Difference(f"without its files the daemon ended with {code}")
        self.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.db"
        projector("db", "setup", "-d", path)
        day = Day(path, asked.seed)
        writers = [
            threading.Thread(target=day.write, args=(name, number))
            for number, name in enumerate(("left", "right"))
        ]
        for writer in writers:
            writer.start()
        until = time.monotonic() + asked.seconds
        what = (day.kill, day.stop, day.vacuum, day.switch_journal, day.replay, day.verify)
        try:
            while time.monotonic() < until:
                time.sleep(0.5 + day.chance.random())
                happens = day.chance.of((*what, day.remove_sidecars))
                happens()
                day.done[happens.__name__] += 1
        finally:
            day.over.set()
            for writer in writers:
                writer.join()
            day.daemon.kill()
            day.daemon.wait()
        check(Place(path))
        lost = set(day.stored) - {row[1] for row in Place(path).log()}
        if lost:
            raise Difference(f"{len(lost)} events are lost")
        projector("verify", "-d", path)
        print(f"{len(day.stored):,} events, none lost; views, index and quarantine exact")
        print(", ".join(f"{name} {count}" for name, count in sorted(day.done.items())))


if __name__ == "__main__":
    try:
        main()
    except (Difference, AssertionError) as error:
        sys.exit(f"wrong: {error}")
