"""A projection whose code fails where no event is to blame."""

import traceback
from asyncio import CancelledError, current_task
from collections.abc import Iterator
from contextlib import contextmanager

from session_projector.projections.projection import Projection
from session_projector.worker.errors import LostRace, ProjectionFailed, ProjectorError


@contextmanager
def faults_of(projection: Projection) -> Iterator[None]:
    """What a projection's code raises where no event is to blame is its own failure."""
    try:
        yield
    except (ProjectorError, LostRace, GeneratorExit):
        raise
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
