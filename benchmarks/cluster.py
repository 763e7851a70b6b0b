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
from collections.abc import Sequence
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


class Cluster:
    """The daemons, by process id, and what happened to them."""

    def __init__(self, place: ServerPlace, folder: Path) -> None:
        self.place = place
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.takeovers_s: list[float] = []
        self._log = folder / "nodes.log"

    def fill_up(self) -> None:
        """Start nodes until there are as many as there should be."""
        while len(self.nodes) < NODES:
            with self._log.open("ab") as said:
                command = [*PROJECTOR, "run", "-d", self.place.name, "--log-level", "warning"]
                node = subprocess.Popen(command, stderr=said)
            self.nodes[node.pid] = node

    def kill_leader(self) -> None:
        """Kill one that leads, and wait until others have taken over."""
        leaders = self._wait_for_leader(set())
        began = time.monotonic()
        killed = min(leaders & self.nodes.keys())
        node = self.nodes.pop(killed)
        node.kill()
        node.wait()
        self._wait_for_leader({killed})
        self.takeovers_s.append(time.monotonic() - began)
        self.fill_up()

    def _wait_for_leader(self, gone: set[int]) -> set[int]:
        """Wait until somebody leads who is not gone, and nobody who is."""
        deadline = time.monotonic() + RECOVERY_S
        while not (leaders := self.place.leading()) or leaders & gone:
            self.check()
            if time.monotonic() > deadline:
                raise Difference(f"nobody leads: {self.said}")
            time.sleep(POLL_S)
        return leaders

    def check(self) -> None:
        """Check that no node ended by itself."""
        for node in self.nodes.values():
            if node.poll() is not None:
                raise Difference(f"a node ended with {node.returncode}: {self.said}")

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

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
            node.send_signal(signal.SIGTERM)
        ended = [node.wait(60) for node in self.nodes.values()]
        if any(ended):
            raise Difference(f"the nodes ended with {ended}: {self.said}")


# The trial.


def run(server: Server, folder: Path, *, events: int, kills: int, seed: int) -> None:
    with server.database(template=server.template) as url, ExitStack() as stack:
        place = ServerPlace(url)
        cluster = Cluster(place, folder)
        stack.callback(lambda: [node.kill() for node in cluster.nodes.values()])
        cluster.fill_up()
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
            f" s (median), {takeovers[-1]:.2f} s (longest); {RESTARTS} restarts of the server"
        )
        print("verify: 0 differ; views, index, quarantine and checkpoints are those of SQLite")


def _disturb(
    server: Server,
    cluster: Cluster,
    writers: Sequence[subprocess.Popen[bytes]],
    events: int,
    kills: int,
) -> None:
    """Kill leaders, and the server twice, evenly spread over the log."""
    what = [*["leader"] * kills]
    for number in range(RESTARTS):
        what.insert((number + 1) * len(what) // (RESTARTS + 1), "server")
    for number, killed in enumerate(what, 1):
        while cluster.place.sql("SELECT coalesce(max(seq), 0) FROM event_log") < [
            (events * number // (len(what) + 1),)
        ]:
            if any(writer.poll() for writer in writers):
                raise Difference("a writer failed")
            cluster.check()
            time.sleep(POLL_S)
        if killed == "leader":
            cluster.kill_leader()
        else:
            server.stop("SIGQUIT")
            server.start()


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
    projector("run", "--once", "-d", path)
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
    parser.add_argument("--kills", type=int, default=20)
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
