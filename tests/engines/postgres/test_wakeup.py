"""How the tail hears of commits on PostgreSQL: writers ring a bell, only for who listens."""

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import psycopg
import pytest
from anyio.abc import TaskGroup
from support.postgres import Server

from session_projector.worker.storage.postgres import migrate, wakeup
from session_projector.worker.storage.postgres.connection import connect
from session_projector.worker.storage.postgres.locks import BELL_CLASS
from session_projector.worker.storage.postgres.target import Target, parse
from session_projector.worker.storage.postgres.wakeup import Bell

Writer = psycopg.Connection[Any]
Changed = Callable[[], Awaitable[bool]]
WRITERS, EACH = 8, 400
HOLDER = f"""
    SELECT pid FROM pg_locks WHERE classid = {BELL_CLASS} AND mode = 'ExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Log:
    """An event log as any program sees it, asked for new events as the daemon asks its store."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stack = ExitStack()
        self._connection = self.writer()
        self._ids = count(1)
        self._seen = 0

    def close(self) -> None:
        self._stack.close()

    def writer(self) -> Writer:
        return self._stack.enter_context(closing(connect(self._target)))

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def write(self, writer: Writer | None = None, event_id: str = "") -> str:
        event_id = event_id or f"e{next(self._ids)}"
        (writer or self._connection).execute(
            b"INSERT INTO public.event_log (id, key, data, created_at) VALUES (%s, 'A', '{}', 1)",
            [event_id],
        )
        return event_id

    def holder(self) -> int:
        """The session that holds the bell, 0 where none does."""
        return int((self.sql(HOLDER) or [(0,)])[0][0])

    async def held(self, by: Callable[[int], bool] = bool) -> int:
        """Wait until a session holds the bell, or one that is meant."""
        while not by(holder := await anyio.to_thread.run_sync(self.holder)):
            await anyio.lowlevel.checkpoint()
        return holder

    async def changed(self) -> bool:
        """Whether there are events that were not there when this was last asked."""
        found = await anyio.to_thread.run_sync(self.sql, "SELECT count(*) FROM public.event_log")
        before, self._seen = self._seen, found[0][0]
        return self._seen > before


async def unchanged() -> bool:
    return False


@pytest.fixture
def target(postgres: Server) -> Iterator[Target]:
    with postgres.database() as url:
        migrate.setup(parse(url))
        yield parse(url)


@pytest.fixture
def log(target: Target) -> Iterator[Log]:
    with closing(Log(target)) as log:
        yield log


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is heard ends a wait within the time of a test."""
    monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 3600)
    monkeypatch.setattr(wakeup, "ANOTHER_S", 3600)


class Wait:
    """One wait of a daemon; `changed` is what it asks, `answers` what it said once it has ended."""

    def __init__(self, tasks: TaskGroup, bell: Bell, changed: Changed = unchanged) -> None:
        self._bell = bell
        self._changed = changed
        self.asked = 0
        self.answers: list[bool] = []
        tasks.start_soon(self._wait)

    async def _wait(self) -> None:
        self.answers.append(await self._bell.wait(self._ask, found=False))

    async def _ask(self) -> bool:
        self.asked += 1
        return await self._changed()

    async def has_asked(self, times: int = 1) -> None:
        while self.asked < times:
            await anyio.lowlevel.checkpoint()


async def test_a_commit_rings_and_nobody_asks_meanwhile(target: Target, log: Log) -> None:
    with closing(Bell(target)) as bell:
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                wait = Wait(tasks, bell)
                await wait.has_asked()
                assert log.holder()
                log.write()
            assert wait.answers == [True]
            assert wait.asked == 1
            assert await bell.wait(unchanged, found=True)


async def test_the_lock_is_kept_over_quiet_waits_and_let_go_after_what_was_found(
    target: Target, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Bell(target)) as bell:
        monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 0.05)
        holders = set()
        for _ in range(3):
            assert not await bell.wait(log.changed, found=False)
            holders.add(log.holder())
        log.write()
        assert await bell.wait(log.changed, found=False)
        holders.add(log.holder())
        assert await bell.wait(log.changed, found=True)

        assert len(holders) == 1
        assert holders != {0}
        assert log.holder() == 0


async def test_the_lock_is_kept_after_what_was_found_unless_another_rang_meanwhile(
    target: Target, log: Log
) -> None:
    with closing(Bell(target)) as bell:
        assert not bell.hears_on()
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                wait = Wait(tasks, bell, log.changed)
                await wait.has_asked(0 if bell.hears_on() else 1)
                holder = await log.held()
                log.write()
            assert wait.answers == [True]
            assert bell.hears_on()
            assert log.holder() == holder
        log.write()
        while bell.hears_on():  # until the server has told of it
            await anyio.lowlevel.checkpoint()
        assert await bell.wait(log.changed, found=True)
        assert log.holder() == 0
        assert not bell.hears_on()


async def test_a_retry_that_is_ignored_rings_and_the_next_wait_goes_on_listening(
    target: Target, log: Log
) -> None:
    log.write(event_id="same")
    with closing(Bell(target)) as bell:
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                wait = Wait(tasks, bell)
                await wait.has_asked()
                assert log.holder()
                log.write(event_id="same")
            assert wait.answers == [True]


async def test_a_commit_that_was_on_its_way_is_found_though_it_does_not_ring(
    target: Target, log: Log
) -> None:
    writer = log.writer()
    with closing(Bell(target)) as bell:
        async with anyio.create_task_group() as tasks:
            with writer.transaction():
                log.write(writer)
                wait = Wait(tasks, bell, log.changed)
                await wait.has_asked(3)
                assert log.holder() == 0
    assert wait.answers == [True]


async def test_answers_that_were_in_vain_come_ever_more_slowly(
    target: Target, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a gap in the positions is open."""
    monkeypatch.setattr(wakeup, "VAIN_S", (0.001, 0.002, 3600))

    async def always() -> bool:
        return True

    with closing(Bell(target)) as bell:
        for _ in range(3):
            assert await bell.wait(always, found=False)
        async with anyio.create_task_group() as tasks:
            wait = Wait(tasks, bell, always)
            await anyio.wait_all_tasks_blocked()
            assert log.holder()
            log.write()
        assert wait.answers == [True]
        assert wait.asked == 0
        assert await bell.wait(always, found=True)
        assert await bell.wait(always, found=False)


