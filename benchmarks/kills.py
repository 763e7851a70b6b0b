"""SIGKILL real `projector` processes: python benchmarks/kills.py [--kills N] [--seed N].

`--engine postgres` does it on a PostgreSQL server, which is killed too. Two processes write all the
time. What a process was doing when it died is read from outside (see `phases`). After every few
kills, and at the end, everything that `run --once` leaves is compared with a second, naive fold of
the log (`tests/support/oracle.py`). The exit code is 1 if anything differs.
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
from places import Place, ServerPlace, place_of
from support import INSERT, T0, oracle, projector

HERE: Final = Path(__file__).parent
KILLS_PER_CHECK: Final = 10
KILLS_PER_DATABASE: Final = 30
AIM_S: Final = 10.0
"""How long to wait for a phase before the process is killed in whatever phase it is."""
RECOVERY_S: Final = 60.0
"""How long an event may take to be folded after the server was killed."""
POLL_S: Final = 0.00005
PAUSE_S: Final = 0.02
"""How long a writer waits after a transaction, at most."""
ASK_S: Final = 0.05
"""How long to wait before the database is asked again: on a server that is a connection."""
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
    """The state that all scenarios share: random choices, the folder, and the kills by phase; and
    the server, if there is one."""

    def __init__(self, seed: int, folder: Path, server: Any = None) -> None:
        self.chance = Chance(seed)
        self.folder = folder
        self.server = server
        self.counts: Counter[str] = Counter()
        self._databases = 0

    def path(self) -> Path:
        self._databases += 1
        return self.folder / f"kills-{self._databases}.db"

    def place(self) -> Place:
        """A place for a database, nothing in it as yet."""
        if self.server is None:
            return Place(self.path())
        self._databases += 1
        self.server.sql(f"CREATE DATABASE kills_{self._databases}")
        return ServerPlace(self.server.url(f"kills_{self._databases}"))

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


def write(database: str, name: str, seed: str, pause_s: str) -> None:
    """Insert events until killed: a few at a time, sometimes many; most of them fold."""
    chance, place, pause = Chance(int(seed)), place_of(database), float(pause_s)
    parent = os.getppid()
    number = 0
    while os.getppid() == parent:
        many = 300 if chance.one_in(100) else 1 + chance.below(4)
        rows = [written(chance, f"{name}-{number + more}") for more in range(many)]
        while not place.insert_all(rows):
            time.sleep(0.01)
        number += many
        time.sleep(chance.random() * pause)


def written(chance: Chance, row_id: str, sessions: int = SESSIONS) -> tuple[Any, ...]:
    """Make a row that any layout of the log accepts."""
    session = f"S-{chance.below(sessions)}"
    made = fuzz_decoder.event(chance, session)
    data: Any = fuzz_decoder.as_messagepack(made)
    if chance.one_in(3):
        data = fuzz_decoder.as_json(made, chance).encode(errors="replace").decode()
    elif chance.one_in(10):
        data = fuzz_decoder.mutated(chance, made)
        data = data if isinstance(data, bytes) else data.encode(errors="replace").decode()
    key = chance.of((session, f"session:{session}", session, "" if chance.one_in(9) else session))
    return (row_id, key, data, T0 + chance.below(1000))


@contextmanager
def writers(place: Place, chance: Chance) -> Iterator[None]:
    """Run two writers, which do not outlive the block and must not end during it."""
    program = [sys.executable, str(HERE / "kills.py"), "--write", place.name]
    running = [
        subprocess.Popen([*program, name, str(chance.below(2**31)), str(PAUSE_S)])
        for name in ("left", "right")
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


def check(place: Place, old: Sequence[tuple[Any, ...]] = ()) -> None:
    """Run `run --once` and check views, index, quarantine and skipped count; raises."""
    once = projector("run", "--once", "-d", place.name, "--log-level", "error", check=None)
    if once.returncode not in (0, 1):  # 1: of what was left, most went to quarantine
        raise Difference(f"run --once said: {once.stderr}")
    found = {"sessions": place.views(), "session_index": place.index()}
    log = place.log()
    check_log(log, old)
    for name, rows in found.items():
        check_projection(place, name, rows, log)


def check_projection(
    place: Place, name: str, rows: dict[Any, Any], log: Sequence[tuple[Any, ...]]
) -> None:
    """Check up to the projection's own position: a full scan may be ahead of the other one."""
    ((position, skipped),) = place.sql(
        "SELECT position, skipped FROM checkpoint WHERE name = ?", name
    )
    log = [row for row in log if row[0] <= position]
    folded = oracle.fold(log)
    compare(name, rows, folded.views if name == "sessions" else oracle.index(log))
    compare(f"what {name} skipped", {name: skipped}, {name: folded.skipped})
    quarantine = place.sql("SELECT seq, '' FROM quarantine WHERE projection = ?", name)
    compare(f"the quarantine of {name}", dict(quarantine), dict.fromkeys(folded.quarantine, ""))


