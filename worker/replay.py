"""The walk over the log by view: fold a view's events up to a position, compare, mend."""

from collections.abc import AsyncIterator, Sequence
from itertools import chain
from typing import Any, Final

import anyio
import msgspec
import structlog

from projections import fold as folding
from projections.event import Event, is_utf8
from projections.fold import Folded, Rejected
from projections.projection import Projection
from worker.store import Change, Checkpoint, Store, digest

CHUNK_CHANGES: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
"""What one transaction of the walk writes at most, so that no writer waits long."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


async def fold_history(
    store: Store, projection: Projection, log_keys: Sequence[Any], *, until: int
) -> tuple[Folded, set[Any]]:
    """Fold all that stands under some log keys; also says which of these keys have events."""
    views: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    skipped = position = 0
    present: set[Any] = set()
    while rows := await store.read_history(log_keys, after=position, until=until):
        position = rows[-1].seq
        present.update(row.key for row in rows)
        folded = folding.fold(projection, views, folding.read(rows))
        views.update(folded.views)
        quarantined += folded.quarantined
        skipped += folded.skipped
    return Folded(views, quarantined, skipped), present


async def refold(store: Store, projection: Projection, key: str, *, until: int) -> Any | None:
    """One view as the log has it at a position; None where no event made it."""
    log_keys = projection.log_keys(key)
    if log_keys is not None:
        folded, _ = await fold_history(store, projection, log_keys, until=until)
        return folded.views.get(key)
    view = None
    async for events in _all_events(store, until):
        concerned = [e for e in events if folding.key_of(projection, e) == key]
        view = folding.fold(projection, {key: view}, concerned).views.get(key, view)
    return view


async def needs_rebuild(store: Store, projection: Projection, checkpoint: Checkpoint) -> bool:
    """Whether rows stand that this checkpoint has not made, as after the adoption of a database."""
    return checkpoint.position == 0 and bool(await store.view_keys(projection.table, after=""))


async def rebuild(
    store: Store, projection: Projection, checkpoint: Checkpoint, stop: anyio.Event
) -> None:
    """Bring every view to the newest event, each replaced at once and whole.

    Stopped or killed at any moment it leaves whole rows and the checkpoint where it was. The
    generation is raised first, so that of two walks only the later one goes on; the other one
    raises `LostRace`.
    """
    until = await store.newest()
    last = await store.read_events(start=until, until=until)
    claimed = msgspec.structs.replace(checkpoint, generation=checkpoint.generation + 1)
    await store.commit([Change(projection.table, checkpoint, claimed)])
    skipped = 0
    async for found in _walk(store, projection, claimed, until):
        if stop.is_set():
            return
        skipped += found.skipped
        if found.rows or found.removed or found.quarantined:
            await store.commit([found.change(projection, claimed)])
    done = msgspec.structs.replace(
        claimed, position=until, digest=digest(last[0]) if last else "", skipped=skipped
    )
    await store.commit([Change(projection.table, claimed, done)])
    log.info("views_rebuilt", projection=projection.name, position=until)


class _Found:
    """What differs in some views, gathered for one short transaction."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.removed: list[str] = []
        self.quarantined: list[Rejected] = []
        self.skipped = self.visited = 0

    @property
    def full(self) -> bool:
        changes = len(self.removed) + len(self.quarantined) + self.visited
        size = sum(len(value) for row in self.rows for value in row if isinstance(value, bytes))
        return changes >= CHUNK_CHANGES or size >= CHUNK_BYTES

    def change(self, projection: Projection, checkpoint: Checkpoint) -> Change:
        return Change(
            projection.table, checkpoint, checkpoint, self.rows, self.removed, self.quarantined
        )


async def _walk(
    store: Store, projection: Projection, checkpoint: Checkpoint, until: int
) -> AsyncIterator[_Found]:
    found = _Found()
    if projection.log_keys("") is None:
        yield await _compare_all(store, projection, until)
        return
    async for log_key in _log_keys(store):
        found.visited += 1
        await _compare(store, projection, log_key, until, found)
        if found.full:
            yield found
            found = _Found()
    at_end = msgspec.structs.replace(checkpoint, position=until)
    async for keys in _view_keys(store, projection):
        spellings = {key: (projection.log_keys(key) or ()) if is_utf8(key) else () for key in keys}
        asked = [*chain.from_iterable(spellings.values())]
        explained = await store.with_history(at_end, asked) if asked else set()
        found.removed += [key for key in keys if explained.isdisjoint(spellings[key])]
        yield found
        found = _Found()
    yield found


async def _compare(
    store: Store, projection: Projection, log_key: Any, until: int, found: _Found
) -> None:
    """Fold what stands under a log key, and add what differs from the row that stands."""
    if not isinstance(log_key, str) or not is_utf8(log_key):
        folded, _ = await fold_history(store, projection, (log_key,), until=until)
        found.quarantined += folded.quarantined
        found.skipped += folded.skipped
        return
    key = projection.view_of(log_key) or log_key
    log_keys = projection.log_keys(key) or ()
    folded, present = await fold_history(store, projection, log_keys, until=until)
    if not present or log_key != min(present):
        return  # all of it is newer than the walk, or was met under its other spelling
    found.quarantined += folded.quarantined
    found.skipped += folded.skipped
    standing = (await store.load_views(projection.table, [key])).rows.get(key)
    if key not in folded.views:
        found.removed += [key] if standing else []
    elif standing != (row := projection.to_row(folded.views[key])):
        found.rows.append(row)


async def _compare_all(store: Store, projection: Projection, until: int) -> _Found:
    """For views whose events may stand under any key: all of them at once."""
    found = _Found()
    views: dict[str, Any] = {}
    async for events in _all_events(store, until):
        folded = folding.fold(projection, views, events)
        views.update(folded.views)
        found.quarantined += folded.quarantined
        found.skipped += folded.skipped
    async for keys in _view_keys(store, projection):
        standing = (await store.load_views(projection.table, keys)).rows
        found.removed += [key for key in keys if key not in views]
        for key in keys:
            if key in views and projection.to_row(views[key]) == standing.get(key):
                del views[key]
    found.rows = [projection.to_row(view) for view in views.values()]
    return found


async def _all_events(store: Store, until: int) -> AsyncIterator[list[Event | Rejected]]:
    start = 0
    while rows := await store.read_events(start=start, until=until):
        yield folding.read(rows)
        start = rows[-1].seq + 1


async def _log_keys(store: Store) -> AsyncIterator[Any]:
    yield None
    after = None
    while keys := await store.log_keys(after=after):
        for key in keys:
            yield key
        after = keys[-1]


async def _view_keys(store: Store, projection: Projection) -> AsyncIterator[list[str]]:
    after = ""
    while keys := await store.view_keys(projection.table, after=after):
        yield keys
        after = keys[-1]
