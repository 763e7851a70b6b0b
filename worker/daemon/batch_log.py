"""What the log says of batches: a line for each, and of many in a row one line a second."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import structlog

from session_projector.worker.storage.port import Change

QUIET_S: Final = 0.05
"""A batch that comes sooner after the one before follows it, and has no line of its own."""
EVERY_S: Final = 1.0
_MOST_SHOWN: Final = 10

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class BatchLog:
    """Logs `batch_committed`, from the event loop alone."""

    def __init__(self) -> None:
        self._last = self._said = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._forget()

    def _forget(self) -> None:
        self._batches = 0
        self._position = self._lag = 0
        self._duration_s = 0.0
        self._views, self._skipped = Counter[str](), Counter[str]()
        self._quarantined: list[int] = []

    def committed(
        self, changes: Sequence[Change], *, position: int, lag: int, duration_s: float
    ) -> None:
        """Log a batch, at once or with those that follow it."""
        now = time.monotonic()
        follows, self._last = now - self._last < QUIET_S, now
        self._batches += 1
        self._position, self._lag = position, lag
        self._duration_s += duration_s
        for change in changes:
            name = change.after.name
            self._views[name] += len(change.rows)
            self._skipped[name] += change.after.skipped - change.before.skipped
        self._quarantined += sorted({event.seq for one in changes for event in one.quarantined})
        if not follows or now - self._said >= EVERY_S:
            self.say()
        elif self._timer is None:
            self._wait(now)

    def say(self) -> None:
        """Log what is not logged yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._batches:
            return
        self._said = time.monotonic()
        fields: dict[str, Any] = {
            "position": self._position,
            "lag_events": self._lag,
            "views": dict(self._views),
            "skipped": dict(self._skipped),
            "duration_ms": round(self._duration_s * 1000, 2),
        }
        if self._batches > 1:
            fields["batches"] = self._batches
        if found := self._quarantined:
            fields |= {"quarantined": found[:_MOST_SHOWN], "quarantined_count": len(found)}
        self._forget()
        (log.warning if found else log.info)("batch_committed", **fields)

    def _wait(self, now: float) -> None:
        due = min(self._last + QUIET_S, self._said + EVERY_S)
        if due <= now:
            self.say()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(due - now, lambda: self._wait(time.monotonic()))
