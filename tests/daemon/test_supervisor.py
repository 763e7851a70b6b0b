"""What holds one projection up, a failure or a rebuild, never holds up another."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs
from support import PROJECTOR, Daemon, Database, daemon, fill, oracle, projector, shell
from support.extensions import HOLD, PROGRAM, PerProject
from support.folding import catch_up, checkpoint, opened, repair, run_once, target
from support.served import HTTP, address, scraped

from session_projector.projections import BUILT_IN
from session_projector.projections.event import Event
from session_projector.projections.session_index import SessionIndex
from session_projector.projections.sessions import Sessions
from session_projector.worker.daemon import batch_size, supervisor, tail
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.outage import Outage
from session_projector.worker.daemon.supervisor import Supervisor
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.errors import DatabaseUnavailable
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.replay import plan
from session_projector.worker.replay import rebuild as replay
from session_projector.worker.storage.limits import Limits
from session_projector.worker.telemetry.state import DaemonState

SESSIONS = BUILT_IN[0]
PATH = {"env": {"PYTHONPATH": PROGRAM[1].partition("=")[2]}}


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As long as this file is there, `Slower` is slow."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / HOLD
    file.touch()
    return file


@contextmanager
def running(database: Database, *names: str) -> Iterator[Daemon]:
    options = [word for name in names for word in ("--projection", f"support.extensions:{name}")]
    with daemon(database.url, options=options) as started:
        started.wait_for("started")
        yield started


def waits(tailing: Daemon, pause_s: float = 0.005) -> None:
    """Let a daemon that has not ended get on."""
    assert tailing.process.poll() is None
    time.sleep(pause_s)


def once(database: Database, name: str, *, check: int | None = 0) -> str:
    options = ("--projection", f"support.extensions:{name}", "-d", database.url)
    return projector("run", "--once", *options, check=check).stderr


def per_project(database: Database) -> list[tuple[Any, ...]]:
    return database.sql("SELECT * FROM per_project ORDER BY project")


def state(database: Database) -> dict[str, Any]:
    status = json.loads(projector("status", "--json", "-d", database.url).stdout)
    return {progress["name"]: progress["state"] for progress in status["projections"]}


def test_a_projection_that_fails_is_set_aside_and_the_others_go_on(database: Database) -> None:
    database.created("A-1")
    with running(database, "Broken") as tailing:
        said = tailing.wait_for("projection_failed")
        newest = database.created("A-2")
        projector("wait", "--projection", "sessions", "-d", database.url)
        projector("session", "append", "A-2", "-m", '[{"role":"u","content":"x"}]', "--wait",
                  "-d", database.url)  # fmt: skip
        late = projector("wait", newest, "--timeout", "0", "-d", database.url, check=1)
        shown = projector("status", "-d", database.url).stdout
        cure = projector("doctor", "-d", database.url, check=1).stdout
        restart = f"If you changed the code, restart it: `kill {tailing.process.pid}`, then"

    assert said["why"].startswith("per_project: ZeroDivisionError in ")
    assert said["raised"] == "ZeroDivisionError: its own words"
    assert "its own words" not in shown
    assert restart in cure
    assert database.view("A-2")["messages"]
    assert state(database)["per_project"]["state"] == "failed"
    assert re.search("  state +failed, for", shown)
    assert "per_project is at 0 (per_project: ZeroDivisionError" in late.stderr
    assert "a daemon is alive, process" in late.stderr


def test_run_once_folds_the_others_and_ends_with_exit_4(database: Database) -> None:
    database.created("A-1")

    broken = ("--projection", "support.extensions:Broken")
    done = projector("run", "--once", *broken, "-d", database.url, check=4)
    said = done.stderr
    assert "sessions: up to event 1; events: 1 folded, 0 quarantined" in done.stdout

    assert '"why": "per_project: ZeroDivisionError' in said
    assert len(database.views()) == len(database.index()) == 1


def test_one_that_failed_goes_on_when_it_can_again(database: Database) -> None:
    database.created("A-1")
    once(database, "PerProject")
    database.refuse("per_project", "no more")
    with running(database, "PerProject") as tailing:
        database.created("A-2")
        said = tailing.wait_for("projection_failed")
        database.admit("per_project")
        tailing.wait_for("projection_recovered")
        database.created("A-3")
        projector("wait", "-d", database.url)

    assert "no more" in said["why"]
    assert per_project(database) == [("P", 3)]
    assert state(database)["per_project"] == {"state": "tailing"}


def test_a_trigger_on_view_is_not_taken_for_a_row_of_another_program(database: Database) -> None:
    database.created("A-1")
    database.refuse("view", "no more")

    said = projector("run", "--once", "-d", database.url, check=4).stderr

    assert " says: no more" in said
    assert (
        "a trigger, an index or a constraint that somebody gave its table refuses the row" in said
    )


def test_a_table_that_is_gone_is_made_anew(database: Database) -> None:
    database.created("A-1")
    with running(database, "PerProject") as tailing:
        projector("wait", "-d", database.url)
        database.sql("DROP TABLE per_project")
        newest = database.created("A-2")
        tailing.wait_for("caught_up", projection="per_project")
        projector("wait", newest, "-d", database.url)

    assert per_project(database) == [("P", 2)]
    assert database.sql("SELECT min(position), max(position) FROM checkpoint") == [(2, 2)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Widened", "it has no column latest"),
        ("Misshapen", "its column sessions is "),
    ],
)
def test_a_table_that_does_not_fit_is_left_as_it_is(
    database: Database, name: str, words: str
) -> None:
    database.created("A-1")
    once(database, "PerProject")
    database.created("A-2")

    said = once(database, name, check=4)

    assert words in said
    assert "raise the version" in said
    assert per_project(database) == [("P", 1)]
    assert len(database.views()) == 2
    *_, drop = re.findall("`(projector projection drop [^`]+)`", said)
    assert shell(f"{drop} <<< y").returncode == 0
    once(database, name, check=None)
    assert database.sql("SELECT position FROM checkpoint WHERE name = 'per_project'") == [(2,)]


def test_a_version_may_keep_its_views_in_another_table(database: Database) -> None:
    database.created("A-1")
    once(database, "PerProject")

    once(database, "Elsewhere")

    assert database.sql("SELECT * FROM projects") == [("P", 1.0)]
    assert per_project(database) == [("P", 1)]
    assert database.sql("SELECT version, kept_in FROM checkpoint WHERE name = 'per_project'") == [
        (2, "projects")
    ]


def test_views_of_a_newer_version_are_refused(database: Database) -> None:
    database.created("A-1")
    once(database, "Slower")
    before = per_project(database)

    for command in (("run",), ("run", "--once")):
        options = ("--projection", "support.extensions:PerProject", "-d", database.url)
        said = projector(*command, *options, check=4).stderr
        assert "were made by version 2 of the projection; this projector has version 1" in said
    assert per_project(database) == before


def test_the_others_tail_while_one_is_rebuilt_and_its_rows_stand(
    database: Database, hold: Path
) -> None:
    fill(database, sessions=2500, events=2500)
    once(database, "PerProject")
    rebuilding = "SELECT count(*) FROM projection_state WHERE state = 'rebuilding'"
    with running(database, "Slower") as tailing:
        while database.sql(rebuilding) == [(0,)]:
            waits(tailing)
        shown = projector("status", "-d", database.url).stdout
        newest = database.created("A-1", "while it is rebuilt")
        while database.position() < newest:
            waits(tailing)
        # A replay of others moves their checkpoints, and must not throw back the rebuild.
        database.sql("UPDATE view SET data = x'80' WHERE key = 'session:F-1'")
        repaired = repair(database)
        still, row = database.sql(rebuilding), per_project(database)
        hold.unlink()
        tailing.wait_for("caught_up", projection="per_project")

    assert "being rebuilt as version 2: " in shown
    assert repaired == {"view damaged": 1}
    assert still == [(1,)]
    assert row == [("F", 2500, None)]
    assert database.contents("A-1") == ["while it is rebuilt"]
    assert per_project(database) == [("F", 2500, "F-2499"), ("P", 1, "A-1")]
    rebuilt = [line for line in tailing.lines if line["event"] == "views_rebuilt"]
    assert [line["projection"] for line in rebuilt] == ["per_project"]
    assert not any("moved" in line["event"] and "projection" in line for line in tailing.lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rebuild_that_was_cut_off_is_done_by_the_next_daemon_and_not_tailed_by_an_older_one(
    database: Database, hold: Path, number: signal.Signals
) -> None:
    fill(database, sessions=300, events=300)
    once(database, "PerProject")
    with running(database, "Slower") as tailing:
        while database.sql("SELECT count(*) FROM projection_state") == [(0,)]:
            waits(tailing)
        tailing.stop(number)
    shown = projector("status", "-d", database.url).stdout

    assert "were made by version 2" in once(database, "PerProject", check=4)
    assert "a rebuild as version 2 was interrupted; the next run does it again" in shown
    hold.unlink()
    once(database, "Slower")
    assert per_project(database) == [("F", 300, "F-299")]
    assert state(database)["per_project"] == {"state": "tailing"}


def test_a_newer_program_beside_an_older_daemon_says_what_to_do(database: Database) -> None:
    fill(database, sessions=5, events=5)
    once(database, "PerProject")
    with running(database, "PerProject"):
        options = ("--projection", "support.extensions:Slower", "-d", database.url)
        for words in (("run", "--once"), ("replay",)):
            said = projector(*words, *options, check=3).stderr
            assert "runs version 1 of per_project, and this is version 2" in said
            assert "restart the daemon" in said


def test_an_older_program_beside_a_newer_daemon_refuses_at_once(database: Database) -> None:
    fill(database, sessions=5, events=5)
    with running(database, "Slower") as tailing:
        tailing.wait_for("batch_committed")
        older = ("--projection", "support.extensions:PerProject", "-d", database.url)
        projector("run", *older, check=4)


def test_a_rebuild_tells_what_it_quarantined_and_removed(database: Database) -> None:
    database.created("A-1")
    database.created("A-2", project="Q")
    database.insert("A-1", {"type": "anything at all"})
    once(database, "PerProject")
    options = ["--projection", "support.extensions:Faulty", *HTTP]
    with daemon(database.url, options=options) as tailing:
        url = address(tailing)
        said = tailing.wait_for("views_rebuilt", projection="per_project")
        tailing.wait_for("caught_up", projection="per_project")
        found = scraped(url)

    assert (said["level"], said["quarantined"], said["removed"]) == ("warning", 2, 2)
    assert {
        (labels["type"], labels["outcome"]): value
        for (name, *rest), value in found.items()
        if name == "projector_events_total" and value
        if (labels := dict(rest))["projection"] == "per_project"
    } == {("session_created", "quarantined"): 2, ("other", "skipped"): 1}


def test_a_rebuild_that_is_locked_out_says_so_once_whatever_the_others_read(
    database: Database,
) -> None:
    database.created("A-1")
    once(database, "PerProject")
    options = ["--projection", "support.extensions:Faulty", *HTTP]
    with ExitStack() as held:
        held.enter_context(database.locked())
        with daemon(database.url, options=options) as tailing:
            url = address(tailing)
            while scraped(url)["projector_busy_waits_total",] < 2:
                waits(tailing, 0.1)
            held.close()
            over = tailing.wait_for("database_available_again")
            tailing.wait_for("caught_up", projection="per_project")

    said = [line for line in tailing.lines if line["event"] == "database_unavailable"]
    assert [line["projection"] for line in said] == ["per_project"]
    assert (over["projection"], over["failures"]) == ("per_project", 2)


def test_what_is_far_behind_is_caught_up_by_view(database: Database) -> None:
    """With `run --once` see the test of large views."""
    fill(database, sessions=6500, events=50)
    catch_up(database)
    fill(database, sessions=6500, events=13_000, first=50)
    with daemon(database.url) as tailing:
        tailing.wait_for("views_rebuilt", projection="sessions")
        tailing.wait_for("caught_up", projection="session_index")
        tailing.stop(signal.SIGTERM)

    rebuilt = [line["projection"] for line in tailing.lines if line["event"] == "views_rebuilt"]
    assert sorted(rebuilt) == ["session_index", "sessions"]
    assert database.views() == oracle.fold(database.log()).views
    assert database.index() == oracle.index(database.log())
    assert state(database)["sessions"] == {"state": "tailing"}


def test_one_that_fails_in_its_walk_holds_up_no_other(database: Database) -> None:
    fill(database, sessions=500, events=1000)
    once(database, "PerProject")
    database.sql("UPDATE checkpoint SET position = 0, digest = '' WHERE name != 'per_project'")
    with running(database, "Hopeless") as tailing:
        tailing.wait_for("caught_up", projection="sessions")
        tailing.wait_for("projection_failed", projection="per_project")
        tailing.stop(signal.SIGTERM)

    assert database.views() == oracle.fold(database.log()).views
    assert per_project(database) == [("F", 500, None)]


def test_another_log_that_is_far_ahead_is_refused_as_any_other(database: Database) -> None:
    large_views(database)
    before = database.views()
    for number in range(120):
        database.appended(f"L-{number % 10}", "y" * 100_000)
    database.sql("UPDATE checkpoint SET digest = 'of another log'")

    said = projector("run", "--once", "-d", database.url, check=4).stderr

    assert "truncated or replaced: checkpoint" in said
    assert database.views() == before


def test_a_replay_beside_a_rebuild_by_the_daemon_ends_after_it(
    database: Database, hold: Path
) -> None:
    fill(database, sessions=300, events=300)
    once(database, "PerProject")
    with running(database, "Slower") as tailing:
        while database.sql("SELECT version FROM checkpoint WHERE version < 0") == []:
            waits(tailing)
        options = ("--projection", "support.extensions:Slower", "-d", database.url)
        with subprocess.Popen(
            [*PROJECTOR, "replay", *options], stderr=subprocess.PIPE, text=True, **PATH
        ) as replaying:
            assert replaying.stderr is not None
            while "waiting_for_daemon" not in (line := replaying.stderr.readline()):
                assert line
            hold.unlink()
            tailing.wait_for("caught_up", projection="per_project")
            replaying.communicate(timeout=30)

    assert replaying.returncode == 0
    assert per_project(database) == [("F", 300, "F-299")]


async def test_a_walk_that_is_locked_out_goes_on_where_it_was(database: Database) -> None:
    fill(database, sessions=300, events=300)
    waited: list[DatabaseUnavailable] = []
    with ExitStack() as held:

        async def hold_on(error: DatabaseUnavailable) -> None:
            waited.append(error)
            held.close()

        async with opened(database.url) as thread:
            member = await load(thread, SESSIONS)
            steps = replay.rebuild(thread, SESSIONS, member.checkpoint, hold_on=hold_on)
            found = [await anext(steps)]
            held.enter_context(database.locked())
            found += [step async for step in steps]
            after = await checkpoint(thread, SESSIONS)

    assert len(waited) == 1
    assert (after.position, after.replays) == (300, member.checkpoint.replays + 1)
    assert sum(len(step.differences) for step in found) == 300
    assert database.views() == oracle.fold(database.log()).views


async def test_a_stop_is_heeded_while_a_rebuild_is_locked_out(database: Database) -> None:
    fill(database, sessions=20, events=20)
    stop = anyio.Event()
    outage = Outage(DaemonState(lambda _: stop.set()))  # as soon as it waits
    held: list[ExitStack] = []
    with ExitStack() as ends:

        class LockedOut(PerProject):
            def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
                if not held:
                    ends.enter_context(database.locked())
                    held.append(ends)
                return super().fold(view, event)

        async with target(database.url, Limits(busy_timeout_s=0)).open_thread() as thread:
            with anyio.fail_after(30), pytest.raises(DatabaseUnavailable):
                await supervisor._rebuild(thread, [LockedOut()], faults_of, stop, outage)

    assert outage.state.unavailable == 1


async def test_one_that_is_still_behind_joins_once_it_has_come(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_JOIN_S", 0)  # the others wait for nobody
    database.created("A-1")
    state = DaemonState()
    sessions, index = BUILT_IN
    async with opened(database.url) as thread, opened(database.url) as own:
        lead = Tail(thread, [await load(thread, sessions)])
        await lead.run(anyio.Event(), until=1)
        daemon = Supervisor(target(database.url), BUILT_IN, anyio.Event(), state)
        async with anyio.create_task_group() as tasks, lead.lock:
            tasks.start_soon(daemon._catch_up, own, index, lead, Outage(state))
            while not lead.lock.statistics().tasks_waiting:
                await anyio.lowlevel.checkpoint()
            database.appended("A-1", "which the lead folds first")
            assert await lead.iterate()

    assert [member.projection for member in lead.members] == [sessions, index]
    assert {member.checkpoint.position for member in lead.members} == {2}


async def test_checkpoints_that_another_process_moved_are_read_again_once(
    database: Database,
) -> None:
    database.created("A-1")
    stop = anyio.Event()
    moved: list[bool] = []

    def told(state: DaemonState) -> None:
        if state.progress["sessions"].position == 1 and not moved:
            moved.append(True)
            database.sql("UPDATE checkpoint SET generation = generation + 1")  # as a replay does
            database.created("A-2")
        if state.progress["sessions"].position == 2:
            stop.set()

    with capture_logs() as said, anyio.fail_after(30):
        await Supervisor(target(database.url), BUILT_IN, stop, DaemonState(told)).run()

    assert [line["event"] for line in said].count("checkpoint_moved_by_another") == 1
    assert database.views() == oracle.fold(database.log()).views


@pytest.mark.parametrize("quicker", [True, False])
async def test_a_daemon_that_fell_far_behind_scans_where_one_that_starts_would(
    database: Database, monkeypatch: pytest.MonkeyPatch, quicker: bool
) -> None:
    monkeypatch.setattr(tail, "FAR_EVENTS", 100)
    monkeypatch.setattr(plan, "BATCH_COST_BYTES", 10**12 if quicker else 0)
    fill(database, sessions=50, events=100)
    await run_once(database.url)
    stop = anyio.Event()
    added: list[bool] = []

    def told(state: DaemonState) -> None:
        positions = {one.position for one in state.progress.values()}
        if positions == {100} and not added:
            added.append(True)
            fill(database, sessions=50, events=200, first=100)
        if positions == {300}:
            stop.set()

    limits = Limits(view_bytes=1000)
    with capture_logs() as said, anyio.fail_after(30):
        await Supervisor(target(database.url, limits), BUILT_IN, stop, DaemonState(told)).run()

    scanned = [line["projection"] for line in said if line["event"] == "views_rebuilt"]
    assert sorted(scanned) == (["session_index", "sessions"] if quicker else [])
    assert "checkpoint_moved_by_another" not in [line["event"] for line in said]
    assert database.views() == oracle.fold(database.log()).views


async def test_only_the_waiting_of_the_lead_is_a_sign_of_life() -> None:
    turns: list[bool] = []
    state = DaemonState(lambda now: turns.append(now.unavailable_now))
    stop, locked = anyio.Event(), DatabaseUnavailable("locked")
    stop.set()
    state.polled(9, {"slow": 5})

    await Outage(state, "slow").wait_out(locked, stop)
    alone = [*turns], state.stuck()
    await Outage(state).wait_out(locked, stop)

    assert alone == ([], {})
    assert turns == [True]
    assert state.unavailable == 2


def test_code_that_cannot_read_its_rows_is_set_aside(database: Database) -> None:
    database.created("A-1")
    once(database, "PerProject")
    with running(database, "Unreadable") as tailing:
        newest = database.created("A-2")
        said = tailing.wait_for("projection_failed")
        projector("wait", newest, "--projection", "sessions", "-d", database.url)

    assert "KeyError" in said["why"]
    assert per_project(database) == [("P", 1)]
    projector("projection", "drop", "per_project", "--yes", "-d", database.url)
    assert database.sql("SELECT * FROM projection_state") == []


@pytest.mark.sqlite
def test_a_row_that_others_damaged_is_folded_anew_and_blames_no_event(database: Database) -> None:
    database.created("A-1")
    with running(database, "PerProject") as tailing:
        projector("wait", "-d", database.url)
        database.sql("UPDATE per_project SET sessions = 'many'")
        newest = database.created("A-2")
        projector("wait", newest, "-d", database.url)
        tailing.stop(signal.SIGTERM)

    assert per_project(database) == [("P", 2)]
    assert database.quarantine() == {}


def test_a_lack_of_memory_in_one_sets_it_aside(database: Database) -> None:
    database.created("A-1", project="much")
    with running(database, "Greedy") as tailing:
        said = tailing.wait_for("projection_failed")
        projector("wait", "--projection", "sessions", "-d", database.url)

    assert "MemoryError" in said["why"]


def test_a_table_of_somebody_else_is_left_alone(database: Database) -> None:
    database.sql("CREATE TABLE per_project (project TEXT PRIMARY KEY, sessions INTEGER)")
    database.sql("INSERT INTO per_project VALUES ('mine', 7)")
    database.created("A-1")

    said = once(database, "PerProject", check=4)

    assert "the table per_project exists with rows that no checkpoint explains" in said
    assert per_project(database) == [("mine", 7)]
    assert len(database.views()) == 1


def test_the_others_tail_while_a_slow_one_catches_up(database: Database, hold: Path) -> None:
    fill(database, sessions=3000, events=3000)
    catch_up(database)
    with running(database, "Slower") as tailing:
        for number in range(8):
            newest = database.created(f"A-{number}")
            while database.position() < newest:
                waits(tailing)
        behind = database.sql("SELECT position FROM checkpoint WHERE name = 'per_project'")
        hold.unlink()
        projector("wait", newest, "-d", database.url)

    assert behind[0][0] < 3000  # still at what the others had folded before
    assert per_project(database) == [("F", 3000, "F-2999"), ("P", 8, "A-7")]


BUMPED = """
from session_projector import projections
from session_projector.projections.session_index import SessionIndex
from session_projector.projections.sessions import Sessions
class Sessions2(Sessions):
    version = Sessions.version + 1
