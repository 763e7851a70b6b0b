"""Beside other writers: a batch is folded at once, and written by several short transactions."""

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from support import Database, projector
from support.folding import (
    Heard,
    catch_up,
    compare,
    differences,
    examine,
    refolded,
    repair,
    replay,
    target,
)

from session_projector.projections import BUILT_IN
from session_projector.worker.daemon import batch_size, tail
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.errors import CheckFailed, DatabaseUnavailable, LostRace
from session_projector.worker.folding import pacing
from session_projector.worker.operations.wait import wait
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Change, CommitStats, Thread

OLD, NEW = [f"A-{n}" for n in range(6)], ["B-0", "B-1"]
COMMITS = 1 + len(OLD + NEW)
"""The index, then each view in a transaction of its own."""
BETWEEN = pytest.mark.parametrize("commits", [1, 2, 5, 8])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions that write one row each."""
    monkeypatch.setattr(pacing, "FIRST_BYTES", 1)


@pytest.fixture
def behind(database: Database) -> Database:
    """A database where all sessions have an event that is not folded, and one a second one that
    cannot be."""
    for session in OLD:
        database.created(session, "1")
    catch_up(database)
    for session in OLD:
        database.appended(session, "2")
    for session in NEW:
        database.created(session, "1")
    database.created(OLD[0])
    return database


class Killed(Exception):
    """A daemon ended."""


class Noting:
    """A store that counts its commits."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, changes: Sequence[Change], *, bulk: bool = False) -> CommitStats:
        self.commits += 1
        stats: CommitStats = self._store.commit(changes, bulk=bulk)
        return stats


class Pausing:
    """A store's thread that does something after each commit, before anybody knows of it."""

    def __init__(self, thread: Thread, after: Callable[[int], Awaitable[object]]) -> None:
        self.commits = 0
        self._thread = thread
        self._after = after

    async def run(self, work: Callable[[Any], Any]) -> Any:
        def noted(store: Any) -> tuple[Any, int]:
            noting = Noting(store)
            return work(noting), noting.commits

        done, commits = await self._thread.run(noted)
        if commits:
            self.commits += commits
            await self._after(self.commits)
        return done


@asynccontextmanager
async def tailing(
    database: Database, after: Callable[[int], Awaitable[object]], *, beside: bool = True
) -> AsyncIterator[tuple[Tail, Pausing]]:
    """A daemon's tail, `beside` other writers or not, that waits for nobody's lock."""
    others = pacing.WritePacing()
    others.wrote(others=beside)
    async with target(database.url, Limits(busy_timeout_s=0.01)).open_thread() as thread:
        pausing = Pausing(thread, after)
        members = [await load(thread, projection) for projection in BUILT_IN]
        yield Tail(pausing, members, pacing=others), pausing


async def fold(
    database: Database, after: Callable[[int], Awaitable[object]], *, beside: bool = True
) -> int:
    """Fold all there is; returns how many commits that took."""
    async with tailing(database, after, beside=beside) as (one, pausing):
        while await one.iterate():
            pass
    return pausing.commits


async def killed(database: Database, at: int) -> None:
    """End right after so many commits."""

    async def end(commits: int) -> None:
        if commits == at:
            raise Killed

    with pytest.raises(Killed):
        await fold(database, end)


def deferred(database: Database) -> list[Any]:
    return database.sql("SELECT projection, key FROM deferred")


async def nothing(_: int) -> None: ...


# What others see meanwhile


def test_beside_others_a_batch_is_written_row_by_row_and_without_them_at_once(
    behind: Database,
) -> None:
    twin = behind.copied()

    assert anyio.run(fold, behind, nothing) == COMMITS
    assert anyio.run(partial(fold, twin, nothing, beside=False)) == 1
    assert behind.everything() == twin.everything() == refolded(behind).everything()
    assert deferred(behind) == []


@pytest.mark.sqlite
async def test_the_first_batch_is_written_row_by_row_where_others_wrote_while_it_was_read(
    behind: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "FIRST_EVENTS", 3)
    async with tailing(behind, nothing, beside=False) as (one, pausing):
        behind.appended(NEW[0], "2")
        assert await one.iterate()

    assert pausing.commits == 1 + 3


def test_no_more_views_are_deferred_at_once_than_are_soon_listed(
    behind: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "CHUNKED_VIEWS", 3)
    most = 0

    async def count(_: int) -> None:
        nonlocal most
        most = max(most, len(deferred(behind)))

    anyio.run(fold, behind, count)

    assert most == 3
    assert behind.everything() == refolded(behind).everything()


def test_no_reader_is_told_of_a_view_that_is_not_written_yet(behind: Database) -> None:
    before, final = behind.position(), refolded(behind).views()
    last = {key: seq for seq, _, key, *_ in behind.log()}
    newest = max(last.values())
    ready = (
        "SELECT (c.position >= {0} OR EXISTS (SELECT 1 FROM deferred WHERE projection = c.name"
        " AND read_position >= {0})) AND NOT EXISTS (SELECT 1 FROM deferred WHERE projection ="
        " c.name AND key = '{1}' AND folded_position < {0}) FROM checkpoint AS c"
        " WHERE c.name = 'sessions'"
    )
    seen = []

    async def look(_: int) -> None:
        with target(behind.url).open() as store:

            def waited(seq: int | None) -> bool:
                with suppress(CheckFailed):
                    wait(target(behind.url), store, seq, timeout_s=0, names=["sessions"])
                    return True
                return False

            views = behind.views()
            written = {key for key in last if views.get(key) == final[key]}
            assert {key for key, seq in last.items() if waited(seq)} == written
            assert {
                key for key, seq in last.items() if behind.sql(ready.format(seq, key))[0][0]
            } == written
            assert waited(None) == (written == last.keys())
            assert behind.position() == (newest if written == last.keys() else before)
            seen.append(len(written))

    anyio.run(fold, behind, look)

    sessions = len(OLD + NEW)
    assert seen == [*range(sessions + 1)]


