"""A projection whose code fails where no event is to blame."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from session_projector.projections.projection import Projection
from session_projector.worker.errors import LostRace, ProjectionFailed, ProjectorError


@contextmanager
def faults_of(projection: Projection) -> Iterator[None]:
    """What a projection's code raises where no event is to blame is its own failure."""
    try:
        yield
    except (ProjectorError, LostRace):
        raise
    except (Exception, SystemExit) as error:
        *_, frame = traceback.extract_tb(error.__traceback__)
        raise ProjectionFailed(
            projection.name,
            f"{type(error).__name__} in {frame.filename}, line {frame.lineno}",
            "a fault in its code; `session_projector.testing` helps to find it",
        ) from error
