"""SIGKILL real `projector` processes: python benchmarks/kills.py [--kills N] [--seed N].

Two processes write all the time. What a process was doing when it died is read from outside (see
`phases`). After every few kills, and at the end, everything that `run --once` leaves is compared
with a second, naive fold of the log (`tests/support/oracle.py`). The exit code is 1 if anything
differs.
"""

import argparse
import mmap
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import fuzz_decoder
import msgpack
from fuzz_decoder import Chance
from phases import PHASES

HERE: Final = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from support import INSERT, T0, Database, oracle, projector  # noqa: E402

KILLS_PER_CHECK: Final = 10
KILLS_PER_DATABASE: Final = 30
AIM_S: Final = 3.0
"""How long to wait for a phase before the process is killed in whatever phase it is."""
POLL_S: Final = 0.00005
SESSIONS: Final = 200
OLD_EVENTS: Final = 10_000
"""The number of events in the database that is adopted."""
WALKED_EVENTS: Final = 2500
"""The minimum number of events in the log that gets a full scan."""
TAILING: Final = ("read", "fold", "commit", "other")


class Difference(Exception):
    """The processes left something that does not match the log, or one of them failed by itself."""


class Child:
    """An instrumented `projector`, whose phase can be read from its board, dead or alive."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        descriptor, board = tempfile.mkstemp(dir=folder, prefix="board-")
        os.write(descriptor, b"\0")
        self._map = mmap.mmap(descriptor, 1)
        os.close(descriptor)
        self._said = Path(board + "-stderr")
        with self._said.open("wb") as said:
            command = [sys.executable, str(HERE / "phases.py"), board, *map(str, arguments)]
            self.process = subprocess.Popen(command, stdout=said, stderr=said)

    @property
    def phase(self) -> str:
        return PHASES[self._map[0]]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def kill(self) -> str:
        """Kill the process; returns what it was doing, or '' if it had already ended."""
        self.process.kill()
        return self.phase if self.process.wait() == -signal.SIGKILL else ""


class Campaign:
    """The state that all scenarios share: random choices, the folder, and the kills by phase."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = Chance(seed)
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._databases = 0

    def path(self) -> Path:
        self._databases += 1
        return self.folder / f"kills-{self._databases}.db"

    def target(self, phases: Sequence[str]) -> str:
        """Return the phase with the fewest kills so far."""
        return min(phases, key=lambda phase: self.counts[phase])

    def kill_one(self, children: Sequence[Child], target: str) -> Child:
        """Kill one of the children in the target phase, or at any moment for 'other'."""
        if target == "other":
            time.sleep(self.chance.random() * 1.2)
            found = self.chance.of(children)
        else:
            found = self.aim(children, target)
        if found.ended or not (phase := found.kill()):
            raise Difference(f"a process ended by itself, {found.process.returncode}: {found.said}")
        self.counts[phase] += 1
        return found

    def aim(self, children: Sequence[Child], target: str) -> Child:
        """Wait for the first child in the phase, often a bit longer, to hit all parts of it."""
        deadline = time.monotonic() + AIM_S
        skip = self.chance.below(4)
        while time.monotonic() < deadline and not any(child.ended for child in children):
            time.sleep(POLL_S)
            for child in children:
                if child.phase != target:
                    continue
                if not skip:
                    time.sleep(self.chance.random() * 0.001 if self.chance.one_in(2) else 0)
                    return child
                skip -= 1  # do not only hit the first ones after a start
                time.sleep(0.003)
        return self.chance.of(children)


# The writers.


def write(path: str, name: str, seed: str) -> None:
    """Insert events until killed: a few at a time, sometimes many; most of them fold."""
    chance = Chance(int(seed))
    parent = os.getppid()
    number = 0
    while os.getppid() == parent:
        many = 300 if chance.one_in(100) else 1 + chance.below(4)
        rows = [written(chance, f"{name}-{number + more}") for more in range(many)]
        while not inserted(path, rows):
            time.sleep(0.01)
        number += many
        time.sleep(chance.random() * 0.02)


