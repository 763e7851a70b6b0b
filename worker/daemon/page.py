"""One read of the log by the tail."""

import time
from collections.abc import Sequence
from typing import Final, Self

import msgspec

from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Projection
from session_projector.worker.folding.cooperative import read_in_slices
from session_projector.worker.storage.port import ANY_POSITION, Checkpoint, Store, digest

AGAIN_S: Final = 0.00005
"""Between two questions of a read that waits for a commit."""


class Page(msgspec.Struct, frozen=True):
    """Events that follow the position `start`, and what else was so when they were read."""

    start: int
    until: int | None
    """The last position that was asked for; None: as far as the log goes."""
    first: LogRow | None
    """The event at `start`, None where there is none."""
    rows: list[LogRow]
    newest: int
    touched: bool
    """Whether another connection may have committed since the read before."""
    moved: bool
    """Whether there are no rows, and a checkpoint that was asked for is another one by now."""
    events: Sequence[Event | Rejected] = ()
    """The rows as `decoded_for` is to fold them; none until they are decoded."""
    decoded_for: tuple[Projection, ...] = ()

    @property
    def more(self) -> bool:
        """Whether events follow that are to be folded too."""
        return self.rows[-1].seq < (
            self.newest if self.until is None else min(self.newest, self.until)
        )

    def fits(self, checkpoints: Sequence[Checkpoint]) -> bool:
        """Whether the event at `start` is the one that each checkpoint remembers."""
        if self.start == 0:
            return True
        return self.first is not None and {digest(self.first)} == {c.digest for c in checkpoints}

    def after(self, count: int) -> Self:
        """The same page without its first events."""
        last = self.rows[count - 1]
        return msgspec.structs.replace(
            self, start=last.seq, first=last, rows=self.rows[count:], events=self.events[count:]
        )


def read_page(
    store: Store,
    start: int,
    until: int | None,
    events: int,
    checkpoints: Sequence[Checkpoint] = (),
    patience_s: float = 0,
) -> Page:
    """Read the event at `start` and `events` of those after it. Where there are none this waits for
    `patience_s`, here in the store's thread, as the event loop's timers are whole milliseconds."""
    last = ANY_POSITION if until is None else until
    touched = store.changed()  # before the rows: it misses nothing
    rows = store.log.page(start=start, until=last, events=events)
    until_s = time.perf_counter() + patience_s
    while patience_s and (not rows or rows[-1].seq <= start) and time.perf_counter() < until_s:
        time.sleep(AGAIN_S)
        if store.changed():
            touched = True
            rows = store.log.page(start=start, until=last, events=events)
    newest = max(store.log.newest(), rows[-1].seq if rows else 0)
    first = rows.pop(0) if start and rows and rows[0].seq == start else None
    # Where there are rows the commit asks.
    moved = not rows and any(store.checkpoints.get(c.name) != c for c in checkpoints)
    return Page(start, until, first, rows, newest, touched, moved)


async def decoded(page: Page, projections: tuple[Projection, ...], *, share: bool) -> Page:
    """A page with its events as some projections are to fold them; `share`: as of
    `fold_in_slices`."""
    if page.decoded_for == projections:
        return page
    events = await read_in_slices(page.rows, projections, share=share)
    return msgspec.structs.replace(page, events=events, decoded_for=projections)