def test_who_remembers_how_far_the_index_was_read_misses_nothing(behind: Database) -> None:
    for session in reversed(OLD):  # rows are written by key
        behind.appended(session, "3")
    select = "SELECT session_id, last_seq FROM session_index WHERE last_seq > {} ORDER BY last_seq"
    seen: dict[str, int] = {}

    async def look(_: int) -> None:
        seen.update(behind.sql(select.format(max(seen.values(), default=0))))

    anyio.run(fold, behind, look)

    assert seen == dict(behind.sql(select.format(0)))


def test_each_moment_of_it_is_right_to_a_verify(behind: Database) -> None:
    async def verify(_: int) -> None:
        heard = Heard()
        await compare(target(behind.url), BUILT_IN, heard)
        assert heard.kinds == {}

    assert anyio.run(fold, behind, verify) == COMMITS


# Kills, others that write and fix


@BETWEEN
def test_a_kill_between_two_transactions_loses_and_doubles_nothing(
    behind: Database, commits: int
) -> None:
    anyio.run(killed, behind, commits)
    for session in OLD + NEW:
        behind.appended(session, "after the kill")
    assert differences(behind) == {}
    with capture_logs() as said:
        catch_up(behind)

    assert behind.everything() == refolded(behind).everything()
    assert deferred(behind) == []
    assert [line for line in said if line["log_level"] != "info"] == []


@BETWEEN
@pytest.mark.parametrize("damage", ["data = x'80'", "last_offset_id = 'damaged'"])
def test_a_replay_after_a_kill_leaves_all_views_whole(
    behind: Database, commits: int, damage: str
) -> None:
    anyio.run(killed, behind, commits)
    behind.sql(f"UPDATE view SET {damage} WHERE key IN ('session:A-0', 'session:A-5')")
    repair(behind)

    assert behind.everything() == refolded(behind).everything()
    assert deferred(behind) == []


@BETWEEN
def test_a_replay_meanwhile_is_noticed_and_nothing_of_it_is_overwritten(
    behind: Database, commits: int
) -> None:
    async def mend(at: int) -> None:
        if at == commits:
            behind.sql("UPDATE view SET last_offset_id = 'damaged' WHERE key = 'session:A-0'")
            await replay(target(behind.url), BUILT_IN, Heard())

    async def work() -> None:
        with pytest.raises(LostRace):
            await fold(behind, mend)

    anyio.run(work)
    catch_up(behind)

    assert behind.everything() == refolded(behind).everything()


@BETWEEN
def test_what_others_write_meanwhile_is_folded_after_it(behind: Database, commits: int) -> None:
    async def write(at: int) -> None:
        if at == commits:
            for session in OLD + NEW:
                behind.appended(session, "meanwhile")

    anyio.run(fold, behind, write)

    assert behind.everything() == refolded(behind).everything()
    assert deferred(behind) == []


@pytest.mark.sqlite
@BETWEEN
def test_where_another_takes_the_lock_in_between_what_is_left_is_folded_again(
    behind: Database, commits: int
) -> None:
    with closing(sqlite3.connect(behind.path, isolation_level=None)) as other:

        async def lock(at: int) -> None:
            if at == commits:
                other.execute("BEGIN IMMEDIATE")

        async def work() -> None:
            async with tailing(behind, lock) as (one, _):
                with pytest.raises(DatabaseUnavailable):
                    await one.iterate()
                other.execute("ROLLBACK")
                behind.appended(OLD[-1], "later")
                while await one.iterate():
                    pass

        anyio.run(work)

    assert behind.everything() == refolded(behind).everything()
    assert deferred(behind) == []


# A start after a kill


def test_what_a_killed_daemon_left_is_written_together(behind: Database) -> None:
    """However many views that is."""
    anyio.run(killed, behind, 1)

    assert anyio.run(partial(fold, behind, nothing, beside=False)) == 1
    assert behind.everything() == refolded(behind).everything()


def test_of_what_a_killed_daemon_left_nobody_lists_each_view(behind: Database) -> None:
    anyio.run(killed, behind, 3)

    told = json.loads(projector("status", "--json", "-d", behind.url).stdout)["projections"][0]
    text = projector("status", "-d", behind.url).stdout
    found = [one for one in examine(behind.url) if one.check == "projections"]
    late = projector("wait", "--timeout", "0", "-d", behind.url, check=1).stderr

    assert (told["position"], told["read_position"], told["deferred"]) == (6, 6, [])
    assert told["lag_events"] == 9
    assert "\n  deferred " not in text
    assert [one.level for one in found] == ["ok"]
    assert "sessions: 6 views of its last batch are not written yet" in found[0].found
    assert "costs much" not in late
