"""How the tail hears of commits: inotify where it works, else by asking."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import closing
from itertools import chain, repeat

import anyio
import anyio.lowlevel
import pytest
from support import Database
from support.folding import opened

from session_projector.projections import BUILT_IN
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.outage import Outage
from session_projector.worker.daemon.page import read_page
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.storage.port import Thread
from session_projector.worker.storage.sqlite import wakeup
from session_projector.worker.storage.sqlite.wakeup import UNHEARD
from session_projector.worker.storage.sqlite.wakeup import InotifyWakeup as Wakeup
from session_projector.worker.telemetry.state import DaemonState


async def never() -> bool:
    raise AssertionError("inotify makes asking needless")


async def unchanged() -> bool:
    return False


def in_turn(answers: Iterable[bool]) -> Callable[[], Awaitable[bool]]:
    """Whether there is something new, each time that it is asked."""
    left = iter(answers)

    async def changed() -> bool:
        return next(left)

    return changed


@pytest.fixture
async def thread(database: Database) -> AsyncIterator[Thread]:
    async with opened(database.path) as thread:
        yield thread


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is heard ends a wait within the time of a test."""
    monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 3600)


@pytest.mark.usefixtures("patient", "thread")
@pytest.mark.parametrize("mode", ["PASSIVE", "TRUNCATE"])
async def test_a_commit_is_heard_also_after_the_wal_was_made_anew(
    database: Database, mode: str
) -> None:
    with closing(Wakeup(database.path)) as heard:
        for number in range(5):
            database.created(f"A-{number}")
            assert await heard.wait(never, found=False)
            database.sql(f"PRAGMA wal_checkpoint({mode})")
            assert await heard.wait(never, found=True)


@pytest.mark.usefixtures("patient", "thread")
async def test_what_was_written_before_a_look_or_to_another_file_wakes_nobody(
    database: Database,
) -> None:
    with closing(Wakeup(database.path)) as heard:
        database.created("A-1")
        assert await heard.wait(never, found=True)
        (database.path.parent / "notes.txt").write_text("not ours")
        async with anyio.create_task_group() as tasks:
            woken: list[bool] = []

            async def wait() -> None:
                woken.append(await heard.wait(unchanged, found=False))

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            (database.path.parent / "notes.txt").write_text("not ours either")
            for _ in range(10):  # in which the loop hears of all that the kernel knows
                await anyio.lowlevel.checkpoint()
            heard.close()

    assert woken == [False]


@pytest.mark.usefixtures("patient", "thread")
async def test_a_commit_that_cannot_be_seen_yet_is_looked_for_again(database: Database) -> None:
    answers = [*repeat(False, len(wakeup.AGAIN_S) - 1), True]
    with closing(Wakeup(database.path)) as heard:
        database.created("A-1")
        assert await heard.wait(never, found=False)

        assert await heard.wait(in_turn(answers), found=False)  # no look found it so far


@pytest.mark.usefixtures("patient", "thread")
async def test_a_commit_that_was_heard_before_a_look_which_came_too_early_is_looked_for_again(
    database: Database,
) -> None:
    """The writer waits for its last event, and its next commit is being stored when that look finds
    the last one: the WAL is written, and nothing more will be heard."""
    answers = [*repeat(False, len(wakeup.AGAIN_S) - 1), True]
    with closing(Wakeup(database.path)) as heard:
        database.created("A-1")
        assert await heard.wait(never, found=True)

        assert await heard.wait(in_turn(answers), found=False)


@pytest.mark.usefixtures("patient", "thread")
async def test_a_commit_is_heard_at_once_while_an_earlier_one_is_looked_for(
    database: Database,
) -> None:
    with closing(Wakeup(database.path)) as heard:
        assert await heard.wait(never, found=True)
        database.created("A-1")

        assert await heard.wait(never, found=False)


