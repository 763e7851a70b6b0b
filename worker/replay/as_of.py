"""The moment that rows are compared at, and where a fix moves the checkpoint from there."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from session_projector.worker.storage.port import Checkpoint, Deferred


class AsOfCheckpoint(msgspec.Struct, frozen=True):
    """Rows as of where the checkpoint is when they are read, so that a daemon may go on meanwhile.

    A fix raises the generation, so that a batch which was folded onto the rows as they were is not
    committed. A fix that loses this race is made again, as of where the checkpoint is by then.
    """

    checkpoint: Checkpoint
    follows: ClassVar[bool] = True

    @property
    def until(self) -> int:
        return self.checkpoint.position

    def position(self, now: Checkpoint) -> int:
        """The position of rows that were read together with a checkpoint."""
        return now.position

    def deferred(self, now: Checkpoint) -> Mapping[str, Deferred]:
        """The views that are behind that position."""
        return now.deferred

    def move(self, now: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
        """The checkpoint before and after a fix of rows that were read together with one."""
        return now, msgspec.structs.replace(now, generation=now.generation + 1)


class AsOfPosition(msgspec.Struct, frozen=True):
    """All rows as of one position.

    A fix needs the checkpoint to be the given one, and leaves it there: what loses a race ends.
    """

    checkpoint: Checkpoint
    until: int
    follows: ClassVar[bool] = False

    def position(self, _: Checkpoint) -> int:
        return self.until

    def deferred(self, _: Checkpoint) -> Mapping[str, Deferred]:
        return {}

    def move(self, _: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
        return self.checkpoint, self.checkpoint


AsOf = AsOfCheckpoint | AsOfPosition
