"""The moment that rows are compared at, and where a fix moves the checkpoint from there."""

from collections.abc import Mapping

import msgspec

from session_projector.worker.storage.port import Checkpoint, Deferred


class AsOf(msgspec.Struct, frozen=True):
    """A moment of rows: where the checkpoint is when they are read, or one position for all.

    If it `follows` the checkpoint, a daemon may go on meanwhile. A fix raises the generation, so
    that a batch which was folded onto the rows as they were is not committed. A fix that loses this
    race is made again, as of where the checkpoint is by then. Otherwise a fix needs the checkpoint
    to be the given one, and leaves it there: what loses a race ends.
    """

    checkpoint: Checkpoint
    until: int
    follows: bool

    def position(self, now: Checkpoint) -> int:
        """The position of rows that were read together with a checkpoint."""
        return now.position if self.follows else self.until

    def deferred(self, now: Checkpoint) -> Mapping[str, Deferred]:
        """The views that are behind that position."""
        return now.deferred if self.follows else {}

    def move(self, now: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
        """The checkpoint before and after a fix of rows that were read together with one."""
        if not self.follows:
            return self.checkpoint, self.checkpoint
        return now, now.replayed()


def as_of_checkpoint(checkpoint: Checkpoint) -> AsOf:
    return AsOf(checkpoint, checkpoint.position, follows=True)
