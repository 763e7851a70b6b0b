"""Views that cost much to write: written less often, waited for rightly, complete after a stop."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support import Database, daemon, logs, projector
from support.folding import catch_up, differences, examine, opened, refolded

from session_projector.projections import BUILT_IN
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.errors import LostRace
from session_projector.worker.folding.deferral import LONGEST_DELAY_S, Deferral

GIANT_BYTES = 24 * 1024 * 1024


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def tailing(url: str, clock: Clock, costly_s: float = 0) -> AsyncIterator[Tail]:
    """A daemon's tail, to which each view that was written once is a costly one."""
    async with opened(url) as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        yield Tail(thread, members, deferral=Deferral(costly_s, 0, clock))


async def turns(tail: Tail) -> None:
    """Fold all there is, but for what is deferred."""
    while await tail.iterate():
        pass


def deferred(database: Database) -> dict[str, tuple[int, int]]:
    """The sessions that are behind: what they hold, and what all others do."""
    rows = database.sql(
        "SELECT key, folded_position, read_position FROM deferred WHERE projection = 'sessions'"
    )
    return {key: (folded, read) for key, folded, read in rows}


# When it is written


async def test_a_costly_view_is_written_at_once_and_then_not_for_a_while(
    database: Database,
) -> None:
    clock = Clock()
    database.created("A-1", "1")
    async with tailing(database.url, clock) as tail:
        await turns(tail)
        database.appended("A-1", "2")
        await turns(tail)
        at_once = database.contents("A-1")
        database.appended("A-1", "3")
        database.created("B-1", "other")
        await turns(tail)
        meanwhile, others = database.contents("A-1"), database.contents("B-1")
        behind, position = deferred(database), database.position()
        clock.now += LONGEST_DELAY_S
        await turns(tail)

    assert at_once == meanwhile == ["1", "2"]
    assert others == ["other"]
    assert behind == {"session:A-1": (2, 4)}
    assert position == 2
    assert database.contents("A-1") == ["1", "2", "3"]
    assert deferred(database) == {}
    assert database.position() == 4


async def test_a_view_that_costs_little_is_never_deferred(database: Database) -> None:
    database.created("A-1", "1")
    async with tailing(database.url, Clock(), costly_s=60) as tail:
        for number in range(2, 5):
            database.appended("A-1", str(number))
            await turns(tail)
            assert deferred(database) == {}
            assert len(database.contents("A-1")) == number


async def test_an_event_that_cannot_be_folded_is_quarantined_when_its_view_is_written(
    database: Database,
) -> None:
    clock = Clock()
    database.created("A-1", "1")
    async with tailing(database.url, clock) as tail:
        await turns(tail)
        for _ in range(2):
            database.appended("A-1", "more")
            await turns(tail)
        twice = database.created("A-1")
        broken = database.insert("A-1", b"no event")
        await turns(tail)
        at_first = {*database.quarantine()}
        projector("verify", "-d", database.url)
        clock.now += LONGEST_DELAY_S
        await turns(tail)

    assert at_first == {broken}
    assert {*database.quarantine()} == {twice, broken}


async def test_it_is_said_once_as_long_as_its_events_keep_coming(database: Database) -> None:
    clock = Clock()
    database.created("A-1", "1")
    told = []
    async with tailing(database.url, clock) as tail:
        await turns(tail)
        for pause_s in (0, 0, 0, LONGEST_DELAY_S, 0, 0):
            clock.now += pause_s
            await turns(tail)
            with capture_logs() as said:
                database.appended("A-1", "more")
                await turns(tail)
            told.append([line["key"] for line in said if line["event"] == "view_deferred"])

    assert [{*keys} for keys in told] == [set(), {"session:A-1", "A-1"}, *[set()] * 4]
    assert len(told[1]) == 2


async def test_it_is_said_again_after_it_was_quiet(database: Database) -> None:
    clock = Clock()
    database.created("A-1", "1")
    with capture_logs() as said:
        async with tailing(database.url, clock) as tail:
            await turns(tail)
            for pause_s in (0, 0, LONGEST_DELAY_S, 0):
                clock.now += pause_s
                await turns(tail)
                clock.now += pause_s
                database.appended("A-1", "more")
                await turns(tail)

    told = [line for line in said if line["event"] == "view_deferred"]
    assert [line["key"] for line in told if line["projection"] == "sessions"] == ["session:A-1"] * 2


# Stops, kills, replays


@logs.examples(
    60,
    on_server=10,
    log=logs.lively_logs(),
    sizes=logs.batchings,
    steps=st.lists(st.sampled_from(["on", "on", "later", "kill", "stop", "verify"]), min_size=1),
)
def test_the_same_views_come_of_it_as_without_whatever_happens_in_between(
    database: Database, log: Any, sizes: list[int], steps: list[str]
) -> None:
    database, clock = database.renewed(), Clock()

    async def work() -> None:
        cuts = logs.batches(log, sizes)
        while cuts:
            async with tailing(database.url, clock) as tail:
                for step in steps:
                    for key, data, created_at in cuts.pop(0) if cuts else ():
                        database.insert(key, data, created_at=created_at)
                    await turns(tail)
                    clock.now += LONGEST_DELAY_S if step == "later" else 0
                    if step == "stop":
                        stop = anyio.Event()
                        stop.set()
                        await tail.run(stop)
                        assert deferred(database) == {}
                    if step in ("kill", "stop"):
                        break

    anyio.run(work)
    if "verify" in steps:
        assert differences(database) == {}
    catch_up(database)

    assert deferred(database) == {}
    assert database.everything() == refolded(database).everything()