def check_log(
    log: Sequence[tuple[Any, ...]],
    old: Sequence[tuple[Any, ...]] = (),
    *,
    names: Sequence[str] = ("left", "right"),
    each: int | None = None,
) -> None:
    """Check that the old events come first, unchanged, then all of each writer's, in order; `each`
    is how many these are."""
    if [tuple(row[1:]) for row in log[: len(old)]] != list(old):
        raise Difference("the log does not begin with the events that it had before")
    for name in names:
        ids = [row[1] for row in log if row[1].startswith(f"{name}-")]
        wanted = len(ids) if each is None else each
        if ids != [f"{name}-{number}" for number in range(wanted)]:
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
    place = fresh(campaign)
    with writers(place, campaign.chance):
        for number in range(1, kills + 1):
            daemon = Child(campaign.folder, *RUN, place.name)
            campaign.kill_one([daemon], campaign.target(TAILING))
            if number % KILLS_PER_CHECK == 0:
                check(place)
    check(place)


def standing_by(campaign: Campaign, kills: int) -> None:
    """Kill two daemons, one of which stands by and takes over."""
    two_daemons(campaign, kills, unlocked=False)


def unlocked(campaign: Campaign, kills: int) -> None:
    """Kill two daemons that both work, because the lock file is removed."""
    two_daemons(campaign, kills, unlocked=True)


def two_daemons(campaign: Campaign, kills: int, *, unlocked: bool) -> None:
    place = fresh(campaign)
    done = 0
    with writers(place, campaign.chance):
        while done < kills:
            with ExitStack() as alive:
                running: list[Child] = []
                for _ in range(min(KILLS_PER_CHECK, kills - done)):
                    while len(running) < 2:
                        if unlocked:
                            place.unlock()
                        running.append(started(alive, campaign, place))
                    running.remove(campaign.kill_one(running, campaign.target(TAILING)))
                    done += 1
            check(place)


def started(alive: ExitStack, campaign: Campaign, place: Place) -> Child:
    """Start a daemon and wait for it, so that a second one does not overtake it."""
    daemon = Child(campaign.folder, *RUN, place.name)
    alive.callback(daemon.kill)
    deadline = time.monotonic() + AIM_S
    while not place.led() and time.monotonic() < deadline:
        time.sleep(ASK_S)
    return daemon


