"""One batch: read, load, fold, commit; then wait."""

import time
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

import anyio
import msgspec
import structlog

from projections import fold as folding
from projections.event import Event, LogRow
from projections.fold import Rejected
from projections.projection import Damaged, Projection
from worker.errors import LostRace, NeedsPerson, Unavailable
from worker.replay import fold_history, needs_rebuild, rebuild
from worker.store import Change, Checkpoint, Store, digest
from worker.wakeup import poll_delay_s

LONGEST_IDLE_S: Final = 1.0
"""After so much waiting the log is read whatever the engine says of changes."""
RETRY_S: Final = 0.5
"""Between two attempts at a database that is locked or has no room."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def tail(
    store: Store, projection: Projection, stop: anyio.Event, *, until: int | None = None
) -> None:
    """Fold events as they come, until `stop`; with `until`, only up to that position.

    A database that is locked or has no room is waited for; with `until` it ends the tail.
    """
    checkpoint: Checkpoint | None = None
    failures = 0
    while not stop.is_set():
        before = checkpoint
        try:
            if before is None:
                before = await _start(store, projection, stop)
            checkpoint = await _turn(store, projection, before, until)
        except LostRace:
            log.info("checkpoint_moved_by_another", projection=projection.name)
            checkpoint = None
            continue
        except Unavailable as error:
            if until is not None:
                raise
            if not failures:
                log.warning("database_unavailable", why=str(error), hint=error.hint)
            failures += 1
            checkpoint = None
            await _wait(RETRY_S, stop)
            continue
        if failures:
            log.info("database_available_again", failures=failures)
            failures = 0
        if until is not None and (checkpoint == before or checkpoint.position >= until):
            return
        if checkpoint == before:
            await _idle(store, stop)


async def _idle(store: Store, stop: anyio.Event) -> None:
    """Until somebody may have written something; that is only a hint, so never for long."""
    waited_s = 0.0
    for polls in count():
        if stop.is_set() or waited_s >= LONGEST_IDLE_S or await store.changed():
            return
        await _wait(poll_delay_s(polls), stop)
        waited_s += poll_delay_s(polls)


async def _wait(seconds: float, stop: anyio.Event) -> None:
    with anyio.move_on_after(seconds):
        await stop.wait()


async def _start(store: Store, projection: Projection, stop: anyio.Event) -> Checkpoint:
    """Where the projection stands, once nothing stands that another program made."""
    while True:
        checkpoint = await store.checkpoint(projection)
        _check_version(projection, checkpoint)
        if stop.is_set() or not await needs_rebuild(store, projection, checkpoint):
            return checkpoint
        await rebuild(store, projection, checkpoint, stop)


async def _turn(
    store: Store, projection: Projection, checkpoint: Checkpoint, until: int | None
) -> Checkpoint:
    """One batch, or none where there is nothing new; returns where the projection then stands."""
    started = time.perf_counter()
    newest = await store.newest()
    rows = await store.read_events(start=checkpoint.position, until=until)
    if not _fits(checkpoint, rows):
        return await _reload(store, projection, checkpoint, newest)
    rows = rows[1:] if checkpoint.position else rows
    if not rows:
        return checkpoint
    change = await _fold(store, projection, checkpoint, rows)
    await store.commit([change])
    _report(change, newest, started)
    return change.after


async def _fold(
    store: Store, projection: Projection, checkpoint: Checkpoint, rows: Sequence[LogRow]
) -> Change:
    """What the first of these rows change: as many as touch views that may be loaded at once."""
    events = folding.read(rows)
    keys = [_key_of(projection, event) for event in events]
    asked = [*dict.fromkeys(key for key in keys if key is not None)]
    loaded = await store.load_views(projection.table, asked)
    if loaded.covered < len(asked):
        cut = keys.index(asked[loaded.covered])
        rows, events, asked = rows[:cut], events[:cut], asked[: loaded.covered]
    views = await _views(store, projection, checkpoint, asked, loaded.rows)
    folded = folding.fold(projection, views, events)
    after = msgspec.structs.replace(
        checkpoint,
        position=rows[-1].seq,
        digest=digest(rows[-1]),
        skipped=checkpoint.skipped + folded.skipped,
    )
    changed = [projection.to_row(view) for view in folded.views.values()]
    return Change(projection.table, checkpoint, after, changed, (), folded.quarantined)


async def _views(
    store: Store,
    projection: Projection,
    checkpoint: Checkpoint,
    keys: Sequence[str],
    rows: dict[str, tuple[Any, ...]],
) -> dict[str, Any | None]:
    """The views that stand; one found damaged, or gone, is folded from the log on the spot."""
    views: dict[str, Any | None] = dict.fromkeys(keys)
    suspect: list[str] = []
    for key, row in rows.items():
        try:
            views[key] = projection.from_row(row)
        except Damaged as error:
            log.warning("damaged_view_found", projection=projection.name, key=key, why=str(error))
            suspect.append(key)
    absent = {
        spelling: key for key in keys if key not in rows for spelling in projection.log_keys(key)
    }
    if checkpoint.position and absent:
        suspect += {absent[key] for key in await store.with_history(checkpoint, [*absent])}
    for key in suspect:
        folded, _ = await fold_history(
            store, projection, projection.log_keys(key), until=checkpoint.position
        )
        views[key] = folded.views.get(key)
        if views[key] is not None:
            log.warning("view_folded_from_log", projection=projection.name, key=key)
    return views


async def _reload(
    store: Store, projection: Projection, checkpoint: Checkpoint, newest: int
) -> Checkpoint:
    """The log does not fit what is remembered: the database was restored in place, or is wrong."""
    standing = await store.checkpoint(projection)
    if standing != checkpoint:
        return standing
    raise NeedsPerson(
        f"the log does not fit the checkpoint of {projection.name}: it was at seq"
        f" {checkpoint.position}, and the event there is gone or another one (the newest is"
        f" {newest})",
        "the log was rewound or replaced; to fold it from the first event: projector replay",
    )


def _fits(checkpoint: Checkpoint, rows: Sequence[LogRow]) -> bool:
    if checkpoint.position == 0:
        return True
    return (
        bool(rows) and rows[0].seq == checkpoint.position and digest(rows[0]) == checkpoint.digest
    )


def _key_of(projection: Projection, event: Event | Rejected) -> str | None:
    return None if isinstance(event, Rejected) else projection.key_of(event)


def _check_version(projection: Projection, checkpoint: Checkpoint) -> None:
    if checkpoint.version > projection.version:
        raise NeedsPerson(
            f"the views of {projection.name} were made by version {checkpoint.version} of the"
            f" projection; this projector has version {projection.version}",
            "upgrade projector: pip install -U session-projector",
        )


def _report(change: Change, newest: int, started: float) -> None:
    before, after = change.before, change.after
    fields: dict[str, Any] = {
        "projection": after.name,
        "position": after.position,
        "lag_events": max(newest - after.position, 0),
        "views": len(change.rows),
        "skipped": after.skipped - before.skipped,
        "duration_ms": round((time.perf_counter() - started) * 1000, 2),
    }
    if change.quarantined:
        fields["quarantined"] = [event.seq for event in change.quarantined[:10]]
        log.warning("batch_committed", quarantined_count=len(change.quarantined), **fields)
    else:
        log.info("batch_committed", **fields)
