"""What fails while folding where no event is to blame."""

import traceback
from asyncio import CancelledError, current_task
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from session_projector.projections import fold as folding
from session_projector.projections.event import OutOfMemory
from session_projector.projections.projection import Projection
from session_projector.worker.errors import (
    DatabaseUnavailable,
    LostRace,
    ProjectionFailed,
    ProjectorError,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


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


_told: Final[set[tuple[str, str, str, int]]] = set()
_MOST_PLACES: Final = 1000
_MOST_FRAMES: Final = 20


def tell_of_fault(projection: Projection, seq: int, error: BaseException) -> None:
    """Log what a projection's code raised for an event, once for each place that raises it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    at = (last.tb_frame.f_code.co_filename, last.tb_lineno) if last else ("", 0)
    place = (projection.name, type(error).__name__, *at)
    if place in _told or len(_told) >= _MOST_PLACES:
        return
    _told.add(place)
    every = traceback.extract_tb(error.__traceback__)
    frames = [one for one in every if one.filename != folding.__file__][-_MOST_FRAMES:]
    log.warning(
        "projection_raised",
        projection=projection.name,
        seq=seq,
        why="".join(traceback.format_exception_only(error)).strip(),
        traceback=[
            f"{one.filename}, line {one.lineno}, {one.name}(): {one.line}" for one in frames
        ],
        hint=f"the event is in quarantine, as each is that raises it: `projector quarantine show"
        f" {seq}`; mend the code, raise its version and restart",
    )


def told(error: ProjectionFailed) -> dict[str, str]:
    """The fields of the log for a projection that fails; what its code raised is in the log alone,
    as it may quote a message."""
    said = {"why": str(error), "hint": error.hint}
    if error.__cause__ is not None:
        said["raised"] = "".join(traceback.format_exception_only(error.__cause__)).strip()
    return said


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
        raise DatabaseUnavailable(str(error), MORE_MEMORY, lacks="limit") from None


MORE_MEMORY: Final = (
    "give the process more memory: `ulimit -v`, MemoryMax= of its unit, or its container's limit"
)