def written(chance: Chance, row_id: str) -> tuple[Any, ...]:
    """Make a row that any layout of the log accepts."""
    session = f"S-{chance.below(SESSIONS)}"
    made = fuzz_decoder.event(chance, session)
    data: Any = fuzz_decoder.as_messagepack(made)
    if chance.one_in(3):
        data = fuzz_decoder.as_json(made, chance).encode(errors="replace").decode()
    elif chance.one_in(10):
        data = fuzz_decoder.mutated(chance, made)
        data = data if isinstance(data, bytes) else data.encode(errors="replace").decode()
    key = chance.of((session, f"session:{session}", session, "" if chance.one_in(9) else session))
    return (row_id, key, data, T0 + chance.below(1000))


def inserted(path: str | Path, rows: Sequence[tuple[Any, ...]]) -> bool:
    """Insert the rows in one transaction; returns False if the database is busy."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        try:
            with connection:
                connection.executemany(INSERT, rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_SCHEMA):
                raise
            return False
    return True


@contextmanager
def writers(path: Path, chance: Chance) -> Iterator[None]:
    """Run two writers, which do not outlive the block and must not end during it."""
    program = [sys.executable, str(HERE / "kills.py"), "--write", str(path)]
    running = [
        subprocess.Popen([*program, name, str(chance.below(2**31))]) for name in ("left", "right")
    ]
    try:
        yield
        if any(writer.poll() is not None for writer in running):
            raise Difference("a writer failed")
    finally:
        for writer in running:
            writer.kill()
            writer.wait()


# The checks.


def check(path: Path, old: Sequence[tuple[Any, ...]] = ()) -> None:
    """Run `run --once` and check views, index, quarantine and skipped count; raises."""
    for event in projector("run", "--once", "-d", path, "--log-level", "error").stderr.splitlines():
        raise Difference(f"run --once said: {event}")
    database = Database(path)
    found = {"sessions": database.views(), "session_index": database.index()}
    log = database.log()
    check_log(log, old)
    for name, rows in found.items():
        check_projection(database, name, rows, log)


def check_projection(
    database: Database, name: str, rows: dict[Any, Any], log: Sequence[tuple[Any, ...]]
) -> None:
    """Check up to the projection's own position: a full scan may be ahead of the other one."""
    ((position, skipped),) = database.sql(
        "SELECT position, skipped FROM checkpoint WHERE name = ?", name
    )
    log = [row for row in log if row[0] <= position]
    folded = oracle.fold(log)
    compare(name, rows, folded.views if name == "sessions" else oracle.index(log))
    compare(f"what {name} skipped", {name: skipped}, {name: folded.skipped})
    quarantine = database.sql("SELECT seq, '' FROM quarantine WHERE projection = ?", name)
    compare(f"the quarantine of {name}", dict(quarantine), dict.fromkeys(folded.quarantine, ""))


def check_log(log: Sequence[tuple[Any, ...]], old: Sequence[tuple[Any, ...]]) -> None:
    """Check that the old events come first, unchanged, then all of each writer's, in order."""
    if [tuple(row[1:]) for row in log[: len(old)]] != list(old):
        raise Difference("the log does not begin with the events that it had before")
    for name in ("left", "right"):
        ids = [row[1] for row in log if row[1].startswith(f"{name}-")]
        if ids != [f"{name}-{number}" for number in range(len(ids))]:
            raise Difference(f"events of the writer {name} are missing or out of order")


def check_backup(path: Path, old: Sequence[tuple[Any, ...]]) -> None:
    """Check that a copy from before the migration exists, even if that was killed at its end."""
    copies = [*path.parent.glob(f"{path.name}.before-projector-*")]
    for copy in copies or path.parent.glob(f"{path.name}.copying-*"):
        with closing(sqlite3.connect(copy)) as connection, suppress(sqlite3.Error):
            rows = connection.execute("SELECT id, key, data, created_at FROM event_log").fetchall()
            if rows[: len(old)] == list(old):
                return
    raise Difference("no whole copy of the database from before the migration is there")


