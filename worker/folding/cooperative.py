"""Folding that lets other tasks run, however slow a projection is."""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import anyio

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Folded, Rejected, Runs
from session_projector.projections.projection import Projection

courteous: Final = ContextVar("courteous", default=False)
"""Set in a task beside which others tail: they get as much time as it takes itself."""
SLICE_EVENTS: Final = 16
READ_SLICE_EVENTS: Final = 256
SLICE_RUNS: Final = 64
"""Of our own projections, whose folding is known to take microseconds."""
LONGEST_SLICE_S: Final = 0.005


async def read_in_slices(
    rows: Sequence[LogRow], projections: Sequence[Projection]
) -> list[Event | Rejected]:
    """`read`, letting other tasks run whenever it took long."""
    events: list[Event | Rejected] = []
    pause = _Pause()
    for start in range(0, len(rows), READ_SLICE_EVENTS):
        events += folding.read(rows[start : start + READ_SLICE_EVENTS], projections)
        await pause.when_due()
    return events


async def fold_in_slices(
    projection: Projection,
    views: Mapping[str, Any | None],
    events: Sequence[Event | Rejected],
    runs: Runs | None = None,
) -> Folded:
    """`fold`, letting other tasks run whenever it took long; `runs`: of the same events."""
    if projection.built_in:
        return await _fold_runs(projection, views, runs or folding.runs_of(events))
    changed: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    skipped: list[str] = []
    now = {**views}
    pause = _Pause()
    start, size = 0, 1
    while start < len(events):
        end = start + size
        folded = folding.fold(projection, now, events[start:end])
        changed |= folded.views
        now |= folded.views
        quarantined += folded.quarantined
        skipped += folded.skipped_types
        start = end
        size = 1 if await pause.when_due() else min(2 * size, SLICE_EVENTS)
    return Folded(changed, quarantined, skipped)


async def _fold_runs(projection: Projection, views: Mapping[str, Any | None], runs: Runs) -> Folded:
    others = folding.fold(projection, {}, runs.others)
    changed, quarantined = others.views, others.quarantined
    waiting = iter(runs.of.values())
    pause = _Pause()
    while some := [*islice(waiting, SLICE_RUNS)]:
        folded = folding.fold_runs(projection, views, some)
        changed |= folded.views
        quarantined += folded.quarantined
        await pause.when_due()
    return Folded(changed, sorted(quarantined, key=attrgetter("seq")), others.skipped_types)


class _Pause:
    """Since the last one."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def when_due(self) -> bool:
        took_s = time.perf_counter() - self._since
        if took_s <= LONGEST_SLICE_S:
            return False
        await anyio.sleep(took_s if courteous.get() else 0)
        self._since = time.perf_counter()
        return True
