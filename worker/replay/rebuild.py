"""Which walk a projection needs: compare, mend beside a daemon, or rebuild; and one view anew."""

import time
from collections.abc import AsyncGenerator, Collection
from itertools import chain
from typing import Any, Final

import msgspec
import structlog

from session_projector.projections import fold as folding
from session_projector.projections.projection import Projection
from session_projector.worker.errors import Finding, LostRace, NeedsPerson
from session_projector.worker.folding.cooperative import fold_in_slices
from session_projector.worker.replay.walk import HoldOn, Pages, Step, Walk
from session_projector.worker.storage.port import (
    BATCH_EVENTS,
    Change,
    Checkpoint,
    State,
    Store,
    digest,
)

PROGRESS_MS: Final = 1000
"""How often a rebuild says how far it is."""

BATCH_COST_BYTES: Final = 10_000_000
"""A batch that loads as many views as it may costs as much as a walk over so many bytes."""
EVENT_COST_BYTES: Final = 600
"""What an event costs a walk besides its own bytes."""

FOLDED_TWICE: Final = 3
"""Views that differ and are folded twice in one walk, to know the code by that if not alike."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def refold(
    store: Store, projection: Projection, keys: Collection[str], *, until: int
) -> dict[str, Any]:
    """Some views as the log has them at a position, those that an event made."""
    log_keys = [projection.log_keys(key) for key in keys]
    asked = [*chain.from_iterable(filter(None, log_keys))]
    views: dict[str, Any] = {}
    position = 0
    while rows := (
        await store.read_events(start=position + 1, until=until)
        if None in log_keys
        else await store.read_history(asked, after=position, until=until)
    ):
        position = rows[-1].seq
        events = folding.read(rows, [projection])
        concerned = [event for event in events if folding.key_of(projection, event) in keys]
        views |= (await fold_in_slices(projection, views, concerned)).views
    return views


async def fits(store: Store, checkpoint: Checkpoint) -> bool:
    """Whether the event at a checkpoint is the one that it remembers."""
    if not checkpoint.position:
        return True
    position = checkpoint.position
    rows = await store.read_events(start=position, until=position)
    return bool(rows) and digest(rows[0]) == checkpoint.digest


def refuse_newer(projection: Projection, version: int) -> None:
    """`version` as the checkpoint has it: below 0 where a rebuild as that one is not done."""
    if abs(version) > projection.version:
        raise NeedsPerson(
            f"the views of {projection.name} were made by version {abs(version)} of the"
            f" projection; this projector has version {projection.version}",
            "upgrade projector (pip install -U session-projector), or the projection's own package",
        )


async def needs_rebuild(store: Store, projection: Projection, checkpoint: Checkpoint) -> bool:
    """Whether rows stand that this checkpoint has not made, or an older version made them."""
    refuse_newer(projection, checkpoint.version)
    if checkpoint.version != projection.version:
        return True
    return checkpoint.position == 0 and bool(await store.view_keys(projection, after=None))


async def is_walked(store: Store, projection: Projection, checkpoint: Checkpoint) -> bool:
    """Whether `rebuild` is to bring the views to the newest event: it must, or it is quicker.

    It is where batches in log order would each have few events, for all the views that these are
    about, by a look at those in the middle; a walk reads the whole log. Not where only the events
    tell which view they are about, as these are read twice.
    """
    if await needs_rebuild(store, projection, checkpoint):
        return True
    newest = await store.newest()
    left = newest - checkpoint.position
    if projection.log_keys("") is None or not left:
        return False
    found = await store.reach(start=checkpoint.position + left // 2, events=BATCH_EVENTS)
    if not found:
        return False
    batches = left / found.events
    if batches * BATCH_COST_BYTES <= found.database_bytes + newest * EVENT_COST_BYTES:
        return False
    return await fits(store, checkpoint)  # where it does not, the tail says so


async def is_sound(store: Store, projection: Projection, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint made the views, so that they may be mended as of it beside a daemon;
    else all of them are rebuilt."""
    if checkpoint.position == 0 or await needs_rebuild(store, projection, checkpoint):
        return False
    return await fits(store, checkpoint)


