"""`projector run --verify-every`: views against the log, a page at a time, beside the tail."""

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

import anyio
import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.clock import wait
from session_projector.worker.errors import LostRace, ProjectorError
from session_projector.worker.folding.checkpoints import checkpoint_of
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.replay.difference import Difference
from session_projector.worker.replay.rebuild import compare
from session_projector.worker.replay.walk import Pages, WalkProgress
from session_projector.worker.storage.port import Database
from session_projector.worker.telemetry.state import DaemonState

TOLD_MOST: Final = 1000
"""Rows of a round that are told one by one, and remembered; the others are counted."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def verify_in_background(
    database: Database,
    projections: Sequence[Projection],
    every_s: float,
    stop: anyio.Event,
    state: DaemonState,
) -> None:
    """Compare a page every so often, over and over: says what it finds, and repairs nothing."""
    rounds = [_Rounds(projection.name, state) for projection in projections]
    while not stop.is_set():
        for projection, one in zip(projections, rounds, strict=True):
            try:
                with faults_of(projection):
                    async with database.open_thread() as thread:
                        checkpoint = await thread.run(
                            lambda store: checkpoint_of(store, projection)
                        )
                        pages = Pages(thread, [projection])
                        async for _ in pages.check(projection):
                            if stop.is_set():
                                return
                        steps = compare(thread, projection, checkpoint, pages=pages)
                        async with aclosing(steps):
                            async for step in steps:
                                one.found(step)
                                await wait(every_s, stop)
                                if stop.is_set():
                                    return
                one.end()
            except (ProjectorError, LostRace) as error:
                one.put_off(str(error) or "its checkpoint was moved", getattr(error, "hint", ""))
            await wait(every_s, stop)


class _Rounds:
    """Of one projection: a row that differs is told once, then counted, then said to agree."""

    def __init__(self, name: str, state: DaemonState) -> None:
        self._name = name
        self._state = state
        self._told: set[tuple[str, Any]] = set()
        """What differed in the round before."""
        self._seen: set[tuple[str, Any]] = set()
        """What differs in this one."""
        self._found = self._found_before = self._failures = 0

    def found(self, step: WalkProgress) -> None:
        log.debug("verified", events=step.events, views=step.views)
        self._state.differences_found((d.projection, d.kind) for d in step.differences)
        for difference in step.differences:
            self._found += 1
            row = (difference.row, difference.key)
            if len(self._seen) < TOLD_MOST and row not in self._seen:
                self._seen.add(row)
                if row not in self._told:
                    self._tell(difference)

    def end(self) -> None:
        self._state.verified(self._name, time.time())
        known = self._found == self._found_before
        if self._failures:
            log.info("verify_resumed", projection=self._name, failures=self._failures)
        if self._found:
            (log.debug if known else log.warning)(
                "views_differ",
                projection=self._name,
                found=self._found,
                hint="projector verify says what differs, projector replay repairs it",
            )
        elif not known:
            log.info("views_agree_again", projection=self._name)
        self._found_before, self._told = self._found, self._seen
        self._found, self._seen, self._failures = 0, set(), 0

    def put_off(self, why: str, hint: str) -> None:
        """This round begins again; what it came upon was told."""
        again = self._failures > 0
        (log.debug if again else log.warning)(
            "verify_put_off", projection=self._name, why=why, hint=hint
        )
        self._failures += 1
        self._told |= self._seen
        self._found, self._seen = 0, set()

    def _tell(self, difference: Difference) -> None:
        log.warning(
            "difference_found",
            projection=difference.projection,
            row=difference.row,
            kind=difference.kind,
            key=difference.key,
            fields=[field.field for field in difference.fields][:10],
            hint="the code of the projection is not deterministic:"
            " test it with session_projector.testing"
            if difference.kind == "nondeterministic"
            else "projector verify says what differs, projector replay repairs it",
        )
