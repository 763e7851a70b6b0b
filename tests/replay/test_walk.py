"""A full scan while its database changes: events come, races are lost, backups are restored."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import pytest
from support import Database, event
from support.extensions import CreatedPerDay
from support.folding import (
    Heard,
    catch_up,
    checkpoint,
    differences,
    opened,
    repair,
    run_once,
    target,
)
from support.folding import replay as replay_all

from session_projector.projections import BUILT_IN
from session_projector.projections.event import Event, SessionCreated
from session_projector.projections.projection import PerSession, Projection, Table
from session_projector.worker.errors import LostRace
from session_projector.worker.replay import fix
from session_projector.worker.replay import rebuild as replay
from session_projector.worker.replay.walk import WalkProgress
from session_projector.worker.storage.limits import Limits

SESSIONS = BUILT_IN[0]


class Meanwhile(Heard):
    """A listener that does something once, after the step of a given number."""

    def __init__(self, action: Callable[[], None], *, after: int) -> None:
        super().__init__()
        self._action = action
        self._left = after

    def step(self, tally: Any, step: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._action()


def replayed(
    database: Database,
    projections: tuple[Projection, ...],
    listener: Meanwhile,
    limits: Limits | None = None,
) -> None:
    anyio.run(replay_all, target(database.url, limits), projections, listener)


async def repaired_while(
    database: Database, projection: Projection, change: Callable[[], Any]
) -> list[Any]:
    """Repair while the events of `change` are folded after the first step; what it reports."""
    found: list[Any] = []
    async with opened(database.url) as thread:
        steps = replay.repair(thread, projection, await checkpoint(thread, projection))
        found += (await anext(steps)).differences
        change()
        await run_once(database.url, [projection])
        async for step in steps:
            found += step.differences
    return found


class Seeing(PerSession[tuple[Any, ...]]):
    """The name of each session, and which events were given to it."""

    version = 1

    def __init__(self, name: str) -> None:
        self.name = name
        self.table = Table(name=name, columns={"session": "TEXT"}, key="session")
        self.seen: list[Event] = []

    def created(self, event: Event, body: SessionCreated) -> tuple[Any, ...]:
        self.seen.append(event)
        return (event.session_id,)


def test_several_projections_are_compared_with_one_reading_of_the_log(database: Database) -> None:
    projections = one, other = Seeing("one"), Seeing("other")
    for number in range(10):
        database.created(f"A-{number}")
    catch_up(database, projections)
    for projection in projections:
        projection.seen.clear()

    assert differences(database, projections, Limits(page_events=4)) == {}

    assert [event.seq for event in one.seen] == [*range(1, 11)]
    assert [*map(id, one.seen)] == [*map(id, other.seen)]


def test_a_view_is_folded_from_all_pages_of_its_events(database: Database) -> None:
    database.created("A-1", "1")
    for number in range(2, 7):
        database.appended("A-1", str(number))
    catch_up(database)
    database.sql("UPDATE view SET data = x'80'")
    database.appended("A-1", "7")

    catch_up(database, limits=Limits(page_events=2))

    assert database.contents("A-1") == ["1", "2", "3", "4", "5", "6", "7"]


def test_a_backup_restored_during_a_repair_is_not_given_views_ahead_of_its_checkpoint(
    database: Database,
) -> None:
    """Its log is the same one, so that only the position tells; the daemon would fold twice."""
    for number in range(4):
        database.created(f"A-{number}", "one")
    catch_up(database)
    for number in range(4):
        database.appended(f"A-{number}", "two")
    backup = database.copied()
    catch_up(database)

    restore = Meanwhile(lambda: database.restore(backup), after=1)
    replayed(database, BUILT_IN, restore, Limits(page_events=2))

    assert [database.contents(f"A-{number}") for number in range(4)] == [["one", "two"]] * 4
    assert differences(database) == {}


def test_rows_of_a_backup_restored_during_a_repair_are_not_taken_for_orphaned(
    database: Database,
) -> None:
    """What was gathered from the log before says nothing of the log that is there now."""
    projections = (CreatedPerDay(),)
    other = database.another()
    for one, project in ((database, "P"), (other, "Q")):
        one.created("A-1", project=project)
        catch_up(one, projections)

    restore = Meanwhile(lambda: database.restore(other), after=3)
    replayed(database, projections, restore)

    assert database.sql("SELECT project, count FROM created_per_day") == [("Q", 1)]


@pytest.mark.parametrize("projection", [SESSIONS, CreatedPerDay()], ids=lambda one: str(one.name))
async def test_a_view_that_is_new_since_the_scan_began_is_not_orphaned(
    database: Database, projection: Projection
) -> None:
    database.created("A-1")
    await run_once(database.url, [projection])

    found = await repaired_while(database, projection, lambda: database.created("A-2", project="Q"))

    assert found == []
    assert len(database.sql(f"SELECT 1 FROM {projection.table.name}")) == 2


async def test_the_skipped_count_is_repaired_as_of_where_the_checkpoint_is_by_then(
    database: Database,
) -> None:
    database.created("A-1")
    database.insert("A-1", event("task_created", {}))
    await run_once(database.url)
    database.sql("UPDATE checkpoint SET skipped = 9")

    found = await repaired_while(
        database, SESSIONS, lambda: database.insert("A-1", event("task_created", {}))
    )

    assert [difference.row for difference in found] == ["checkpoint"]
    assert database.sql("SELECT skipped FROM checkpoint WHERE name = 'sessions'") == [(2,)]


@pytest.mark.parametrize(
    ("damage", "change", "kind"),
    [
        ("UPDATE view SET data = x'80'", "UPDATE", "view damaged"),
        ("UPDATE view SET key = 'session:a' || id, id = 'a' || id", "DELETE", "view ghost"),
    ],
)
def test_rows_repaired_before_a_race_was_lost_are_reported_and_the_others_repaired(
    database: Database, monkeypatch: pytest.MonkeyPatch, damage: str, change: str, kind: str
) -> None:
    """The checkpoint moves right after the first of three rows, each in its own transaction."""
    for number in range(3):
        database.created(f"A-{number}")
    catch_up(database)
    database.sql(damage)
    database.on(
        f"AFTER {change}",
        "view",
        "UPDATE checkpoint SET generation = generation + 1 WHERE name = 'sessions'",
        when="OLD.key LIKE '%A-0'",
    )
    monkeypatch.setattr(fix, "CHUNK_CHANGES", 1)

    assert repair(database)[kind] == 3
    assert differences(database) == {}


def test_a_quarantine_is_repaired_in_as_many_transactions_as_it_takes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        database.insert(f"A-{number}", b"\xc1")
    catch_up(database)
    before = database.quarantine()
    database.sql("DELETE FROM quarantine WHERE projection = 'sessions' AND seq > 2")
    database.sql("UPDATE quarantine SET seq = seq + 90 WHERE projection = 'session_index'")
    monkeypatch.setattr(fix, "CHUNK_CHANGES", 2)

    assert repair(database) == {"quarantine missing": 8, "quarantine ghost": 5}
    assert differences(database) == {}
    assert database.quarantine() == before


async def comparing(steps: AsyncGenerator[WalkProgress, None]) -> None:
    """Take the steps that check the index, and the first that compares views."""
    while not (await anext(steps)).views:
        pass


async def test_of_two_rebuilds_only_the_later_one_goes_on(database: Database) -> None:
    for number in range(6):
        database.created(f"A-{number}")
    limits = Limits(page_events=2)
    async with (
        target(database.url, limits).open_thread() as one,
        target(database.url, limits).open_thread() as other,
    ):
        first = replay.rebuild(one, SESSIONS, await checkpoint(one, SESSIONS))
        await comparing(first)
        second = replay.rebuild(other, SESSIONS, await checkpoint(other, SESSIONS))
        await comparing(second)

        with pytest.raises(LostRace):
            await anext(first)
        async for _ in second:
            pass

    await run_once(database.url)
    assert len(database.views()) == 6
