"""The wake-up: whoever waits for it finds every event, and closing it ends a wait."""

from contextlib import closing
from pathlib import Path

import anyio
from support.laws import COUNTED, append, elsewhere, said, tell

from session_projector.worker.storage.port import Database, Store, Thread, Wakeup

EVENTS = 12
WRITE = f"""
with database.open(writable=True) as store:
    for number in range({EVENTS}):
        append(store, f"e{{number}}")
        say(number)
        input()
"""


async def until_no_more(thread: Thread, wakeup: Wakeup) -> None:
    """Wait as the daemon does that has nothing to do."""
    while await wakeup.wait(thread.changed, found=False):
        pass


async def until_found(thread: Thread, wakeup: Wakeup, after: int) -> int:
    """Wait as the daemon does until there is an event after a position; returns its own."""
    while True:
        rows = await thread.run(lambda store: store.log.page(start=after + 1))
        if rows:
            if not wakeup.hears_on():
                await wakeup.wait(thread.changed, found=True)
            return rows[-1].seq
        await wakeup.wait(thread.changed, found=False)


async def test_each_event_of_another_process_is_found_by_whoever_waits(
    database: Database, url: str
) -> None:
    """The writer goes on only when its event was found, so that a missed one is never made good."""
    async with database.open_thread() as thread:
        with closing(database.wakeup()) as wakeup, elsewhere(url, WRITE) as writer:
            position = 0
            for number in range(EVENTS):
                found = await until_found(thread, wakeup, position)
                assert found == position + 1
                position = found
                assert said(writer) == str(number)
                tell(writer)


async def test_what_another_process_commits_ends_the_wait_of_one_who_only_looks_on(
    database: Database, url: str
) -> None:
    """Views are committed by the daemon, for whom nobody rings."""
    write = f"""
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.laws import COUNTED, keep
with database.open(writable=True) as store:
    for number in range({EVENTS}):
        keep(store, COUNTED, (f"k{{number}}", number, None))
        say(number)
        input()
"""
    async with database.open_thread(writable=False) as thread:
        with closing(database.view_wakeup()) as wakeup, elsewhere(url, write) as writer:
            for number in range(EVENTS):
                assert said(writer) == str(number)
                while True:
                    got = await thread.run(lambda store: store.views.row(COUNTED, f"k{number}"))
                    await wakeup.wait(thread.changed, found=got is not None)
                    if got is not None:
                        break
                tell(writer)


async def test_one_who_only_looks_on_keeps_nobody_from_the_bell(
    database: Database, store: Store
) -> None:
    async with database.open_thread() as thread, database.open_thread(writable=False) as looking:
        with closing(database.wakeup()) as wakeup, closing(database.view_wakeup()) as other:
            await other.wait(looking.changed, found=False)
            await until_no_more(thread, wakeup)
            append(store, "e1")
            assert await until_found(thread, wakeup, 0) == 1
            while not await looking.run(lambda store: store.log.newest()):
                await other.wait(looking.changed, found=False)


async def test_an_event_that_is_there_before_the_waiting_begins_is_found(
    database: Database, store: Store
) -> None:
    async with database.open_thread() as thread:
        with closing(database.wakeup()) as wakeup:
            append(store, "e1")
            assert await until_found(thread, wakeup, 0) == 1
            append(store, "e2")
            assert await until_found(thread, wakeup, 1) == 2


async def test_whoever_waits_goes_on_when_it_is_closed(database: Database) -> None:
    stop = anyio.Event()
    async with database.open_thread() as thread:
        wakeup = database.wakeup()

        async def wait() -> None:
            while not stop.is_set():
                await wakeup.wait(thread.changed, found=False)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            stop.set()
            wakeup.close()
