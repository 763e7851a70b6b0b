"""What a full scan is for, by projection: compare, mend beside a daemon, or rebuild."""

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
import structlog

from session_projector.projections.event import LogRow
from session_projector.projections.projection import Projection
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import Finding, LostRace
from session_projector.worker.folding.checkpoints import (
    does_not_fit,
    fits_log,
    needs_rebuild,
)
from session_projector.worker.folding.history import refold
from session_projector.worker.replay.as_of import AsOfCheckpoint, AsOfPosition
from session_projector.worker.replay.compare import Comparison
from session_projector.worker.replay.fix import Fixer, HoldOn
from session_projector.worker.replay.walk import Pages, Step, Walk
from session_projector.worker.storage.port import (
    Change,
    Checkpoint,
    ProjectionStatus,
    Store,
    Thread,
    digest,
)

PROGRESS_MS: Final = 1000
"""How often a rebuild says how far it is."""

FOLDED_TWICE: Final = 3
"""Views that differ and are folded twice in one walk, to know the code by that if not alike."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def compare(
    thread: Thread,
    projection: Projection,
    checkpoint: Checkpoint,
    *,
    pages: Pages | None = None,
    only: str | None = None,
    dry_run: bool = False,
) -> AsyncGenerator[Step, None]:
    """Say what differs from the log, as of the checkpoint.

    Raises `NeedsPerson` or `Finding` where the checkpoint did not make the views; a `dry_run`
    compares these as of the newest event, and those of an older version as of the checkpoint.
    """
    stale, fit, newest = await thread.run(
        lambda store: (
            needs_rebuild(store, projection, checkpoint),
            fits_log(store, checkpoint),
            store.log.newest(),
        )
    )
    if not dry_run and not fit:
        raise does_not_fit(projection.name, checkpoint.position)
    if not dry_run and stale:
        by = f"version {checkpoint.version}" if checkpoint.position else "another program"
        if checkpoint.version < 0:
            by = "a rebuild that is not done"
        raise Finding(
            f"the views of {projection.name} were made by {by}, and not yet by version"
            f" {projection.version}",
            "`projector run` or `projector replay` makes them anew; `projector replay --dry-run`"
            " says what that changes",
        )
    whole = dry_run and not (fit and checkpoint.position)
    as_of = AsOfPosition(checkpoint, newest) if whole else AsOfCheckpoint(checkpoint)
    walk = Walk(thread, projection, Comparison(thread, projection, as_of), pages, only)
    gathers = projection.log_keys("") is None
    left = 0 if projection.built_in else 1 if gathers else FOLDED_TWICE
    async for step in walk.steps():
        differences = [*step.differences]
        for number, difference in enumerate(differences):
            if left and difference.row == "view" and difference.kind != "ghost":
                left -= 1
                if not await _is_steady(thread, projection, str(difference.key), as_of.until):
                    kind = "nondeterministic"
                    differences[number] = msgspec.structs.replace(difference, kind=kind)
        yield msgspec.structs.replace(step, differences=differences)


async def _is_steady(thread: Thread, projection: Projection, key: str, until: int) -> bool:
    """Whether a view's events give the same row when they are folded twice."""
    found = [await refold(thread, projection, [key], until=until) for _ in range(2)]
    first, second = ([projection.to_row(view) for view in views.values()] for views in found)
    return first == second


async def mend(
    thread: Thread,
    projection: Projection,
    checkpoint: Checkpoint,
    *,
    pages: Pages | None = None,
    only: str | None = None,
) -> AsyncGenerator[Step, None]:
    """Replace what differs from the log, as of the checkpoint, while a daemon tails."""
    as_of = AsOfCheckpoint(checkpoint)
    fixer = Fixer(thread, projection.table, as_of)
    walk = Walk(thread, projection, Comparison(thread, projection, as_of, fixer), pages, only)
    async for step in walk.steps():
        yield step


async def rebuild(
    thread: Thread,
    projection: Projection,
    checkpoint: Checkpoint,
    *,
    pages: Pages | None = None,
    hold_on: HoldOn | None = None,
    brief: bool = False,
) -> AsyncGenerator[Step, None]:
    """Bring every view to the newest event, each replaced at once and whole, then the checkpoint.

    For views that the checkpoint has not made, so that nobody may tail meanwhile. Left at any
    moment, rows are whole and the checkpoint is where it was, its version below 0: of two versions,
    so that whoever comes next rebuilds them. The generation is raised first, so that of two walks
    only the later one goes on; the other one raises `LostRace`.
    """
    pages = pages or Pages(thread, [projection])
    until = await pages.newest()
    claimed = msgspec.structs.replace(
        checkpoint, version=-projection.version, generation=checkpoint.generation + 1
    )

    def claim(store: Store) -> LogRow | None:
        last = store.log.event(until)
        if store.views.prepare(projection) != checkpoint:
            raise LostRace
        store.commit([Change(projection.table, checkpoint, claimed)])
        return last

    last = await thread.run(claim)
    as_of = AsOfPosition(claimed, until)
    fixer = Fixer(thread, projection.table, as_of, hold_on)
    comparison = Comparison(thread, projection, as_of, fixer, brief=brief)
    walk = Walk(thread, projection, comparison, pages)
    progress = ProjectionStatus("rebuilding", projection.version, "", 0, until, now_ms(), now_ms())
    await thread.run(lambda store: store.checkpoints.report(projection.name, progress))
    quarantined = removed = 0
    async for step in walk.steps():
        quarantined += sum(n for key, n in step.outcomes.items() if key[2] == "quarantined")
        removed += sum(d.row == "view" and d.kind == "ghost" for d in step.differences)
        progress = msgspec.structs.replace(progress, events=progress.events + step.events)
        if now_ms() - progress.updated_at >= PROGRESS_MS:
            progress = msgspec.structs.replace(progress, updated_at=now_ms())
            await thread.run(lambda store: store.checkpoints.report(projection.name, progress))
        yield step
    done = msgspec.structs.replace(
        claimed,
        version=projection.version,
        position=until,
        digest=digest(last) if last else "",
        skipped=walk.skipped,
    )
    await thread.run(lambda store: store.commit([Change(projection.table, claimed, done)]))
    (log.warning if quarantined else log.info)(
        "views_rebuilt",
        projection=projection.name,
        position=until,
        quarantined=quarantined,
        removed=removed,
    )
