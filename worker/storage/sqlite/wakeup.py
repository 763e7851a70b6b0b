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

from session_projector.worker.clock import wait

LONGEST_IDLE_S: Final = 1.0
"""After so much waiting it is asked whatever was heard."""
FIRST_POLL_S: Final = 0.001
IDLE_POLL_S: Final = 0.1
"""Between two questions where nothing is heard."""
AGAIN_S: Final = (0.001, 0.001, 0.004, 0.016, 0.032, 0.064, 0.128, 0.256)
"""Between further looks after something was heard: a commit may take until it can be seen."""
UNHEARD: Final = 3
"""So many commits in a row that were seen and not heard of, and no more is expected of inotify."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class InotifyWakeup:
    """Says when it is worth to look for others' commits; with no `path` it goes by the clock."""

    def __init__(self, path: Path | None = None) -> None:
        self._names = {path.name, f"{path.name}-wal"} if path else set()
        self._inotify = _watching(path.parent) if path else None
        self._unheard = self._polls = 0
        self._again: Iterator[float] = iter(())
        self._in_vain = False
        self._listening = anyio.CancelScope()

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
        """For `LONGEST_IDLE_S` at most, or until `stop`; whether there may be something new.

        While it listens `end_at` has to notice `stop`: a task of its own for each wait is dear.
        """
        until = time.monotonic() + LONGEST_IDLE_S
        for delay_s in self._again:
            await wait(delay_s, stop)
            return True
        while not stop.is_set() and (left_s := until - time.monotonic()) > 0:
            if self._inotify is None:
                if await changed():
                    return True
                await wait(min(self._delay_s(), left_s), stop)
                continue
            with anyio.move_on_after(left_s) as self._listening:
                await anyio.wait_readable(self._inotify.fileno())
            if self._heard():
                self._again, self._unheard = iter(AGAIN_S), 0
                return True
        self._in_vain = self._inotify is not None and not stop.is_set()
        return False

    async def end_at(self, stop: anyio.Event) -> None:
        """At `stop`, end a wait that is under way."""
        await stop.wait()
        self._listening.cancel()

    def _heard(self) -> bool:
        if self._inotify is None:
            return False
        return any(event.name in self._names for event in self._inotify.read(timeout=0))

    def _delay_s(self) -> float:
        self._polls += 1
        return min(FIRST_POLL_S * (1 << min(self._polls - 1, 10)), IDLE_POLL_S)


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
