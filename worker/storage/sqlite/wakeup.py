"""How the tail learns that there is something to do: the kernel says so, or it asks.

What counts is what the engine answers. inotify only makes the asking early: it may speak before a
commit can be seen, of what was no commit, or, on some mounts, never.
"""

import math
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
PATIENCE_S: Final = 0.001
"""After an event was found, as the writer may have waited for it and commit the next one now."""
AGAIN_S: Final = (0.001, 0.001, 0.004, 0.016, *[0.032] * 15)
"""Between further questions after something was heard: a commit may take until it can be seen. None
is longer than an event may be late, and together they are as long as a slow disk takes."""
IN_MODIFY: Final = 0x2
"""As inotify(7) numbers it."""
UNHEARD: Final = 3
"""So many commits in a row that were seen and not heard of, and no more is expected of inotify."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class InotifyWakeup:
    """Implements `worker.storage.port.Wakeup`; with no `path` it goes by the clock.

    It listens to the WAL alone, which every commit is written to: what others do in the folder
    costs nothing. A hint counts until it was asked again for all of `AGAIN_S`, also where a read
    found events meanwhile: it may have been of the commit after those, which can be seen later.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._wal = path and path.with_name(f"{path.name}-wal")
        self._inotify = _inotify() if path else None
        self._watch: int | None = None
        self._unheard = 0
        self._poll_s = FIRST_POLL_S
        self._again: Iterator[float] = iter(())
        self._listens = True
        """Also during `_again`; not after a hint that no event was found for, as a writer that
        writes all the time, but no events, would make the tail read all the time."""
        self._asks_first = False
        self._waiting: anyio.CancelScope | None = None
        self._closed = False
        self._attach()

    def close(self) -> None:
        self._closed = True
        if self._waiting:
            self._waiting.cancel()  # which then ends the listening
        else:
            self._listen_no_more()

    def hears_on(self) -> bool:
        self._look_on()
        self._asks_first = True
        return not self._closed

    async def wait(self, changed: Callable[..., Awaitable[bool]], *, found: bool) -> bool:
        if found:
            self._look_on()
            return True
        if self._closed:
            return False
        self._attach()
        try:
            with anyio.move_on_after(LONGEST_IDLE_S) as self._waiting:
                return await self._hint(changed)
        finally:
            self._waiting = None
            if self._closed:
                self._listen_no_more()
        return not self._closed and await self._overdue(changed)

    def _look_on(self) -> None:
        """After something was found."""
        self._asks_first, self._poll_s = False, FIRST_POLL_S
        if self._inotify:
            self._hears()  # of what was read, of the tail's own commit, perhaps of the next
            self._again, self._listens = iter(AGAIN_S), True

    async def _hint(self, changed: Callable[..., Awaitable[bool]]) -> bool:
        """Wait until there may be something new."""
        if self._asks_first:
            self._asks_first = False
            if await changed(PATIENCE_S):
                return True
        for delay_s in self._again:
            if await self._heard(delay_s) or await changed():
                return True
        self._listens = True
        if self._inotify:
            return await self._heard(math.inf)
        while not await changed():
            await anyio.sleep(self._poll_s)
            self._poll_s = min(2 * self._poll_s, IDLE_POLL_S)
        return True

    async def _heard(self, within_s: float) -> bool:
        """Wait for a hint, or for all of a time if it does not listen."""
        if not (self._inotify and self._listens):
            await anyio.sleep(within_s)
            return False
        with anyio.move_on_after(within_s):
            while not self._hears():
                await anyio.wait_readable(self._inotify.fileno())
            self._again, self._listens, self._unheard = iter(AGAIN_S), False, 0
            return True
        return False

    async def _overdue(self, changed: Callable[..., Awaitable[bool]]) -> bool:
        """Ask, after nothing was heard; expect no more of inotify that misses what is seen."""
        if not await changed():
            return False
        if self._inotify and not self._hears():
            self._unheard += 1
            if self._unheard == UNHEARD:
                self._listen_no_more("inotify did not tell of commits")
        return True

    def _hears(self) -> bool:
        """Whether the kernel has told of the WAL since this was last asked."""
        return bool(self._inotify and self._inotify.read(timeout=0))

    def _attach(self) -> None:
        """Listen to the WAL. It may be another file than before, as it goes when nobody has the
        database open; what was written to that until now was not heard."""
        if self._inotify is None:
            return
        try:
            watch = self._inotify.add_watch(self._wal, IN_MODIFY)
        except FileNotFoundError:
            return
        except OSError as error:
            self._listen_no_more(f"inotify cannot listen to {self._wal}: {error}")
            return
        if watch != self._watch:
            self._watch, self._again, self._listens = watch, iter(AGAIN_S), True

    def _listen_no_more(self, why: str = "") -> None:
        if self._inotify:
            self._inotify.close()
            self._inotify = None
            if why:
                log.info("polling", why=why)


def _inotify() -> Any:
    """None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        from inotify_simple import INotify  # type: ignore[import-untyped]

        return INotify()
    except (ImportError, OSError) as error:
        log.info("polling", why=f"there is no inotify: {error}")
        return None