async def test_every_daemon_is_rung_and_listens_by_itself_when_the_one_with_the_lock_lets_go(
    target: Target, log: Log
) -> None:
    with closing(Bell(target)) as first, closing(Bell(target)) as second:
        async with anyio.create_task_group() as tasks:
            waits = [Wait(tasks, first)]
            await waits[0].has_asked()
            ours = log.holder()
            waits.append(Wait(tasks, second))
            await waits[1].has_asked()
            log.write()
        assert [wait.answers for wait in waits] == [[True], [True]]
        async with anyio.create_task_group() as tasks:
            wait = Wait(tasks, second)
            await wait.has_asked()
            assert log.holder() == ours
            assert await first.wait(unchanged, found=True)
            await wait.has_asked(2)
            assert log.holder() not in (0, ours)
            wait = Wait(tasks, first)
            await wait.has_asked()
            second.close()
            await wait.has_asked(2)
            assert log.holder() == ours
            log.write()
        assert wait.answers == [True]


async def test_one_whose_session_is_ended_listens_again_and_so_do_those_that_relied_on_it(
    target: Target, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "ANOTHER_S", 0.01)
    first, second, too = Bell(target), Bell(target), Log(target)
    with closing(first), closing(second), closing(too):
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                waits = [Wait(tasks, first, log.changed), Wait(tasks, second, too.changed)]
                for wait in waits:
                    await wait.has_asked()
                ended = await log.held()
                log.sql(f"SELECT pg_terminate_backend({ended})")
                await log.held(lambda holder: holder not in (0, ended))
                log.write()
            assert [wait.answers for wait in waits] == [[True], [True]]
            for bell, asker in ((first, log), (second, too)):
                await asker.changed()
                assert await bell.wait(asker.changed, found=True)


async def test_it_asks_where_no_connection_is_left(target: Target, log: Log) -> None:
    log.sql("CREATE ROLE lonely LOGIN CONNECTION LIMIT 0")
    try:
        lonely = target._replace(settings={**target.settings, "user": "lonely"})
        with closing(Bell(lonely)) as bell:
            async with anyio.create_task_group() as tasks:
                wait = Wait(tasks, bell, log.changed)
                await wait.has_asked(3)
                log.write()
            assert wait.answers == [True]
    finally:
        log.sql("DROP ROLE lonely")


async def test_a_bell_that_does_not_ring_is_hung_again(
    target: Target, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang at another server than the one that is read."""
    log.sql("ALTER TABLE public.event_log DISABLE TRIGGER event_log_bell")
    monkeypatch.setattr(wakeup, "LONGEST_IDLE_S", 0.05)
    with closing(Bell(target)) as bell:
        assert not await bell.wait(log.changed, found=False)
        holder = log.holder()
        log.write()
        assert await bell.wait(log.changed, found=False)
        assert await bell.wait(log.changed, found=True)
        while log.holder() in (0, holder):
            assert not await bell.wait(log.changed, found=False)


async def test_whoever_waits_goes_on_when_it_is_closed(target: Target, log: Log) -> None:
    bell = Bell(target)
    async with anyio.create_task_group() as tasks:
        wait = Wait(tasks, bell)
        await wait.has_asked()
        bell.close()
    assert wait.answers == [False]
    assert not await bell.wait(unchanged, found=False)
    await log.held(lambda holder: holder == 0)


async def test_no_commit_falls_between(target: Target, log: Log) -> None:
    """Each writer goes on only when its event was found, or after some more events at once. A wait
    that misses a commit would never end."""
    found = anyio.Condition()
    seen: set[str] = set()
    chance = random.Random(3)

    async def write() -> None:
        writer = log.writer()
        for _ in range(EACH // 4):
            ids = []
            with writer.transaction():
                ids += [await anyio.to_thread.run_sync(log.write, writer) for _ in range(2)]
            for _ in range(chance.randrange(3)):
                ids.append(await anyio.to_thread.run_sync(log.write, writer))
            async with found:
                while not seen.issuperset(ids):
                    await found.wait()

    async with anyio.create_task_group() as tasks:
        with closing(Bell(target)) as bell:

            async def follow() -> None:
                while True:
                    rows = await anyio.to_thread.run_sync(
                        log.sql, "SELECT id FROM public.event_log"
                    )
                    new = {event_id for (event_id,) in rows} - seen
                    seen.update(new)
                    async with found:
                        found.notify_all()
                    await bell.wait(log.changed, found=bool(new))

            tasks.start_soon(follow)
            async with anyio.create_task_group() as writers:
                for _ in range(WRITERS):
                    writers.start_soon(write)
            tasks.cancel_scope.cancel()
    assert len(seen) > WRITERS * EACH // 2