class SessionIndex2(SessionIndex):
    version = SessionIndex.version + 1
projections.BUILT_IN = (Sessions2(), SessionIndex2())
from session_projector.worker.cli import main as cli
cli.main()
"""


def test_no_reader_misses_a_row_while_a_new_version_rebuilds_under_load(
    database: Database,
) -> None:
    fill(database, sessions=300, events=3000)
    once(database, "PerProject")
    faults: list[str] = []
    over = threading.Event()

    def read() -> None:
        counts: dict[str, int] = {}
        keys: set[str] = set()
        while not over.wait(0.002):
            seen, there = counts, keys
            counts = dict(database.sql("SELECT session_id, message_count FROM session_index"))
            keys = {row[0] for row in database.sql("SELECT key FROM view WHERE key > 'session:'")}
            faults.extend(f"{key} went back" for key in seen if counts.get(key, -1) < seen[key])
            faults.extend(f"{key} is gone" for key in there - keys)
            if ("F", 300) not in per_project(database):
                faults.append("per_project")

    reader = threading.Thread(target=read)
    reader.start()
    program = ["/usr/bin/env", PROGRAM[1], sys.executable, "-P", "-c", BUMPED]
    options = ["--projection", "support.extensions:PerProject", "--log-level", "warning"]
    writers = [database.writer(number) for number in range(2)]
    with daemon(database.url, program=program, options=options) as tailing:
        while any(writer.poll() is None for writer in writers):
            time.sleep(0.05)
        projector("wait", "-d", database.url)
        tailing.stop(signal.SIGTERM)
    over.set()
    reader.join()

    assert faults == []
    assert database.sql("SELECT name, version FROM checkpoint ORDER BY name") == [
        ("per_project", 1),
        ("session_index", SessionIndex.version + 1),
        ("sessions", Sessions.version + 1),
    ]
    assert database.views() == oracle.fold(database.log()).views
    assert database.index() == oracle.index(database.log())
    old = subprocess.run(
        [*PROJECTOR, "run", "-d", database.url], capture_output=True, text=True, check=False
    )
    assert old.returncode == 4
    assert "upgrade projector" in old.stderr


def test_verify_tells_code_that_is_not_deterministic(database: Database) -> None:
    for number in range(5):
        database.created(f"A-{number}", project=f"P{number}")
    for name, words in (
        ("Chancy", "per_project is not deterministic: folded twice"),
        ("Ordered", "if no other program changed these rows, its code is not deterministic"),
        ("Shifting", "if no other program changed these rows, its code is not deterministic"),
    ):
        options = ("--projection", f"support.extensions:{name}", "-d", database.url)
        projector("run", "--once", *options, **PATH)  # processes that hash alike are forked
        said = projector("verify", *options, check=1).stdout
        assert words in said
        projector("projection", "drop", "per_project", "--yes", "-d", database.url)


def test_the_first_fold_of_a_projection_is_no_sign_of_bad_code(database: Database) -> None:
    for number in range(5):
        database.created(f"A-{number}", project=f"P{number % 2}")
    database.created("A-1")
    options = ("--projection", "support.extensions:PerProject", "-d", database.url)

    dry = projector("replay", "--dry-run", *options, **PATH).stdout
    first = projector("replay", *options, **PATH).stdout
    database.sql("UPDATE per_project SET sessions = 9 WHERE project = 'P1'")
    second = projector("replay", *options, **PATH).stdout

    assert dry == "per_project: would be built from scratch: 3 rows\n"
    assert first == "per_project: built from scratch: 3 rows\n"
    assert "per_project: 1 of 3 views were fixed" in second
    assert "its code is not deterministic" in second


def test_an_event_that_others_folded_is_not_appended_again(database: Database) -> None:
    seq = database.created("A-1", project="A")
    database.appended("A-1", "once")
    catch_up(database)
    database.sql("INSERT INTO quarantine SELECT 'per_project', seq, id, key, 'x' FROM event_log")

    for number in (seq, seq + 1):
        said = projector("quarantine", "resubmit", number, "-d", database.url, check=1).stderr
        assert "would count twice for sessions, session_index" in said
    assert len(database.log()) == 2


@pytest.mark.once
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("support.extensions:", "give module:Name"),
        ("absent:Name", "ModuleNotFoundError"),
        ("support.extensions:Absent", "AttributeError"),
        ("support.extensions:PROGRAM", "it is a list, not a Projection"),
        ("support.extensions:Nameless", "it lacks name, version, table, key_of, fold"),
        ("support.extensions:Thief", "the table Event_Log belongs to another program"),
        ("support.extensions:Worded", 'SQLite cannot make its table: near "group": syntax error'),
        ("support.extensions:Twin", "another projection is called sessions, too"),
    ],
)
def test_what_is_no_projection_is_refused(database: Database, spec: str, words: str) -> None:
    for command in ("run", "verify"):
        said = projector(command, "--projection", spec, "-d", database.url, check=2)
        assert words in said.stderr.replace('\\"', '"')  # the log of `run` is JSON


def test_columns_may_be_called_as_those_of_the_checkpoint(database: Database) -> None:
    database.created("A-1")
    database.appended("A-1", "x")

    once(database, "Named")
    projector("verify", "--projection", "support.extensions:Named", "-d", database.url)

    assert [row[:2] for row in database.sql("SELECT * FROM named")] == [("A-1", 2)]


def test_however_long_batches_take_each_has_an_event(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get smaller until they are short."""
    monkeypatch.setattr(batch_size, "LONG_BATCH_S", 0)
    monkeypatch.setattr(batch_size, "SHORT_BATCH_S", 0)
    fill(database, sessions=20, events=300)

    async def run() -> None:
        async with opened(database.url) as thread:
            folding = Tail(thread, [await load(thread, PerProject())])
            with anyio.fail_after(30):
                await folding.run(anyio.Event(), until=300)

    anyio.run(run)

    assert per_project(database)[0][1] == 20
    assert database.sql("SELECT position FROM checkpoint WHERE name = 'per_project'") == [(300,)]


@pytest.mark.parametrize(("appends", "walked"), [(8, False), (120, True)])
def test_a_few_events_about_many_large_views_are_caught_up_by_view_where_they_are_not_too_few(
    database: Database, appends: int, walked: bool
) -> None:
    """In log order each batch would be cut after a few, and write 24 MiB."""
    large_views(database)
    for number in range(appends):
        database.appended(f"L-{number % 10}", "y" * 100_000)

    said = projector("run", "--once", "-d", database.url).stderr

    assert ("views_rebuilt" in said) == walked
    assert database.views() == oracle.fold(database.log()).views
    assert database.index() == oracle.index(database.log())
    assert database.sql("SELECT DISTINCT position FROM checkpoint") == [(310 + appends,)]


def large_views(database: Database) -> None:
    """Ten sessions of 3 MB each, all of which is folded."""
    for session in range(10):
        database.created(f"L-{session}")
        for _ in range(30):
            database.appended(f"L-{session}", "x" * 100_000)
    catch_up(database)
