"""How the tail learns that there is something to do: the kernel says so, or it asks.

What counts is what the engine answers. inotify only makes the asking early: it may speak before a
commit can be seen, of what was no commit, or, on some mounts, never.
"""

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import structlog

LONGEST_IDLE_S: Final = 1.0
"""After so much waiting the log is read whatever was heard."""
FIRST_POLL_S: Final = 0.001
IDLE_POLL_S: Final = 0.1
"""Between two questions where nothing is heard."""
AGAIN_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008)
"""Between further looks after something was heard: a commit may take until it can be seen."""
UNHEARD: Final = 3
"""So many commits in a row that were seen and not heard of, and no more is expected of inotify."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Wakeup:
    """Says when it is worth to look for others' commits; with no `path` it goes by the clock."""

    def __init__(self, path: Path | None = None) -> None:
        self._names = {path.name, f"{path.name}-wal"} if path else set()
        self._inotify = _watching(path.parent) if path else None
        self._unheard = self._polls = 0
        self._again: Iterator[float] = iter(())
        self._in_vain = False

    def close(self) -> None:
        if self._inotify:
            self._inotify.close()
            self._inotify = None

    def looks(self) -> None:
        """Before a look: whatever was heard until now, our own writing too, is seen by it."""
        self._heard()

    def looked(self, *, touched: bool, found: bool) -> None:
        """What came of it: whether others had committed, and whether there was anything to do."""
        if found:
            self._again, self._polls = iter(()), 0
        if self._in_vain and touched:
            self._unheard += 1
            if self._unheard == UNHEARD:
                log.info("polling", why="inotify did not tell of commits")
                self.close()
        self._in_vain = False

    async def wait(self, changed: Callable[[], Awaitable[bool]], stop: anyio.Event) -> bool:
        """For `LONGEST_IDLE_S` at most, or until `stop`; whether there may be something new."""
        until = time.monotonic() + LONGEST_IDLE_S
        for delay_s in self._again:
            await wait(delay_s, stop)
            return True
        while not stop.is_set() and (left_s := until - time.monotonic()) > 0:
            if self._inotify is None:
                if await changed():
                    return True
                await wait(min(self._delay_s(), left_s), stop)
            elif await _readable(self._inotify.fileno(), left_s, stop) and self._heard():
                self._again, self._unheard = iter(AGAIN_S), 0
                return True
        self._in_vain = self._inotify is not None and not stop.is_set()
        return False

    def _heard(self) -> bool:
        if self._inotify is None:
            return False
        return any(event.name in self._names for event in self._inotify.read(timeout=0))

    def _delay_s(self) -> float:
        self._polls += 1
        return min(FIRST_POLL_S * (1 << min(self._polls - 1, 10)), IDLE_POLL_S)


async def wait(seconds: float, stop: anyio.Event) -> None:
    """Until `stop`, for so long at most."""
    with anyio.move_on_after(seconds):
        await stop.wait()


async def _readable(descriptor: int, seconds: float, stop: anyio.Event) -> bool:
    """Until there is something to read, or `stop`, for so long at most; whether there is."""
    found = False
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:

            async def stopped() -> None:
                await stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stopped)
            await anyio.wait_readable(descriptor)
            found = True
            tasks.cancel_scope.cancel()
    return found


def _watching(folder: Path) -> Any:
    """An inotify that watches a folder, as the files in it come and go; None without one."""
    if sys.platform != "linux":
        return None
    try:
        from inotify_simple import INotify, flags  # type: ignore[import-untyped]

        inotify = INotify()
        inotify.add_watch(folder, flags.MODIFY)
    except (ImportError, OSError) as error:
        log.info("polling", why=f"there is no inotify: {error}")
        return None
    return inotify