@pytest.mark.usefixtures("patient", "thread")
async def test_what_is_heard_after_a_look_in_vain_makes_no_look_of_its_own_and_is_not_forgotten(
    database: Database,
) -> None:
    """Who writes all the time, but no events, would make the tail look all the time."""
    answers = iter([False] * len(wakeup.AGAIN_S))
    with closing(Wakeup(database.path)) as heard:
        database.created("A-1")
        assert await heard.wait(never, found=False)
        database.created("A-2")

        assert await heard.wait(in_turn(answers), found=False)

    assert next(answers, None) is None


def test_no_look_comes_later_than_an_event_may_and_a_slow_disk_is_waited_for() -> None:
    assert max(wakeup.AGAIN_S) < 0.05
    assert sum(wakeup.AGAIN_S) > 0.5


@pytest.mark.usefixtures("patient")
async def test_what_was_committed_before_there_was_a_wal_to_listen_to_is_looked_for(
    database: Database,
) -> None:
    with closing(Wakeup(database.path)) as heard:
        async with opened(database.path) as thread:
            database.created("A-1")
            assert await heard.wait(thread.changed, found=False)
            assert await heard.wait(never, found=True)
            database.created("A-2")
            assert await heard.wait(never, found=False)


async def test_where_inotify_says_nothing_of_commits_it_is_asked_again_and_again(
    database: Database, thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Wakeup(database.path.with_name("another.db"))) as deaf:
        monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 0.01)
        for number in range(UNHEARD):
            database.created(f"A-{number}")
            assert await deaf.wait(thread.changed, found=False)  # asked at the end
            assert await deaf.wait(never, found=True)
        monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 3600)
        database.created("A-9")

        assert await deaf.wait(thread.changed, found=False)


async def test_scattered_commits_that_were_not_heard_of_do_not_end_the_listening(
    database: Database, thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Wakeup(database.path)) as heard:

        async def commit(*, hears: bool) -> None:
            monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 3600 if hears else 0.01)
            heard._again = iter(())
            database.created("A-1")
            if not hears:
                heard._hears()
            assert await heard.wait(never if hears else thread.changed, found=False)
            assert await heard.wait(never, found=True)

        for hears in (False, True, *[False] * (UNHEARD - 1), True):
            await commit(hears=hears)


async def test_it_may_ask_in_vain_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 3600)
    monkeypatch.setattr(wakeup, "IDLE_POLL_S", 0)
    answers = chain(repeat(False, 1100), [True])

    async def changed() -> bool:
        return next(answers)

    with closing(Wakeup()) as asking:
        assert await asking.wait(changed, found=False)


async def test_without_inotify_it_asks(
    database: Database, thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inotify_simple", None)
    monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 3600)
    with closing(Wakeup(database.path)) as asking:
        await thread.changed()
        database.created("A-1")

        assert await asking.wait(thread.changed, found=False)


@pytest.mark.parametrize("others", [[], ["INSERT INTO view VALUES ('p', 'p', x'80', '', 1, 1)"]])
async def test_a_patient_look_sees_what_is_committed_meanwhile(
    database: Database, thread: Thread, others: list[str]
) -> None:
    await thread.run(lambda store: read_page(store, [], None, 10))
    looks = asyncio.create_task(
        thread.run(lambda store: read_page(store, [], None, 10, patience_s=3600))
    )
    await asyncio.sleep(0)
    for statement in others:
        database.sql(statement)
    assert not looks.done()
    database.created("A-1")

    assert [row.seq for row in (await looks).rows] == [1]


async def test_an_idle_tail_looks_for_itself_now_and_then_whatever_is_heard(
    database: Database, thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unchanged:
        run = staticmethod(thread.run)

        async def changed(self, patience_s: float = 0) -> bool:
            del patience_s
            if not database.log():
                database.created("A-1")
            return False

    monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 0.001)
    with closing(Wakeup(database.path.with_name("another.db"))) as deaf:
        members = [await load(thread, projection) for projection in BUILT_IN]
        state, stop = DaemonState(), anyio.Event()
        monkeypatch.setattr(state, "committed", lambda *_: stop.set())
        tail = Tail(Unchanged(), members, Outage(state), wakeup=deaf)
        await tail.run(stop)

    assert database.contents("A-1") == []