def compare(what: str, found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    differing = [key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
    if differing:
        key = min(differing, key=str)
        raise Difference(
            f"{what} differs in {len(differing)} of {len(wanted)}; {key!r} is"
            f" {found.get(key)!r:.500}, not {wanted.get(key)!r:.500}"
        )


# The scenarios: each one kills as often as it is told, and checks.


def one_daemon(campaign: Campaign, kills: int) -> None:
    """Kill a single daemon, and start it again."""
    path = fresh(campaign)
    with writers(path, campaign.chance):
        for number in range(1, kills + 1):
            daemon = Child(campaign.folder, *RUN, path)
            campaign.kill_one([daemon], campaign.target(TAILING))
            if number % KILLS_PER_CHECK == 0:
                check(path)
    check(path)


def standing_by(campaign: Campaign, kills: int) -> None:
    """Kill two daemons, one of which stands by and takes over."""
    two_daemons(campaign, kills, unlocked=False)


def unlocked(campaign: Campaign, kills: int) -> None:
    """Kill two daemons that both work, because the lock file is removed."""
    two_daemons(campaign, kills, unlocked=True)


def two_daemons(campaign: Campaign, kills: int, *, unlocked: bool) -> None:
    path = fresh(campaign)
    lock = path.with_name(path.name + "-projector.lock")
    done = 0
    with writers(path, campaign.chance):
        while done < kills:
            with ExitStack() as alive:
                running: list[Child] = []
                for _ in range(min(KILLS_PER_CHECK, kills - done)):
                    while len(running) < 2:
                        if unlocked:
                            lock.unlink(missing_ok=True)
                        running.append(started(alive, campaign, path))
                    running.remove(campaign.kill_one(running, campaign.target(TAILING)))
                    done += 1
            check(path)


def started(alive: ExitStack, campaign: Campaign, path: Path) -> Child:
    """Start a daemon and wait for it, so that a second one does not overtake it."""
    daemon = Child(campaign.folder, *RUN, path)
    alive.callback(daemon.kill)
    lock = path.with_name(path.name + "-projector.lock")
    deadline = time.monotonic() + AIM_S
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return daemon


def walk(campaign: Campaign, kills: int) -> None:
    """Kill a daemon in the full scan that it starts with, because no checkpoint made the rows."""
    path = fresh(campaign)
    with writers(path, campaign.chance):
        inserted(path, [written(campaign.chance, f"first-{n}") for n in range(WALKED_EVENTS)])
        check(path)
        for number in range(1, kills + 1):
            if campaign.chance.one_in(3) or Database(path).position():
                damage(path)
            daemon = Child(campaign.folder, *RUN, path)
            campaign.aim([daemon], "walk")
            time.sleep(campaign.chance.random() * 0.2)
            campaign.kill_one([daemon], "walk")
            if number % KILLS_PER_CHECK == 0:
                check(path)
    check(path)


def replay(campaign: Campaign, kills: int) -> None:
    """Kill `projector replay` of damaged rows while a daemon keeps tailing."""
    path = fresh(campaign)
    with writers(path, campaign.chance):
        inserted(path, [written(campaign.chance, f"first-{n}") for n in range(WALKED_EVENTS)])
        check(path)
        done = 0
        while done < kills:
            with ExitStack() as alive:
                started(alive, campaign, path)
                for _ in range(min(KILLS_PER_CHECK, kills - done)):
                    damage(path, adopted=False)
                    replaying = Child(campaign.folder, "replay", "-d", path)
                    campaign.aim([replaying], "replay")
                    time.sleep(campaign.chance.random() * 0.2)
                    if phase := replaying.kill():
                        campaign.counts[phase] += 1
                    done += 1
                projector("replay", "-d", path)
                projector("verify", "-d", path)
            check(path)


def damage(path: Path, *, adopted: bool = True) -> None:
    """Write rows as another program would, some of them damaged; if asked, as after an adoption."""
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        if adopted:
            connection.execute("UPDATE checkpoint SET position = 0, digest = '', skipped = 0")
        connection.execute("UPDATE view SET data = x'80' WHERE rowid % 3 = 0")
        connection.execute("DELETE FROM view WHERE rowid % 5 = 0")
        connection.execute("DELETE FROM session_index WHERE last_seq % 3 = 0")
        connection.execute("UPDATE session_index SET title = 'other' WHERE last_seq % 5 = 0")
        connection.execute(
            "INSERT OR IGNORE INTO view VALUES ('gone', 'session:gone', x'80', 'x', 1, 1)"
        )


def migration(campaign: Campaign, kills: int) -> None:
    """Kill the adoption of a Kanbatte database."""
    template = campaign.path()
    old = kanbatte(template, campaign.chance)
    done = 0
    while done < kills:
        path = campaign.path()
        shutil.copy(template, path)
        with writers(path, campaign.chance):
            done += killed_setups(campaign, path, min(2, kills - done))
            while projector("db", "setup", "-d", path, check=None).returncode == 3:
                time.sleep(0.1)
            projector("db", "setup", "-d", path)
            check_log(Database(path).log(), old)
        check_backup(path, old)
        if done % 6 == 0 or done >= kills:
            check(path, old)
        for file in path.parent.glob(path.name + "*"):
            file.unlink()


def killed_setups(campaign: Campaign, path: Path, kills: int) -> int:
    """Set up and kill until `kills` is reached or a set-up ends; returns the number of kills."""
    for number in range(kills):
        child = Child(campaign.folder, "db", "setup", "-d", path)
        target = campaign.target(("migration", "setup"))
        while child.phase != target and not child.ended:
            time.sleep(POLL_S)
        time.sleep(campaign.chance.random() * SETUP_S[target])
        phase = child.kill()
        if not phase:
            return number
        campaign.counts[phase] += 1
    return kills


def kanbatte(path: Path, chance: Chance) -> list[tuple[Any, ...]]:
    """Make a log in Kanbatte's layout and a few rows in `view`; returns its events."""
    rows = []
    for number in range(OLD_EVENTS):
        session = f"S-{number % SESSIONS}"
        data = (
            {"project": "K"} if number < SESSIONS else {"messages": [fuzz_decoder.message(chance)]}
        )
        kind = "session_created" if number < SESSIONS else "session_append_messages"
        event = fuzz_decoder.as_messagepack({"type": kind, "data": data})
        rows.append((f"{chance.random()}-{number}", session, event, T0 + number))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(
            "CREATE TABLE event_log (id TEXT PRIMARY KEY, key TEXT NOT NULL, data BLOB NOT NULL,"
            " created_at INTEGER NOT NULL); CREATE TABLE view (id TEXT PRIMARY KEY, key TEXT NOT"
            " NULL, data BLOB NOT NULL, last_offset_id TEXT NOT NULL, created_at INTEGER NOT NULL,"
            " updated_at INTEGER NOT NULL)"
        )
        connection.executemany(INSERT, rows)
        doubled = [
            (f"v{n}", f"session:S-{n // 2}", msgpack.packb({}), "x", n, n) for n in range(50)
        ]
        connection.executemany("INSERT INTO view VALUES (?, ?, ?, ?, ?, ?)", doubled)
    return rows


def fresh(campaign: Campaign) -> Path:
    path = campaign.path()
    projector("db", "setup", "-d", path)
    return path


SETUP_S: Final = {"migration": 0.02, "setup": 0.06}
"""About how long the set-up of this log takes from the start of a phase on."""
RUN: Final = ("run", "--log-level", "error", "-d")
SCENARIOS: Final[tuple[tuple[int, Callable[[Campaign, int], None]], ...]] = (
    (25, one_daemon),
    (20, standing_by),
    (15, unlocked),
    (15, walk),
    (15, replay),
    (10, migration),
)
"""Each scenario with its share of the kills in percent; add a new command here."""


def run(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill `kills` times; returns how many kills fell into each phase, or raises `Difference`."""
    campaign = Campaign(seed, folder)
    for share, scenario in SCENARIOS:
        left = max(1, round(kills * share / 100))
        while left:
            now = min(left, KILLS_PER_DATABASE)
            scenario(campaign, now)
            left -= now
            print(f"{scenario.__name__}: {dict(campaign.counts)}", file=sys.stderr)
    return {phase: campaign.counts[phase] for phase in PHASES}


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = run(options.kills, options.seed, Path(folder))
        except Difference as difference:
            sys.exit(f"DIFFERENT: {difference}")
    for phase, count in counts.items():
        print(f"{count:>6} {phase}")
    took = time.perf_counter() - started_at
    print(f"{sum(counts.values())} kills, {took:.0f} s; every check found what the log says")


if __name__ == "__main__":
    main()