async def test_what_another_daemon_wrote_meanwhile_is_noticed(database: Database) -> None:
    clock = Clock()
    async with tailing(database.url, clock) as tail:
        for number in ("1", "2", "3"):
            for session in ("B-1", "A-1"):
                (database.created if number == "1" else database.appended)(session, number)
                await turns(tail)
        position = database.position()
        async with tailing(database.url, clock) as other:
            await other.iterate()  # which writes the one that is not the furthest behind
        written = database.contents("A-1"), database.position()
        database.appended("A-1", "4")

        with pytest.raises(LostRace):
            await turns(tail)
    projector("run", "--once", "-d", database.url)

    assert written == (["1", "2", "3"], position)
    assert database.contents("A-1") == ["1", "2", "3", "4"]


async def left_behind(database: Database) -> None:
    """Leave a database whose session A-1 is at event 2, and all others at 4."""
    database.created("A-1", "1")
    async with tailing(database.url, Clock()) as tail:
        await turns(tail)
        for number in ("2", "3"):
            database.appended("A-1", number)
            await turns(tail)
        database.created("B-1", "other")
        await turns(tail)


DAMAGES = [
    "UPDATE view SET data = x'80' WHERE key = 'session:A-1'",
    "DELETE FROM view WHERE key = 'session:A-1'",
    "UPDATE dismissed SET note = note WHERE FALSE",
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_deferred_view_is_written_when_a_daemon_starts_again(
    database: Database, damage: str
) -> None:
    await left_behind(database)
    killed = database.contents("A-1")
    database.sql(damage)
    database.appended("A-1", "4")
    async with tailing(database.url, Clock()) as tail:
        await turns(tail)

    assert killed == ["1", "2"]
    assert database.contents("A-1") == ["1", "2", "3", "4"]
    assert deferred(database) == {}


REBUILT = "UPDATE checkpoint SET digest = 'of another log'"


@pytest.mark.parametrize("damage", [*DAMAGES, REBUILT])
async def test_a_replay_leaves_nothing_deferred(database: Database, damage: str) -> None:
    await left_behind(database)
    database.sql(damage)

    projector("replay", "-d", database.url)

    assert deferred(database) == {}
    assert database.contents("A-1") == ["1", "2", "3"]
    projector("verify", "-d", database.url)


async def test_a_dropped_table_costs_a_rebuild_and_no_event(database: Database) -> None:
    await left_behind(database)
    database.sql("DROP TABLE deferred")

    projector("run", "--once", "-d", database.url, check=4)
    projector("db", "setup", "-d", database.url)
    projector("run", "--once", "-d", database.url)

    assert database.contents("A-1") == ["1", "2", "3"]
    assert database.position() == 4


# What is said of it


async def test_waiting_is_for_the_view_of_the_event_alone(database: Database) -> None:
    await left_behind(database)
    now = ("--timeout", "0", "--projection", "sessions", "-d", database.url)

    projector("wait", "2", *now)
    projector("wait", "4", *now)
    own = projector("wait", "3", *now, check=1).stderr
    newest = projector("wait", *now, check=1).stderr

    for said in (own, newest):
        assert "sessions is at 2 (session:A-1 is deferred, as it costs much to write)" in said
    sql = (
        "SELECT (position >= {0} OR EXISTS (SELECT 1 FROM deferred WHERE projection = name"
        " AND read_position >= {0})) AND NOT EXISTS (SELECT 1 FROM deferred WHERE projection = name"
        " AND key = '{1}' AND folded_position < {0}) FROM checkpoint WHERE name = 'sessions'"
    )
    events = [(2, "session:A-1"), (3, "session:A-1"), (4, "session:B-1"), (5, "session:B-1")]
    assert [database.sql(sql.format(*one))[0][0] for one in events] == [1, 0, 1, 0]


async def test_status_and_doctor_name_what_is_deferred(database: Database) -> None:
    await left_behind(database)
    database.sql("UPDATE deferred SET cost_ms = 300, bytes = 5000000")

    told = projector("status", "-d", database.url).stdout
    as_json = json.loads(projector("status", "--json", "-d", database.url).stdout)
    sessions = as_json["projections"][0]
    dead = [one for one in examine(database.url) if one.check == "projections"]

    assert "session:A-1, 5,000,000 bytes, 300 ms each time, so it is written every 30 s" in told
    assert (sessions["position"], sessions["read_position"], sessions["lag_events"]) == (2, 4, 0)
    (view,) = sessions["deferred"]
    assert (view["key"], view["position"], view["delay_s"]) == ("session:A-1", 2, 30)
    assert {one.level for one in dead} == {"ok"}
    said = [one.found for one in dead]
    assert any(
        "session:A-1 costs much to write, and is behind: as of event 2" in one for one in said
    )


# With processes


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_others_go_on_beside_a_giant_session_and_a_stop_leaves_nothing_behind(
    database: Database, how: signal.Signals
) -> None:
    parts = ["x" * (GIANT_BYTES // 3)] * 3
    database.created("big")
    for part in parts:
        database.appended("big", part)
    with daemon(database.url) as running:
        running.wait_for("started")
        before = None
        for number in range(1000):
            database.appended("big", str(number))
            other = f"B-{number}"
            projector("wait", database.created(other, "other"), "-d", database.url)
            assert database.contents(other) == ["other"]
            held, _ = deferred(database).get("session:big", (None, None))
            if held and held == before:  # not one that is due at once
                break
            before = held
        line = running.wait_for("view_deferred")
        code = running.stop(how)
    if how is signal.SIGKILL:
        projector("run", "--once", "-d", database.url)

    assert code == (0 if how is signal.SIGTERM else -how)
    assert line["key"] == "session:big"
    assert deferred(database) == {}
    assert database.contents("big") == [*parts, *(str(n) for n in range(number + 1))]
    projector("verify", "-d", database.url)
