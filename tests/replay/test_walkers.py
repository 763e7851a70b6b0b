"""Verify and replay whose log is folded by several processes."""

import os
import pickle
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import msgpack
import msgspec
import pytest
from support import PROJECTOR, T0, Database, event, fill, projector
from support.extensions import CreatedPerDay
from support.folding import Heard, catch_up, target

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.worker.errors import ProjectionFailed, ProjectorError, TransientError
from session_projector.worker.folding.checkpoints import checkpoint_of
from session_projector.worker.replay import verify
from session_projector.worker.replay.as_of import as_of_checkpoint
from session_projector.worker.replay.compare import Comparison
from session_projector.worker.replay.difference import Difference
from session_projector.worker.replay.here import Here
from session_projector.worker.replay.walk import Pages, Walk, WalkProgress
from session_projector.worker.replay.walkers import WORTH_EVENTS, worth
from session_projector.worker.storage.limits import Limits

PROJECTIONS = (*BUILT_IN, SEARCH, CreatedPerDay())
SMALL = Limits(page_events=7, page_keys=5, range_events=20, view_bytes=5000)
DAMAGES = (
    "UPDATE view SET data = x'80' WHERE last_offset_id LIKE '%3'",
    "UPDATE session_index SET title = 'x' WHERE session_id LIKE '%5'",
    "DELETE FROM search WHERE seq % 10 = 1",
    "DELETE FROM view WHERE last_offset_id LIKE '%7'",
    "INSERT INTO view VALUES ('x', 'session:G', x'80', 'e', 1, 1)",
    "UPDATE quarantine SET reason = 'x' WHERE seq % 2 = 0",
    "DELETE FROM quarantine WHERE seq % 3 = 0",
    "UPDATE checkpoint SET skipped = 9 WHERE name = 'session_index'",
)


class Listed(Heard):
    """All that a scan tells, in its order; `action` is done after the first step."""

    def __init__(self, action: Any = None) -> None:
        super().__init__()
        self.differences: list[Difference] = []
        self.ended: list[str] = []
        self._action = action

    def step(self, tally: verify.Tally, step: WalkProgress) -> None:
        self.differences += step.differences
        if self._action:
            with ThreadPoolExecutor(1) as elsewhere:
                elsewhere.submit(self._action).result()
            self._action = None

    def done(self, tally: verify.Tally) -> None:
        self.ended.append(f"{tally.projection} {tally.events} {tally.views}")


def compared(
    database: Database, jobs: int, limits: Limits = SMALL, action: Any = None
) -> tuple[Any, ...]:
    heard = Listed(action)

    async def run() -> None:
        found = target(database.url, limits)
        await verify.compare(found, PROJECTIONS, heard, jobs=jobs)

    anyio.run(run)
    return heard.differences, heard.ended


def replayed(database: Database, jobs: int, limits: Limits = SMALL) -> tuple[Any, ...]:
    heard = Listed()

    async def run() -> None:
        found = target(database.url, limits)
        leadership = found.leadership()
        try:
            await verify.replay(found, PROJECTIONS, heard, leadership=leadership, jobs=jobs)
        finally:
            leadership.release()

    anyio.run(run)
    return heard.differences, heard.ended


def everything(database: Database) -> list[list[tuple[Any, ...]]]:
    return [*database.everything(), database.sql("SELECT * FROM search ORDER BY seq")]


def odd_log(chance: random.Random) -> list[tuple[Any, ...]]:
    """Sessions of any length, some under both spellings, among events that are about none."""
    rows: list[tuple[Any, ...]] = []
    for number in range(200):
        session = f"A-{int(chance.expovariate(0.1))}"
        kind = chance.choice(["session_created", *["session_append"] * 5, "task_created"])
        said = [{"role": "user", "content": f"word{number}"}]
        data: Any = {"project": "P"} if kind == "session_created" else {"messages": said}
        made = event(kind, data, timestamp=T0 + 10_000_000 * number)
        key = chance.choice([f"session:{session}"] * 20 + [session, None, ""])
        broken = chance.random() < 0.05
        rows.append((f"e{number}", key, b"\xc1" if broken else msgpack.packb(made), T0))
    return rows


@pytest.mark.timeout(300)
def test_any_number_of_processes_finds_and_repairs_the_same(database: Database) -> None:
    database.insert_many(odd_log(random.Random(1)))
    catch_up(database, PROJECTIONS)
    expected = everything(database)

    for jobs in (1, 2, 3):
        for damage in DAMAGES:
            database.sql(damage)
        if jobs == 1:
            alone = compared(database, 1)
        else:
            assert compared(database, jobs) == alone
        assert replayed(database, jobs) == alone
        assert everything(database) == expected

    assert len(alone[0]) > 20
    assert {one.row for one in alone[0]} == {"view", "quarantine", "checkpoint"}


