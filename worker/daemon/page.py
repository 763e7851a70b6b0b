"""One read of the log by the tail."""

import time
from collections.abc import Sequence

import msgspec

from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Rejected
from session_projector.worker.errors import LostRace
from session_projector.worker.folding.checkpoints import does_not_fit
from session_projector.worker.storage.limits import ASK_EVERY_S
from session_projector.worker.storage.port import ANY_POSITION, Checkpoint, Store, digest


class Page(msgspec.Struct, frozen=True):
    """Events that follow some checkpoints, and what else was so when they were read."""

    checkpoints: Sequence[Checkpoint]
    until: int | None
    """The last position that was asked for; None: as far as the log goes."""
    rows: list[LogRow]
    newest: int
    touched: bool
    """Whether another connection may have committed since the read before."""
    others_wait: bool
    """Whether those who did may wait for the next commit."""
    events: Sequence[Event | Rejected] = ()
    """The rows as the projections of the checkpoints are to fold them, once they are decoded."""

    @property
    def more(self) -> bool:
        """Whether events follow that are to be folded too."""
        return self.rows[-1].seq < (
            self.newest if self.until is None else min(self.newest, self.until)
        )


def read_page(
    store: Store,
    checkpoints: Sequence[Checkpoint],
    until: int | None,
    events: int,
    patience_s: float = 0,
    *,
    committed: bool = True,
) -> Page:
    """Read the next `events` after some checkpoints, which are at one position. Where there are
    none this waits for `patience_s`, here in the store's thread, as the event loop's timers are
    whole milliseconds. Not `committed`: they are those after a batch that is not stored yet.

    Raises `InterventionRequired` where the log is not the one that a checkpoint remembers, and
    `LostRace` where that or an empty page comes of a checkpoint that was moved: what follows the
    others is committed, which looks at them too.
    """
    start = checkpoints[0].position if checkpoints else 0
    last = ANY_POSITION if until is None else until
    touched, rows, newest = store.read(start=start, until=last, events=events)
    until_s = time.perf_counter() + patience_s
    while patience_s and (not rows or rows[-1].seq <= start) and time.perf_counter() < until_s:
        time.sleep(ASK_EVERY_S)
        if store.changed():
            _, rows, newest = store.read(start=start, until=last, events=events)
            touched = True
    found = digest(rows.pop(0)) if start and rows and rows[0].seq == start else ""
    odd = [checkpoint for checkpoint in checkpoints if checkpoint.digest != found]
    if (odd or (committed and not rows)) and any(
        store.checkpoints.get(c.name) != c for c in checkpoints
    ):
        raise LostRace  # as in a database that was restored in place
    if odd:
        raise does_not_fit(odd[0].name, start)
    return Page(checkpoints, until, rows, newest, touched, touched and store.exclusive)