def server(campaign: Campaign, kills: int) -> None:
    """Kill the server, which recovers, under two daemons that wait for it, and these after it."""
    place = fresh(campaign)
    done = 0
    with writers(place, campaign.chance):
        while done < kills:
            with ExitStack() as alive:
                running = [started(alive, campaign, place) for _ in range(2)]
                for _ in range(min(KILLS_PER_CHECK // 2, kills - done)):
                    campaign.aim(running, campaign.target(("read", "fold", "commit")))
                    campaign.server.stop("SIGQUIT")
                    campaign.server.start()
                    campaign.counts["server"] += 1
                    done += 1
                    seen(place, running)
            check(place)


def seen(place: Place, running: Sequence[Child]) -> None:
    """Wait until what was written is folded, by daemons that have not ended."""
    ((newest,),) = place.sql("SELECT max(seq) FROM event_log")
    deadline = time.monotonic() + RECOVERY_S
    while place.position() < newest:
        for child in running:
            if child.ended:
                raise Difference(f"a daemon ended, {child.process.returncode}: {child.said}")
        if time.monotonic() > deadline:
            raise Difference(f"{newest} is not folded: {[child.said for child in running]}")
        time.sleep(ASK_S)


def walk(campaign: Campaign, kills: int) -> None:
    """Kill a daemon in the full scan that it starts with, because no checkpoint made the rows."""
    place = fresh(campaign)
    with writers(place, campaign.chance):
        place.insert_all([written(campaign.chance, f"first-{n}") for n in range(WALKED_EVENTS)])
        check(place)
        for number in range(1, kills + 1):
            if campaign.chance.one_in(3) or place.position():
                place.damage(adopted=True)
            daemon = Child(campaign.folder, *RUN, place.name)
            campaign.aim([daemon], "walk")
            time.sleep(campaign.chance.random() * 0.2)
            campaign.kill_one([daemon], "walk")
            if number % KILLS_PER_CHECK == 0:
                check(place)
    check(place)


def replay(campaign: Campaign, kills: int) -> None:
    """Kill `projector replay` of damaged rows while a daemon keeps tailing."""
    place = fresh(campaign)
    with writers(place, campaign.chance):
        place.insert_all([written(campaign.chance, f"first-{n}") for n in range(WALKED_EVENTS)])
        check(place)
        done = 0
        while done < kills:
            with ExitStack() as alive:
                started(alive, campaign, place)
                for _ in range(min(KILLS_PER_CHECK, kills - done)):
                    place.damage(adopted=False)
                    replaying = Child(campaign.folder, "replay", "-d", place.name)
                    campaign.aim([replaying], "replay")
                    time.sleep(campaign.chance.random() * 0.2)
                    if phase := replaying.kill():
                        campaign.counts[phase] += 1
                    done += 1
                projector("replay", "-d", place.name)
                projector("verify", "-d", place.name)
            check(place)


def migration(campaign: Campaign, kills: int) -> None:
    """Kill the adoption of a Kanbatte database."""
    template = campaign.path()
    old = kanbatte(template, campaign.chance)
    done = 0
    while done < kills:
        path = campaign.path()
        shutil.copy(template, path)
        place = Place(path)
        with writers(place, campaign.chance):
            done += killed_setups(campaign, place, min(2, kills - done))
            while projector("db", "setup", "-d", path, check=None).returncode == 3:
                time.sleep(0.1)
            projector("db", "setup", "-d", path)
            check_log(place.log(), old)
        check_backup(path, old)
        if done % 6 == 0 or done >= kills:
            check(place, old)
        for file in path.parent.glob(path.name + "*"):
            file.unlink()


def setup(campaign: Campaign, kills: int) -> None:
    """Kill the set-up of an empty database."""
    done = 0
    while done < kills:
        place = campaign.place()
        done += killed_setups(campaign, place, min(2, kills - done))
        projector("db", "setup", "-d", place.name)
        if not place.insert_all([written(campaign.chance, f"first-{n}") for n in range(100)]):
            raise Difference("nothing can be written")
        check(place)


def killed_setups(campaign: Campaign, place: Place, kills: int) -> int:
    """Set up and kill until `kills` is reached or a set-up ends; returns the number of kills."""
    for number in range(kills):
        child = Child(campaign.folder, "db", "setup", "-d", place.name)
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


def fresh(campaign: Campaign) -> Place:
    place = campaign.place()
    projector("db", "setup", "-d", place.name)
    return place


SETUP_S: Final = {"migration": 0.02, "setup": 0.06}
"""About how long the set-up of this log takes from the start of a phase on."""
RUN: Final = ("run", "--log-level", "error", "-d")
SCENARIOS: Final[dict[str, tuple[tuple[int, Callable[[Campaign, int], None]], ...]]] = {
    "sqlite": (
        (25, one_daemon),
        (20, standing_by),
        (15, unlocked),
        (15, walk),
        (15, replay),
        (10, migration),
    ),
    "postgres": (
        (25, one_daemon),
        (20, standing_by),
        (15, server),
        (15, walk),
        (15, replay),
        (10, setup),
    ),
}
"""Each scenario with its share of the kills in percent; add a new command here."""


def run(kills: int, seed: int, folder: Path, server: Any = None) -> dict[str, int]:
    """Kill `kills` times; returns how many kills fell into each phase, or raises `Difference`.

    `server` is that of the tests, if the databases are to be on it."""
    campaign = Campaign(seed, folder, server)
    for share, scenario in SCENARIOS["postgres" if server else "sqlite"]:
        left = max(1, round(kills * share / 100))
        while left:
            now = min(left, KILLS_PER_DATABASE)
            scenario(campaign, now)
            left -= now
            print(f"{scenario.__name__}: {dict(campaign.counts)}", file=sys.stderr)
    return {phase: campaign.counts[phase] for phase in (*PHASES, *(["server"] if server else []))}


@contextmanager
def server_for(engine: str) -> Iterator[Any]:
    """The tests' server for the block, None for SQLite."""
    if engine == "sqlite":
        yield None
        return
    from support.postgres import Server  # which needs more than SQLite does

    with closing(Server()) as own:
        yield own


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=SCENARIOS, default="sqlite")
    options = parser.parse_args()
    started_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, server_for(options.engine) as on:
        try:
            counts = run(options.kills, options.seed, Path(folder), on)
        except Difference as difference:
            sys.exit(f"DIFFERENT: {difference}")
    for phase, count in counts.items():
        print(f"{count:>6} {phase}")
    took = time.perf_counter() - started_at
    print(f"{sum(counts.values())} kills, {took:.0f} s; every check found what the log says")


if __name__ == "__main__":
    main()
