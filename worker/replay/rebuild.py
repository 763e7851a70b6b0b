"""What a full scan is for, by projection: compare, repair beside a daemon, or rebuild."""

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
import structlog

from session_projector.projections.event import LogRow
from session_projector.projections.projection import Projection
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed, LostRace
from session_projector.worker.folding.checkpoints import does_not_fit, fits_log, needs_rebuild
from session_projector.worker.folding.history import refold
from session_projector.worker.replay.as_of import AsOf, as_of_checkpoint
from session_projector.worker.replay.compare import Comparison
from session_projector.worker.replay.difference import NONDETERMINISTIC, ORPHANED, Difference
from session_projector.worker.replay.fix import Fixer, HoldOn
from session_projector.worker.replay.walk import Pages, Walk, WalkProgress
from session_projector.worker.storage.port import (
    Change,
    Checkpoint,
    ProjectionStatus,
    Store,
    Thread,
    digest,
)

PROGRESS_MS: Final = 1000
"""How often a rebuild reports its progress."""
FOLDED_TWICE: Final = 3
"""Views that differ and are folded twice in one scan, to find code that is not deterministic."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def compare(
    thread: Thread,
    projection: Projection,
    checkpoint: Checkpoint,
    *,
    pages: Pages | None = None,
    only: str | None = None,
    dry_run: bool = False,
) -> AsyncGenerator[WalkProgress, None]:
    """Report what differs from the log, as of the checkpoint.

    Raises `InterventionRequired` or `CheckFailed` where the checkpoint did not make the views; a
    `dry_run` compares these as of the newest event, and those of an older version as of the
    checkpoint.
    """
    outdated, fits, newest = await thread.run(
        lambda store: (
            needs_rebuild(store, projection, checkpoint),
            fits_log(store, checkpoint),
            store.log.settled(),
        )
    )
    if not (dry_run or fits):
        raise does_not_fit(projection.name, checkpoint.position)
    if outdated and not dry_run:
        by = f"version {checkpoint.version}" if checkpoint.position else "another program"
        if checkpoint.version < 0:
            by = "a rebuild that is not done"
        raise CheckFailed(
            f"the views of {projection.name} were made by {by}, and not yet by version"
            f" {projection.version}",
            "`projector run` or `projector replay` rebuilds them; `projector replay --dry-run`"
            " reports what that changes",
        )
    made_all = not dry_run or (fits and checkpoint.position)
    as_of = as_of_checkpoint(checkpoint) if made_all else AsOf(checkpoint, newest, follows=False)
    walk = Walk(thread, projection, Comparison(thread, projection, as_of), pages, only)
    until, gathers = as_of.until, projection.log_keys("") is None
    left = 0 if projection.built_in or projection.per_event else 1 if gathers else FOLDED_TWICE
    async for step in walk.steps():
        found: list[Difference] = []
        for difference in step.differences:
            if left and difference.row == "view" and difference.kind != ORPHANED:
                left -= 1
                if not await _is_deterministic(thread, projection, str(difference.key), until):
                    difference = msgspec.structs.replace(difference, kind=NONDETERMINISTIC)
            found.append(difference)
        yield msgspec.structs.replace(step, differences=found)


async def _is_deterministic(thread: Thread, projection: Projection, key: str, until: int) -> bool:
    """Whether a view's events give the same row when they are folded twice."""
    found = [(await refold(thread, projection, [key], until=until)).views for _ in range(2)]
    first, second = ([projection.to_row(view) for view in views.values()] for views in found)
    return first == second


def repair(
    thread: Thread,
    projection: Projection,
    checkpoint: Checkpoint,
    *,
    pages: Pages | None = None,
    only: str | None = None,
) -> AsyncGenerator[WalkProgress, None]:
    """Replace what differs from the log, as of the checkpoint, while a daemon tails."""
    as_of = as_of_checkpoint(checkpoint)
    fixer = Fixer(thread, projection.table, as_of)
    comparison = Comparison(thread, projection, as_of, fixer)
    return Walk(thread, projection, comparison, pages, only).steps()


async def rebuild(
    thread: Thread,
    projection: Projection,
    checkpoint: Checkpoint,
    *,
    pages: Pages | None = None,
    hold_on: HoldOn | None = None,
    brief: bool = False,
) -> AsyncGenerator[WalkProgress, None]:
    """Bring every view to the newest event, each replaced as a whole, and then the checkpoint.

    This is for views that the checkpoint did not make, so that nobody may tail meanwhile. Where it
    is interrupted, rows are whole, of one version or the other, and the checkpoint is where it was,
    its version below 0, so that the next process rebuilds them. The generation is raised first, so
    that of two rebuilds only the later one goes on; the other one raises `LostRace`.
    """
    pages = pages or Pages(thread, [projection])
    until = await pages.newest()
    claimed = msgspec.structs.replace(checkpoint.replayed(), version=-projection.version)

    def claim(store: Store) -> LogRow | None:
        last = store.log.event(until)
        if store.views.prepare(projection) != checkpoint:
            raise LostRace
        store.commit([Change(projection.table, checkpoint, claimed)])
        return last

    last = await thread.run(claim)
    as_of = AsOf(claimed, until, follows=False)
    fixer = Fixer(thread, projection.table, as_of, hold_on)
    comparison = Comparison(thread, projection, as_of, fixer, brief=brief)
    walk = Walk(thread, projection, comparison, pages)
    progress = ProjectionStatus("rebuilding", projection.version, "", 0, until, now_ms(), now_ms())
    await thread.run(lambda store: store.checkpoints.report(projection.name, progress))
    quarantined = removed = 0
    async for step in _checked(pages, projection, walk):
        quarantined += sum(n for key, n in step.outcomes.items() if key[2] == "quarantined")
        removed += sum(d.row == "view" and d.kind == ORPHANED for d in step.differences)
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
        deferred={},
    )
    await thread.run(lambda store: store.commit([Change(projection.table, claimed, done)]))
    (log.warning if quarantined else log.info)(
        "views_rebuilt",
        projection=projection.name,
        position=until,
        quarantined=quarantined,
        removed=removed,
    )


async def _checked(
    pages: Pages, projection: Projection, walk: Walk
) -> AsyncGenerator[WalkProgress, None]:
    """The steps of a scan, and before them those that check what it reads by."""
    async for _ in pages.check(projection):
        yield WalkProgress()
    async for step in walk.steps():
        yield step
