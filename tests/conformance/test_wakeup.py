"""The wake-up: whoever waits for it finds every event, and is not woken for long by nothing."""

from contextlib import closing

import anyio
from support.laws import append, elsewhere, said, tell

from session_projector.worker.storage.port import Database, Store, Thread, Wakeup

EVENTS = 12
WRITE = f"""
with database.open(writable=True) as store:
    for number in range({EVENTS}):
        append(store, f"e{{number}}")
        say(number)
        input()
"""


async def until_found(thread: Thread, wakeup: Wakeup, after: int) -> int:
    """Wait as the daemon does until there is an event after a position; returns its own."""

    async def changed() -> bool:
        return await thread.run(lambda store: store.changed())

    def look(store: Store) -> list[int]:
        store.changed()
        return [row.seq for row in store.log.page(start=after + 1)]

    while True:
        found = await thread.run(look)
        await wakeup.wait(changed, found=bool(found))
        if found:
            return found[-1]


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


async def test_an_event_that_is_there_before_the_waiting_begins_is_found(
    database: Database, store: Store
) -> None:
    async with database.open_thread() as thread:
        with closing(database.wakeup()) as wakeup:
            append(store, "e1")
            assert await until_found(thread, wakeup, 0) == 1
            append(store, "e2")
            assert await until_found(thread, wakeup, 1) == 2


async def test_waiting_ends_when_it_is_told_to(database: Database) -> None:
    stop = anyio.Event()
    async with database.open_thread() as thread:
        with closing(database.wakeup()) as wakeup:

            async def changed() -> bool:
                return await thread.run(lambda store: store.changed())

            async def wait() -> None:
                while not stop.is_set():
                    await wakeup.wait(changed, found=False)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                stop.set()
                wakeup.close()
