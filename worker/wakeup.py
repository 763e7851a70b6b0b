"""How the tail learns that there is something to do: the kernel says so, or it asks.

What counts is what the engine answers (`changed`). inotify only makes the asking early: it may
speak before a commit can be seen, of what was no commit, or, on some mounts, never.
"""

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import structlog

LONGEST_IDLE_S: Final = 1.0
"""After so much waiting the log is read whatever was heard."""
FIRST_POLL_S: Final = 0.001
IDLE_POLL_S: Final = 0.1
"""Between two questions where nothing is heard."""
AFTER_HEARD_S: Final = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008)
"""Between the questions after something was heard: the commit may take until it can be seen."""
UNHEARD: Final = 3
"""So many commits that were seen and not heard of, and no more is expected of inotify."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Wakeup:
    """Waits for others' commits to one database; with no `path` it only ever asks."""

    def __init__(self, path: Path | None = None) -> None:
        self._names = {path.name, f"{path.name}-wal"} if path else set()
        self._inotify = _watching(path.parent) if path else None
        self._unheard = self._polls = 0

    def close(self) -> None:
        if self._inotify:
            self._inotify.close()
            self._inotify = None

    def heard(self) -> bool:
        """Whether anything was written since this was last asked; our own writing counts too."""
        if self._inotify is None:
            return False
        return any(event.name in self._names for event in self._inotify.read(timeout=0))

    def busy(self) -> None:
        """There was something to do: ask often again."""
        self._polls = 0

    async def wait(self, changed: Callable[[], Awaitable[bool]], stop: anyio.Event) -> bool:
        """For `LONGEST_IDLE_S` at most, or until `stop`; whether others committed something."""
        until = time.monotonic() + LONGEST_IDLE_S
        while not stop.is_set() and (left_s := until - time.monotonic()) > 0:
            if self._inotify is None:
                if await changed():
                    return True
                await _first(min(self._delay_s(), left_s), stop)
            elif await _first(left_s, stop, self._inotify.fileno()) and self.heard():
                for delay_s in AFTER_HEARD_S:
                    await anyio.sleep(delay_s)
                    if await changed():
                        return True
        if self._inotify is None or stop.is_set() or not await changed():
            return False
        if not self.heard():
            self._note_unheard()
        return True

    def _delay_s(self) -> float:
        self._polls += 1
        return min(FIRST_POLL_S * (1 << min(self._polls - 1, 10)), IDLE_POLL_S)

    def _note_unheard(self) -> None:
        self._unheard += 1
        if self._unheard == UNHEARD:
            log.info("polling", why="commits were not heard of by inotify")
            self.close()


async def _first(seconds: float, stop: anyio.Event, readable: int | None = None) -> bool:
    """Until `stop`, or there is something to read; whether that was the case."""
    found = False
    with anyio.move_on_after(seconds):
        if readable is None:
            await stop.wait()
            return False
        async with anyio.create_task_group() as tasks:

            async def stopped() -> None:
                await stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stopped)
            await anyio.wait_readable(readable)
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
