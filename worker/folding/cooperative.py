"""Folding that lets other tasks run, however slow a projection is."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import anyio

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Folded, Rejected, Runs
from session_projector.projections.projection import Projection
from session_projector.worker.folding.faults import decoding, tell_of_fault

SLICE_EVENTS: Final = 16
READ_SLICE_EVENTS: Final = 256
SLICE_RUNS: Final = 64
"""Of our own projections, whose folding is known to take microseconds."""
LONGEST_SLICE_S: Final = 0.005


async def read_in_slices(
    rows: Sequence[LogRow], projections: Sequence[Projection], *, share: bool = False
) -> list[Event | Rejected]:
    """`read`, letting other tasks run whenever it took long; `share`: for as long as it took."""
    events: list[Event | Rejected] = []
    pause = _Pause(share)
    for start in range(0, len(rows), READ_SLICE_EVENTS):
        with decoding():
            events += folding.read(rows[start : start + READ_SLICE_EVENTS], projections)
        await pause.when_due()
    return events


async def fold_in_slices(
    projection: Projection,
    views: Mapping[str, Any | None],
    events: Sequence[Event | Rejected],
    runs: Runs | None = None,
    *,
    share: bool = False,
) -> Folded:
    """`fold`, letting other tasks run whenever it took long; `runs`: of the same events; `share`:
    for as long as it took."""
    pause = _Pause(share)
    if projection.built_in:
        return await _fold_runs(projection, views, runs or folding.runs_of(events), pause)
    changed: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    skipped: list[str] = []
    now = {**views}
    start, size = 0, 1
    while start < len(events):
        end = start + size
        folded = folding.fold(projection, now, events[start:end], tell_of_fault)
        changed |= folded.views
        now |= folded.views
        quarantined += folded.quarantined
        skipped += folded.skipped_types
        start = end
        size = 1 if await pause.when_due() else min(2 * size, SLICE_EVENTS)
    return Folded(changed, quarantined, skipped)


async def _fold_runs(
    projection: Projection, views: Mapping[str, Any | None], runs: Runs, pause: "_Pause"
) -> Folded:
    others = folding.fold(projection, {}, runs.others)
    changed, quarantined = others.views, others.quarantined
    waiting = iter(runs.of.values())
    while some := [*islice(waiting, SLICE_RUNS)]:
        folded = folding.fold_runs(projection, views, some)
        changed |= folded.views
        quarantined += folded.quarantined
        await pause.when_due()
    return Folded(changed, sorted(quarantined, key=attrgetter("seq")), others.skipped_types)


class _Pause:
    """When the last one was, and so whether another one is due."""

    def __init__(self, share: bool) -> None:
        self._share = share
        self._since = time.perf_counter()

    async def when_due(self) -> bool:
        took_s = time.perf_counter() - self._since
        if took_s <= LONGEST_SLICE_S:
            return False
        await anyio.sleep(took_s if self._share else 0)
        self._since = time.perf_counter()
        return True
