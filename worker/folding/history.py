"""Views folded again from their events in the log."""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from itertools import chain
from typing import Any

import msgspec

from session_projector.projections import fold as folding
from session_projector.projections.event import Event
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Projection
from session_projector.worker.folding.cooperative import fold_in_slices, read_in_slices
from session_projector.worker.storage.port import Thread


async def history(
    thread: Thread,
    projection: Projection,
    keys: Iterable[str] | None,
    *,
    after: int,
    until: int,
    share: bool = False,
) -> AsyncIterator[list[Event | Rejected]]:
    """The events after a position that may concern some views, page by page in log order: all
    events for None, and where only an event itself tells which view it concerns. `share`: as of
    `read_in_slices`."""
    log_keys = [None] if keys is None else [projection.log_keys(key) for key in keys]
    asked = None if None in log_keys else [*chain.from_iterable(filter(None, log_keys))]
    while rows := await thread.run(
        lambda store: (
            store.log.page(start=after + 1, until=until)
            if asked is None
            else store.log.of(asked, after=after, until=until)
        )
    ):
        after = rows[-1].seq
        yield await read_in_slices(rows, [projection], share=share)


class Refolded(msgspec.Struct, frozen=True):
    """Some views as the log has them, the events about them that cannot be folded, and how many
    there are of each type."""

    views: dict[str, Any]
    quarantined: list[Rejected]
    types: Counter[str | None]


async def refold(
    thread: Thread,
    projection: Projection,
    keys: Collection[str],
    *,
    until: int,
    after: int = 0,
    onto: Mapping[str, Any] | None = None,
    share: bool = False,
) -> Refolded:
    """Some views as the log has them at a position, those that an event made.

    `onto` has the views as of `after`, where they need not be folded from the first event. `share`:
    as of `fold_in_slices`.
    """
    found = Refolded({**(onto or {})}, [], Counter())
    async for events in history(thread, projection, keys, after=after, until=until, share=share):
        concerned = [event for event in events if folding.key_of(projection, event) in keys]
        folded = await fold_in_slices(projection, found.views, concerned, share=share)
        found.views.update(folded.views)
        found.quarantined.extend(folded.quarantined)
        found.types.update(event.type for event in concerned)
    return found
