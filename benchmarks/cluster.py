"""Three daemons on a PostgreSQL server that is killed: python benchmarks/cluster.py [--events N].

Eight writers write the log, with rollbacks, savepoints, retries and pauses before COMMIT, so that
positions become visible out of order and some never do. Meanwhile whoever leads gets SIGKILL again
and again, and the server is killed twice. Then the log is copied to SQLite row by row, and what is
folded there must be equal: views, index, quarantine and checkpoints. The exit code is 1 if not.
"""

import argparse
import logging
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
from fuzz_decoder import Chance
from kills import Difference, check_log, compare, written
from measure import PROJECTOR
from places import Place, ServerPlace, insert
from support import projector
from support.postgres import Server

from session_projector.worker.errors import TransientError

WRITERS: Final = 8
NODES: Final = 3
RESTARTS: Final = 2
SESSIONS: Final = 2000
RECOVERY_S: Final = 300.0
POLL_S: Final = 0.005
PARTS: Final = ("view", "session_index", "quarantine", "checkpoint")
"""What `support.Database.everything` lists."""


class Written(msgspec.Struct):
    """How often a writer did what."""

    rolled_back: int = 0
    savepoints: int = 0
    retries: int = 0
    lost: int = 0


# The writers.


def write(url: str, name: str, seed: str, events: str) -> None:
    """Write so many events, each of them once, whatever happens to the server."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # that connections are lost is expected
    chance, number, done = Chance(int(seed)), 0, Written()
    rows: list[tuple[Any, ...]] = []
    while number < int(events):
        try:
            with psycopg.connect(url) as connection:
                while number < int(events):
                    many = min(1 + chance.below(30), int(events) - number)
                    rows = rows or [
                        written(chance, f"{name}-{number + n}", SESSIONS) for n in range(many)
                    ]
                    _transaction(connection, chance, rows, done)
                    number, rows = number + len(rows), []
        except psycopg.OperationalError:  # the same rows again, some of which may be there
            done.lost += 1
            time.sleep(0.05)
    sys.stdout.buffer.write(msgspec.json.encode(done))


def _transaction(
    connection: psycopg.Connection[Any],
    chance: Chance,
    rows: Sequence[Sequence[Any]],
    done: Written,
) -> None:
    """Commit the rows, perhaps not at the first attempt."""
    if chance.one_in(8):
        _insert_all(connection, rows)
        _pause(chance)
        connection.rollback()
        done.rolled_back += 1
    if chance.one_in(8):
        connection.execute("SAVEPOINT perhaps")
        _insert_all(connection, rows)
        connection.execute("ROLLBACK TO perhaps")
        done.savepoints += 1
    _insert_all(connection, rows)
    _pause(chance)
    connection.commit()
    if chance.one_in(20):
        _insert_all(connection, rows)
        connection.commit()
        done.retries += 1


def _insert_all(connection: psycopg.Connection[Any], rows: Sequence[Sequence[Any]]) -> None:
    with connection.pipeline():
        for row in rows:
            insert(connection, row)


def _pause(chance: Chance) -> None:
    """Mostly none, sometimes 20 ms, seldom longer than others wait for."""
    if chance.one_in(4):
        time.sleep(chance.random() * (1.5 if chance.one_in(300) else 0.02))


# The nodes.


class Node:
    """A daemon, and what it says."""

    def __init__(self, name: str, said: Path) -> None:
        self._said = said
        with said.open("wb") as stderr:
            command = [*PROJECTOR, "run", "-d", name]
            self.process = subprocess.Popen(command, stderr=stderr)

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")[-2000:]

    @property
    def ready(self) -> bool:
        """Whether it leads or stands by."""
        said = self._said.read_text(errors="replace")
        return '"started"' in said or '"standing_by"' in said

    @property
    def could_not_start(self) -> bool:
        """Whether it ended because there was no server when it began; systemd starts it again."""
        return self.process.returncode == TransientError.exit_code and '"event"' not in self.said

    def check(self) -> None:
        """Check that it did not end by itself."""
        if self.process.poll() is not None and not self.could_not_start:
            raise Difference(f"a node ended with {self.process.returncode}: {self.said}")


class Cluster:
    """The daemons, by process id, and what happened to them."""

    def __init__(self, place: ServerPlace, folder: Path) -> None:
        self.place = place
        self.nodes: dict[int, Node] = {}
        self.started = 0
        self.takeovers_s: list[float] = []
        self._folder = folder

    def check(self) -> None:
        """Start nodes until there are as many as there should be; none may have ended by itself."""
        for pid, node in [*self.nodes.items()]:
            node.check()
            if node.could_not_start:
                del self.nodes[pid]
        while len(self.nodes) < NODES:
            self.started += 1
            node = Node(self.place.name, self._folder / f"node-{self.started}.log")
            self.nodes[node.process.pid] = node

    def is_ready(self) -> bool:
        """Whether there are as many nodes as there should be, each of which leads or stands by."""
        self.check()
        return all(node.ready for node in self.nodes.values())

    def may_be_killed(self) -> int:
        """One that leads while the others are ready to, 0 where there is none."""
        if not self.is_ready():
            return 0
        return min(self.place.leading() & self.nodes.keys(), default=0)

    def kill(self, pid: int) -> None:
        """Kill one that leads, and wait until another one does."""
        node = self.nodes.pop(pid).process
        began = time.monotonic()
        node.kill()
        node.wait()
        self.wait(lambda: bool(self.place.leading() - {pid}))
        self.takeovers_s.append(time.monotonic() - began)

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + RECOVERY_S
        while not until():
            self.check()
            if time.monotonic() > deadline:
                raise Difference(f"nobody leads: {self.said}")
            time.sleep(POLL_S)

    @property
    def said(self) -> list[str]:
        return [node.said for node in self.nodes.values()]

    def wait_until(self, position: int) -> None:
        """Wait until all projections have come so far."""
        deadline = time.monotonic() + RECOVERY_S
        while self.place.sql("SELECT coalesce(min(position), 0) FROM checkpoint") < [(position,)]:
            self.check()
            if time.monotonic() > deadline:
                raise Difference(f"{position} is not reached: {self.said}")
            time.sleep(0.05)

    def stop(self) -> None:
        for node in self.nodes.values():
            node.process.send_signal(signal.SIGTERM)
        ended = [node.process.wait(60) for node in self.nodes.values()]
        if any(ended):
            raise Difference(f"the nodes ended with {ended}: {self.said}")


# The trial.


def run(server: Server, folder: Path, *, events: int, kills: int, seed: int) -> None:
    with server.database(template=server.template) as url, ExitStack() as stack:
        place = ServerPlace(url)
        cluster = Cluster(place, folder)
        stack.callback(lambda: [node.process.kill() for node in cluster.nodes.values()])
        cluster.wait(cluster.is_ready)
        began = time.monotonic()
        each = events // WRITERS
        writers = [
            subprocess.Popen(
                [sys.executable, __file__, "--write", url, f"w{n}", str(seed + n), str(each)],
                stdout=subprocess.PIPE,
            )
            for n in range(WRITERS)
        ]
        stack.callback(lambda: [writer.kill() for writer in writers])
        _disturb(server, cluster, writers, events, kills)
        done = [_ended(writer) for writer in writers]
        written_s = time.monotonic() - began
        ((newest,),) = place.sql("SELECT max(seq) FROM event_log")
        cluster.wait_until(newest)
        folded_s = time.monotonic() - began
        cluster.stop()
        projector("verify", "-d", url)
        log = place.log()
        check_log(log, names=[f"w{n}" for n in range(WRITERS)], each=each)
        compare_with_sqlite(place, folder / "local.db", log)
        takeovers = sorted(cluster.takeovers_s)
        of = {name: sum(getattr(one, name) for one in done) for name in Written.__struct_fields__}
        print(
            f"{len(log):,} events at positions up to {newest:,} in {written_s:.0f} s, folded after"
            f" {folded_s:.0f} s; {of['rolled_back']:,} transactions and {of['savepoints']:,}"
            f" savepoints rolled back, {of['retries']:,} retries, {of['lost']} lost connections"
        )
        print(
            f"{len(takeovers)} leaders killed, another led after {statistics.median(takeovers):.2f}"
            f" s (median), {takeovers[-1]:.2f} s (longest); {RESTARTS} restarts of the server;"
            f" {cluster.started} daemons were started"
        )
        print("verify: 0 differ; views, index, quarantine and checkpoints are those of SQLite")


def _disturb(
    server: Server,
    cluster: Cluster,
    writers: Sequence[subprocess.Popen[bytes]],
    events: int,
    kills: int,
) -> None:
    """Kill the server twice, and leaders in between, for as long as there are writers."""
    restarts = [events * (number + 1) // (RESTARTS + 1) for number in range(RESTARTS)]
    leaders = [events * (number + 1) // (kills + 1) for number in range(kills)]
    while any(writer.poll() is None for writer in writers):
        if any(writer.poll() for writer in writers):
            raise Difference("a writer failed")
        ((newest,),) = cluster.place.sql("SELECT coalesce(max(seq), 0) FROM event_log")
        if restarts and newest >= restarts[0]:
            restarts.pop(0)
            server.stop("SIGQUIT")
            server.start()
        elif leaders and newest >= leaders[0] and (pid := cluster.may_be_killed()):
            leaders.pop(0)
            cluster.kill(pid)
        time.sleep(POLL_S)
    if restarts or not cluster.takeovers_s:
        raise Difference("the writers were too quick to be disturbed; write more events")


def _ended(writer: subprocess.Popen[bytes]) -> Written:
    said, _ = writer.communicate()
    if writer.returncode:
        raise Difference("a writer failed")
    return msgspec.json.decode(said, type=Written)


def compare_with_sqlite(place: Place, path: Path, log: Sequence[tuple[Any, ...]]) -> None:
    """Fold the same log, at the same positions, in SQLite, and compare all that both leave."""
    projector("db", "setup", "-d", path)
    local = Place(path)
    local.insert_at(log)
    projector("run", "--once", "-d", path, check=None)  # 1: most of it goes to quarantine
    if local.log() != log:
        raise Difference("the log was not copied")
    for name, found, wanted in zip(PARTS, place.everything(), local.everything(), strict=True):
        compare(name, *({row[:2]: row for row in rows} for rows in (found, wanted)))


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20, help="of leaders, at most")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, closing(Server()) as server:
        try:
            run(
                server, Path(folder), events=asked.events, kills=asked.kills, seed=asked.seed * 1000
            )
        except Difference as difference:
            sys.exit(f"DIFFERENT: {difference}")


if __name__ == "__main__":
    main()
