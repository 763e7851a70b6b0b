"""The test kit for projections: given these events, expect these views."""

from session_projector.projections.testing import (
    T0,
    Given,
    appended,
    created,
    event,
    given,
    updated,
)

__all__ = ["T0", "Given", "appended", "created", "event", "given", "updated"]
