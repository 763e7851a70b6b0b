"""What fails while folding where no event is to blame."""

import traceback
from asyncio import CancelledError, current_task
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from session_projector.projections.event import OutOfMemory
from session_projector.projections.projection import Projection
from session_projector.worker.errors import (
    DatabaseUnavailable,
    LostRace,
    ProjectionFailed,
    ProjectorError,
)


@contextmanager
def faults_of(projection: Projection) -> Iterator[None]:
    """What a projection's code raises where no event is to blame is its own failure."""
    try:
        yield
    except (ProjectorError, LostRace, GeneratorExit):
        raise
    except OutOfMemory as error:
        raise ProjectionFailed(projection.name, f"MemoryError: {error}", MORE_MEMORY) from None
    except BaseException as error:
        if isinstance(error, CancelledError | KeyboardInterrupt) and _is_cancelled():
            raise
        *_, frame = traceback.extract_tb(error.__traceback__)
        raise ProjectionFailed(
            projection.name,
            f"{type(error).__name__} in {frame.filename}, line {frame.lineno}",
            "a fault in its code; `session_projector.testing` helps to find it",
        ) from error


def _is_cancelled() -> bool:
    """Whether somebody cancels this task, as the first Ctrl-C does: else its own code raised it."""
    task = current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def decoding() -> Iterator[None]:
    """Too little memory to decode an event holds up all projections: what the event does must not
    depend on it, and without the event the next ones cannot be folded. A daemon tries again."""
    try:
        yield
    except OutOfMemory as error:
        raise DatabaseUnavailable(str(error), MORE_MEMORY) from None


MORE_MEMORY: Final = (
    "give the process more memory: `ulimit -v`, MemoryMax= of its unit, or its container's limit"
)