@pytest.mark.timeout(300)
def test_several_processes_build_views_from_nothing(database: Database) -> None:
    database.insert_many(odd_log(random.Random(3)))
    copies = [database.copied() for _ in range(2)]

    one, two = [replayed(copy, jobs) for jobs, copy in enumerate(copies, 1)]

    assert one == two
    assert copies[0].everything() == copies[1].everything()
    catch_up(database, PROJECTIONS)
    assert copies[0].views() == database.views()


def test_what_is_folded_since_the_scan_began_is_no_difference(database: Database) -> None:
    fill(database, sessions=30, events=150)
    catch_up(database, PROJECTIONS)
    database.sql("UPDATE view SET data = x'80' WHERE key LIKE '%7'")
    damaged = {key for key, row in database.views().items() if row[2] == b"\x80"}

    def meanwhile() -> None:
        for key in sorted(database.views()):
            database.appended(key.removeprefix("session:"), "more")
        catch_up(database, PROJECTIONS)

    found, *_ = compared(database, 2, action=meanwhile)

    assert {difference.key for difference in found} <= damaged
    replayed(database, 2)
    assert compared(database, 1)[0] == []


def test_what_is_sent_to_be_compared_again_is_as_of_the_beginning(database: Database) -> None:
    """Whoever compares it again folds what came since, by then, and once."""
    database.created("A-1", "one")
    catch_up(database)
    until = database.position()
    database.appended("A-1", "two")
    catch_up(database)
    database.sql("UPDATE view SET data = x'80'")

    async def sifted() -> list[int]:
        with target(database.url).open() as store:
            here, sessions = Here(store), BUILT_IN[0]
            now = checkpoint_of(store, sessions)
            then = as_of_checkpoint(msgspec.structs.replace(now, position=until))
            comparison = Comparison(here, sessions, then)
            walk = Walk(here, sessions, comparison, Pages(here, [sessions]))
            found = [page.views async for page in walk.sifted((None, None))]
            return [view.count for views in found for view in views.values()]

    assert anyio.run(sifted) == [1]


def failure(database: Database, jobs: int) -> tuple[type[ProjectorError], str, str]:
    with pytest.raises(ProjectorError) as raised:
        compared(database, jobs)
    return type(raised.value), str(raised.value), raised.value.hint


def test_what_fails_in_another_process_is_told_as_it_is_without_one(database: Database) -> None:
    fill(database, sessions=20, events=100)
    catch_up(database, PROJECTIONS)
    database.sql("DROP TABLE session_index")

    assert failure(database, 2) == failure(database, 1)
    assert failure(database, 2)[0] is ProjectionFailed


def test_an_error_is_the_same_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(ProjectionFailed("p", "it broke", "fix it")))

    assert (type(error), str(error), error.hint) == (ProjectionFailed, "p: it broke", "fix it")
    assert error.projection == "p"


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def scanning(database: Database) -> tuple[subprocess.Popen[str], list[int]]:
    """A replay that runs with two processes, and these, which are suspended."""
    running = subprocess.Popen(
        [*PROJECTOR, "replay", "--jobs", "2", "-d", database.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(found := children(running.pid)) < 2:
        assert running.poll() is None
        time.sleep(0.001)
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    return running, found


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


@pytest.fixture
def large(database: Database) -> Database:
    """A log that is worth two processes."""
    fill(database, sessions=500, events=2 * WORTH_EVENTS)
    return database


@pytest.mark.once
def test_a_process_that_is_killed_is_no_finding_and_takes_the_others_with_it(
    large: Database,
) -> None:
    running, found = scanning(large)
    os.kill(found[0], signal.SIGKILL)
    os.kill(found[1], signal.SIGCONT)
    said = running.communicate()[1]

    assert running.returncode == TransientError.exit_code, said
    assert "was killed by signal 9" in said
    assert f"`projector replay --jobs 1 -d {large.named}`" in said
    assert all(map(is_gone, found))
    assert "built from scratch: 500 rows" in projector("replay", "-d", large.url).stdout
    assert compared(large, 2, Limits())[0] == []


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_of_the_command_is_one_of_all_its_processes(large: Database, number: int) -> None:
    running, found = scanning(large)
    running.send_signal(number)
    for pid in found:
        os.kill(pid, signal.SIGCONT)
    said = running.communicate()[1]  # when nobody has the other end any more

    assert said == ""
    while not all(map(is_gone, found)):
        time.sleep(0.001)


@pytest.mark.once
def test_a_small_log_starts_no_process() -> None:
    assert worth(8, 2 * WORTH_EVENTS - 1) == 1
    assert worth(8, 2 * WORTH_EVENTS) == 2
    assert worth(2, 100 * WORTH_EVENTS) == 2
