"""How often a view that costs much to write is written: each keeps the others waiting."""

import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from session_projector.worker.clock import now_ms
from session_projector.worker.storage.port import Deferred

COSTLY_S: Final = 0.02
"""A view whose last write took no longer is never deferred."""
LARGE_BYTES: Final = 1024 * 1024
"""Nor is one with a smaller row, as that is not why it took long."""
REST: Final = 100
"""A costly view is written again after so many times of what its last write took, so that all
others wait for it a hundredth of the time."""
LONGEST_DELAY_S: Final = 60.0
KEY_SHOWN: Final = 100
"""Characters of a view's key in what is told of it."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def delay_s(cost_s: float) -> float:
    """How long a view whose last write took so long may be behind its events, in seconds."""
    return min(cost_s * REST, LONGEST_DELAY_S)


class _Costly(msgspec.Struct):
    """A view by its last write: how long that took, and when the next one is due."""

    cost_s: float
    bytes: int
    due: float
    told: bool


class Deferral:
    """The views that cost much to write, by projection and key, and when each is due."""

    def __init__(
        self,
        costly_s: float = COSTLY_S,
        large_bytes: int = LARGE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What costs no more than `costly_s`, or is smaller than `large_bytes`, is not deferred;
        `clock` counts seconds."""
        self.costly_s = costly_s
        self._large_bytes = large_bytes
        self._clock = clock
        self._costly: dict[tuple[str, str], _Costly] = {}

    @property
    def any_costly(self) -> bool:
        return bool(self._costly)

    def is_costly(self, name: str, key: str) -> bool:
        """Whether a view is to be written by a commit of its own, when it is due."""
        return (name, key) in self._costly

    def is_due(self, name: str, key: str) -> bool:
        """Whether it has been long enough since a view was written; always, if it is not costly."""
        view = self._costly.get((name, key))
        return view is None or view.due <= self._clock()

    def wrote(self, name: str, key: str, size: int, seconds: float, *, alone: bool) -> None:
        """A view with a row of so many bytes was written; `seconds` is a guess unless `alone`."""
        before = self._costly.pop((name, key), None)
        if seconds > self.costly_s and size >= self._large_bytes:
            due = self._clock() + (delay_s(seconds) if alone else 0)
            told = before is not None and before.told
            self._costly[name, key] = _Costly(seconds, size, due, told)

    def defer(self, name: str, key: str, position: int) -> Deferred:
        """Leave a costly view as of a position; says so once, until it is quiet for a while."""
        view = self._costly[name, key]
        cost_ms, quiet = max(round(view.cost_s * 1000), 1), self.is_due(name, key)
        if not (quiet or view.told):
            log.warning(
                "view_deferred",
                projection=name,
                key=key[:KEY_SHOWN],
                bytes=view.bytes,
                cost_ms=cost_ms,
                every_s=round(delay_s(view.cost_s), 1),
            )
        view.told = not quiet
        return Deferred(position, view.bytes, cost_ms, now_ms())
