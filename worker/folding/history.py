"""Views folded again from their events in the log."""

from collections.abc import AsyncIterator, Collection, Iterable
from itertools import chain
from typing import Any

from session_projector.projections import fold as folding
from session_projector.projections.event import LogRow
from session_projector.projections.projection import Projection
from session_projector.worker.folding.cooperative import fold_in_slices
from session_projector.worker.storage.port import Thread


async def history(
    thread: Thread, projection: Projection, keys: Iterable[str], *, after: int, until: int
) -> AsyncIterator[list[LogRow]]:
    """The events after a position that may concern some views, page by page in log order: all
    events, where only an event itself tells which view it concerns."""
    log_keys = [projection.log_keys(key) for key in keys]
    asked = None if None in log_keys else [*chain.from_iterable(filter(None, log_keys))]
    while rows := await thread.run(
        lambda store: (
            store.log.page(start=after + 1, until=until)
            if asked is None
            else store.log.of(asked, after=after, until=until)
        )
    ):
        after = rows[-1].seq
        yield rows


async def refold(
    thread: Thread, projection: Projection, keys: Collection[str], *, until: int
) -> dict[str, Any]:
    """Some views as the log has them at a position, those that an event made."""
    views: dict[str, Any] = {}
    async for rows in history(thread, projection, keys, after=0, until=until):
        events = folding.read(rows, [projection])
        concerned = [event for event in events if folding.key_of(projection, event) in keys]
        views |= (await fold_in_slices(projection, views, concerned)).views
    return views
