"""The moment that rows are compared at, and where a fix moves the checkpoint from there."""

from typing import Final

import msgspec

from session_projector.worker.storage.port import Checkpoint


class AsOfCheckpoint:
    """Rows as of where the checkpoint is when they are read, so that a daemon may go on meanwhile.

    A fix raises the generation, so that a batch which was folded onto the rows as they were is not
    committed. A fix that loses this race is made again, as of where the checkpoint is by then.
    """

    follows: Final = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.until = checkpoint.position

    def position(self, now: Checkpoint) -> int:
        """The position for rows that were read together with a checkpoint."""
        return now.position

    def move(self, now: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
        """The checkpoint before and after a fix of rows that were read together with one."""
        return now, msgspec.structs.replace(now, generation=now.generation + 1)


class AsOfPosition:
    """All rows as of one position.

    A fix needs the checkpoint to be the given one, and leaves it there: what loses a race ends.
    """

    follows: Final = False

    def __init__(self, checkpoint: Checkpoint, until: int) -> None:
        self.checkpoint = checkpoint
        self.until = until

    def position(self, now: Checkpoint) -> int:  # noqa: ARG002
        return self.until

    def move(self, now: Checkpoint) -> tuple[Checkpoint, Checkpoint]:  # noqa: ARG002
        return self.checkpoint, self.checkpoint


AsOf = AsOfCheckpoint | AsOfPosition
