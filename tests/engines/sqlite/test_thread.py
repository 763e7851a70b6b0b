"""The thread of a store: what aiosqlite must have, although it does not publish it, and its end."""

import asyncio
import runpy
import threading
from typing import Any

import aiosqlite
import pytest

from session_projector.worker.storage import thread


def test_an_aiosqlite_without_the_call_that_is_needed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(aiosqlite.Connection, "_execute")

    with pytest.raises(ImportError, match="has no Connection"):
        runpy.run_path(str(thread.__file__))


async def test_a_store_that_opens_while_its_task_is_cancelled_is_closed() -> None:
    began, closed = asyncio.Event(), []
    loop, may_go_on = asyncio.get_running_loop(), threading.Event()

    class Opened:
        def close(self) -> None:
            closed.append(self)

    def open_store() -> Any:
        loop.call_soon_threadsafe(began.set)
        may_go_on.wait()
        return Opened()

    async def work() -> None:
        async with thread.opened(open_store, lambda: 1.0):
            raise AssertionError("it was cancelled")

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    may_go_on.set()
    await asyncio.wait([task])

    assert task.cancelled()
    assert len(closed) == 1