async def compare(
    store: Store,
    projection: Projection,
    *,
    checkpoint: Checkpoint | None = None,
    pages: Pages | None = None,
    only: str | None = None,
    dry_run: bool = False,
) -> AsyncGenerator[Step, None]:
    """Say what differs from the log, as of the checkpoint.

    Raises `NeedsPerson` or `Finding` where the checkpoint did not make the views; a `dry_run`
    compares these as of the newest event, and those of an older version as of the checkpoint.
    """
    checkpoint = checkpoint or await store.checkpoint(projection)
    stale = await needs_rebuild(store, projection, checkpoint)
    fit = await fits(store, checkpoint)
    if not dry_run and not fit:
        raise unfit(projection.name, checkpoint.position)
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
    until = await store.newest() if dry_run and not (fit and checkpoint.position) else None
    walk = Walk(store, projection, checkpoint, until=until, only=only, pages=pages)
    gathers = projection.log_keys("") is None
    left = 0 if projection.built_in else 1 if gathers else FOLDED_TWICE
    async for step in walk.steps():
        differences = [*step.differences]
        for number, difference in enumerate(differences):
            if left and difference.row == "view" and difference.kind != "ghost":
                left -= 1
                if not await _is_steady(store, projection, str(difference.key), walk.until):
                    kind = "nondeterministic"
                    differences[number] = msgspec.structs.replace(difference, kind=kind)
        yield msgspec.structs.replace(step, differences=differences)


async def _is_steady(store: Store, projection: Projection, key: str, until: int) -> bool:
    """Whether a view's events give the same row when they are folded twice."""
    found = [await refold(store, projection, [key], until=until) for _ in range(2)]
    first, second = ([projection.to_row(view) for view in views.values()] for views in found)
    return first == second


async def mend(
    store: Store,
    projection: Projection,
    *,
    checkpoint: Checkpoint | None = None,
    pages: Pages | None = None,
    only: str | None = None,
) -> AsyncGenerator[Step, None]:
    """Replace what differs from the log, as of the checkpoint, while a daemon tails."""
    checkpoint = checkpoint or await store.checkpoint(projection)
    walk = Walk(store, projection, checkpoint, mending=True, only=only, pages=pages)
    async for step in walk.steps():
        yield step


async def rebuild(
    store: Store,
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
    pages = pages or Pages(store, [projection])
    until = await pages.newest()
    last = await store.read_events(start=until, until=until)
    if await store.prepare(projection) != checkpoint:
        raise LostRace
    claimed = msgspec.structs.replace(
        checkpoint, version=-projection.version, generation=checkpoint.generation + 1
    )
    await store.commit([Change(projection.table, checkpoint, claimed)])
    walk = Walk(
        *(store, projection, claimed),
        until=until,
        mending=True,
        pages=pages,
        hold_on=hold_on,
        brief=brief,
    )
    progress = State("rebuilding", projection.version, "", 0, until, _now_ms(), _now_ms())
    await store.report(projection.name, progress)
    quarantined = removed = 0
    async for step in walk.steps():
        quarantined += sum(n for key, n in step.outcomes.items() if key[2] == "quarantined")
        removed += sum(d.row == "view" and d.kind == "ghost" for d in step.differences)
        progress = msgspec.structs.replace(progress, events=progress.events + step.events)
        if _now_ms() - progress.updated_at >= PROGRESS_MS:
            progress = msgspec.structs.replace(progress, updated_at=_now_ms())
            await store.report(projection.name, progress)
        yield step
    done = msgspec.structs.replace(
        claimed,
        version=projection.version,
        position=until,
        digest=digest(last[0]) if last else "",
        skipped=walk.skipped,
    )
    await store.commit([Change(projection.table, claimed, done)])
    (log.warning if quarantined else log.info)(
        "views_rebuilt",
        projection=projection.name,
        position=until,
        quarantined=quarantined,
        removed=removed,
    )


def unfit(name: str, position: int) -> NeedsPerson:
    """The log is not the one that was folded."""
    return NeedsPerson(
        f"the log does not fit the checkpoint of {name}: it was at seq {position}, and the event"
        " there is gone or another one",
        "the log was rewound or replaced; fold it from the first event with `projector replay`",
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
