"""How the tail learns that there is something to do: the kernel says so, or it asks.

What counts is what the engine answers. inotify only makes the asking early: it may speak before a
commit can be seen, of what was no commit, or, on some mounts, never.
"""

import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import structlog

LONGEST_IDLE_S: Final = 1.0
"""The longest wait until SQLite is asked, even if no file was changed."""
FIRST_POLL_S: Final = 0.001
IDLE_POLL_S: Final = 0.1
"""Between two questions where nothing is heard."""
AGAIN_S: Final = (0.001, 0.001, 0.004, 0.016, 0.032, 0.064, 0.128, 0.256)
"""Between further reads after something was heard: a commit may take until it can be seen."""
UNHEARD: Final = 3
"""So many commits in a row that were seen and not heard of, and no more is expected of inotify."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class InotifyWakeup:
    """Implements `worker.storage.port.Wakeup`; with no `path` it goes by the clock.

    What is heard is kept, at last in the kernel's queue, until a read finds events or `AGAIN_S` is
    over. Only then is it forgotten, as the commit that followed such a read is heard too.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._names = {path.name, f"{path.name}-wal"} if path else set()
        self._inotify = _watching(path.parent) if path else None
        self._unheard = 0
        self._poll_s = FIRST_POLL_S
        self._again: Iterator[float] = iter(())
        self._waiting: anyio.CancelScope | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._waiting:
            self._waiting.cancel()  # which then ends the listening
        else:
            self._listen_no_more()

    async def wait(self, changed: Callable[[], Awaitable[bool]], *, found: bool) -> bool:
        if found:
            self._again, self._poll_s = iter(()), FIRST_POLL_S
            self._hears()
            return True
        if self._closed:
            return False
        try:
            with anyio.move_on_after(LONGEST_IDLE_S) as self._waiting:
                return await self._hint(changed)
        finally:
            self._waiting = None
            if self._closed:
                self._listen_no_more()
        return not self._closed and await self._overdue(changed)

    async def _hint(self, changed: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until there may be something new."""
        for delay_s in self._again:
            await anyio.sleep(delay_s)
            return True
        while self._inotify:
            await anyio.wait_readable(self._inotify.fileno())
            if self._hears():
                self._again, self._unheard = iter(AGAIN_S), 0
                return True
        while not await changed():
            await anyio.sleep(self._poll_s)
            self._poll_s = min(2 * self._poll_s, IDLE_POLL_S)
        return True

    async def _overdue(self, changed: Callable[[], Awaitable[bool]]) -> bool:
        """Ask, after nothing was heard; expect no more of inotify that misses what is seen."""
        if not await changed():
            return False
        if self._inotify and not self._hears():
            self._unheard += 1
            if self._unheard == UNHEARD:
                log.info("polling", why="inotify did not tell of commits")
                self._listen_no_more()
        return True

    def _hears(self) -> bool:
        """Whether the kernel has told of our files since this was last asked."""
        if self._inotify is None:
            return False
        return any(event.name in self._names for event in self._inotify.read(timeout=0))

    def _listen_no_more(self) -> None:
        if self._inotify:
            self._inotify.close()
            self._inotify = None


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
