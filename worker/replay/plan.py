"""Whether a projection catches up batch by batch, in log order, or by a full scan of the log."""

from typing import Final

from session_projector.projections.projection import Projection
from session_projector.worker.folding.checkpoints import fits_log, needs_rebuild
from session_projector.worker.storage.limits import BATCH_EVENTS
from session_projector.worker.storage.port import BatchReach, Checkpoint, Store

BATCH_COST_BYTES: Final = 10_000_000
"""A batch that loads and writes as many views as it may takes as long as to scan these bytes."""
EVENT_COST_BYTES: Final = 600
"""An event that is scanned takes as long as to read so many bytes more than its own."""


Reaches = dict[int, BatchReach | None]
"""How far a batch comes from a position: the same for all projections, and found out once."""


def calls_for_full_scan(
    store: Store, projection: Projection, checkpoint: Checkpoint, reaches: Reaches
) -> bool:
    """Whether a full scan is to bring the views to the newest event: it must, or it is quicker.

    It never is where only the events tell which view they are about, as these are read twice.
    """
    if needs_rebuild(store, projection, checkpoint):
        return True
    newest = store.log.newest()
    left = newest - checkpoint.position
    if projection.log_keys("") is None or not left:
        return False
    if checkpoint.position not in reaches:
        start = checkpoint.position + left // 2
        reaches[checkpoint.position] = store.log.batch_reach(start=start, events=BATCH_EVENTS)
    reach = reaches[checkpoint.position]
    if not reach or not scan_is_quicker(left, newest, reach):
        return False
    return fits_log(store, checkpoint)  # where it does not, the tail says so


def scan_is_quicker(left: int, newest: int, reach: BatchReach) -> bool:
    """Compare the time that both ways take, each as the bytes that are read in the same time.

        batches:  left / reach.events * BATCH_COST_BYTES
        scan:     reach.database_bytes + newest * EVENT_COST_BYTES

    `left` events are still to be folded. A batch holds `reach.events` of them before their views
    fill it, as seen in the middle of what is left: the more views they are spread over, the fewer,
    and each view is then loaded and written again by many batches. A scan writes each view once,
    but reads the whole database and folds all events of the log, `newest` at most.
    """
    batches = left / reach.events * BATCH_COST_BYTES
    return batches > reach.database_bytes + newest * EVENT_COST_BYTES
