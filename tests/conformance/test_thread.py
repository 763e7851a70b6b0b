"""A store in a thread of its own: work comes back whole, also to whoever is cancelled meanwhile."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack

import anyio
import anyio.lowlevel
import pytest
from conformance.engines import Outsider
from support.interrupted import Interrupted
from support.laws import COUNTED, append, change, later

from session_projector.worker.errors import (
    DatabaseUnavailable,
    InterventionRequired,
    LostRace,
    ProjectorError,
)
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Checkpoint, Database, Store, Thread


@pytest.fixture
async def thread(database: Database) -> AsyncIterator[Thread]:
    async with database.open_thread() as thread:
        yield thread


async def test_several_calls_are_one_piece_of_work(thread: Thread) -> None:
    def work(store: Store) -> tuple[list[int], int, str]:
        return append(store, "e1", "e2"), store.log.count(), threading.current_thread().name

    positions, count, name = await thread.run(work)

    assert count == 2
    assert positions == sorted(positions)
    assert name != threading.current_thread().name
    assert await thread.run(lambda _: threading.current_thread().name) == name


async def test_an_error_comes_out_as_it_is_and_the_thread_goes_on(
    thread: Thread, outside: Outsider
) -> None:
    absent = Checkpoint("absent", 1, 0, 0, "", 0)
    with pytest.raises(LostRace):
        await thread.run(lambda store: store.commit([change(COUNTED, absent)]))
    with pytest.raises(ZeroDivisionError, match="modulo by zero"):
        await thread.run(lambda _: 1 // 0)
    with outside.locking(), pytest.raises(DatabaseUnavailable):
        await thread.run(lambda store: append(store, "e1"))

    assert await thread.run(lambda store: append(store, "e1")) == [1]


async def test_a_cancelled_commit_locks_nobody_out(
    database: Database, url: str, outside: Outsider
) -> None:
    """Cancelling does not take back the BEGIN that waits for the lock in the thread."""
    database = storage.database(url)  # which waits for a lock
    async with database.open_thread() as thread:
        before = await thread.run(lambda store: store.views.prepare(COUNTED))
        with ExitStack() as held:
            held.enter_context(outside.locking())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(thread.run, lambda store: store.commit([change(COUNTED, before)]))
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
                held.close()

        outside.sql("DELETE FROM dismissed", patience_s=0)


async def test_cancelled_at_any_await_no_transaction_is_left_open(
    database: Database, outside: Outsider
) -> None:
    async with database.open_thread() as thread:

        async def work() -> bool:
            before = await thread.run(lambda store: store.views.prepare(COUNTED))
            rows = [("a", 1, None)]
            await thread.run(lambda store: store.commit([change(COUNTED, before, rows=rows)]))
            await thread.run(lambda store: store.views.load(COUNTED, ["a"]))
            await thread.run(lambda store: store.views.drop("counted"))
            return True

        at, completed = 0, False
        while not completed:
            at += 1
            working = Interrupted(work(), at, again=at % 2 == 0)
            task = asyncio.create_task(working)
            working.cancel = task.cancel
            await asyncio.wait([task])
            completed = not task.cancelled() and task.result()

            assert await thread.run(lambda store: store.log.count()) == 0
            outside.sql("DELETE FROM dismissed", patience_s=0)
    assert at > 4


async def test_what_was_begun_ends_before_the_cancellation_is_felt(thread: Thread) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work(store: Store) -> None:
        begun.set()
        go_on.wait()
        done.append(append(store, "e1"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(thread.run, work)
        await anyio.to_thread.run_sync(begun.wait)
        tasks.cancel_scope.cancel()
        go_on.set()

    assert done == [[1]]
    assert await thread.run(lambda store: store.log.count()) == 1


async def test_a_thread_ends_with_its_block_also_where_it_could_not_open(
    database: Database, empty_url: str
) -> None:
    before = {*threading.enumerate()}
    async with database.open_thread() as thread:
        checkpoint = await thread.run(lambda store: store.views.prepare(COUNTED))
        rows = [("a", 1, b"x" * 100_000)]
        after = later(checkpoint)
        await thread.run(
            lambda store: store.commit([change(COUNTED, checkpoint, after, rows)], bulk=True)
        )
    with pytest.raises(InterventionRequired):
        await storage.database(empty_url).open_thread().__aenter__()

    for left in {*threading.enumerate()} - before:
        left.join()


def test_a_thread_that_could_not_open_has_nothing_to_say_when_the_event_loop_has_ended(
    url: str,
) -> None:
    database = storage.database(url)  # which is not there

    async def enter() -> None:
        await database.open_thread().__aenter__()

    for _ in range(30):
        with pytest.raises(InterventionRequired):
            anyio.run(enter)


async def test_two_threads_at_one_database_see_what_the_other_commits(
    database: Database, thread: Thread
) -> None:
    async with database.open_thread() as other:
        await other.run(lambda store: append(store, "e1"))

        assert await thread.run(lambda store: (store.changed(), store.log.count())) == (True, 1)


async def test_it_tells_once_that_others_have_committed_also_beside_work_under_way(
    thread: Thread, store: Store
) -> None:
    assert not await thread.changed()
    append(store, "e1")
    assert [await thread.changed(), await thread.changed()] == [True, False]
    begun, go_on = threading.Event(), threading.Event()

    def work(_: Store) -> None:
        begun.set()
        go_on.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(thread.run, work)
        await anyio.to_thread.run_sync(begun.wait)
        append(store, "e2")
        asked = asyncio.create_task(thread.changed())
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert not asked.done()  # the work uses the store
        go_on.set()
        assert await asked


async def test_with_patience_it_waits_until_another_has_committed(
    thread: Thread, store: Store
) -> None:
    assert not await thread.changed(0.001)
    asked = asyncio.create_task(thread.changed(3600))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not asked.done()
    append(store, "e1")

    assert await asked


async def test_a_thread_that_is_not_writable_reads(database: Database, store: Store) -> None:
    append(store, "e1")
    async with database.open_thread(writable=False) as thread:
        assert await thread.run(lambda store: store.log.count()) == 1
        with pytest.raises(ProjectorError):
            await thread.run(lambda store: append(store, "e2"))
    assert store.log.count() == 1
