"""Folding that leaves other tasks their turns, however slow a projection is."""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

import anyio

from projections.event import Event
from projections.fold import Folded, Rejected, fold
from projections.projection import Projection

courteous: Final = ContextVar("courteous", default=False)
"""Set in a task beside which others tail: they get as much time as it takes itself."""
SLICE_EVENTS: Final = 16
LONGEST_SLICE_S: Final = 0.005


async def fold_in_slices(
    projection: Projection, views: Mapping[str, Any | None], events: Sequence[Event | Rejected]
) -> Folded:
    """`fold`, and the other tasks' turn whenever it took so long."""
    changed: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    skipped: list[str] = []
    now = {**views}
    started, start, size = time.perf_counter(), 0, 1
    while start < len(events):
        folded = fold(projection, now, events[start : start + size])
        changed |= folded.views
        now |= folded.views
        quarantined += folded.quarantined
        skipped += folded.skipped_types
        start += size
        took_s = time.perf_counter() - started
        if took_s > LONGEST_SLICE_S:
            await anyio.sleep(took_s if courteous.get() else 0)
            started, size = time.perf_counter(), 1
        else:
            size = min(2 * size, SLICE_EVENTS)
    return Folded(changed, quarantined, skipped)
