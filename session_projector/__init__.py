"""Tails an event log and folds it into session views. What other programs use is imported here."""

TYPE_CHECKING = False  # typing's own would take 5 ms of every start
if TYPE_CHECKING:
    from typing import Any

    from session_projector.projections.event import (
        SESSION_EVENTS,
        Event,
        Messages,
        MessagesAppended,
        Other,
        SessionCreated,
        SessionUpdated,
        Unfoldable,
    )
    from session_projector.projections.projection import CorruptRow, PerSession, Projection, Table
    from session_projector.worker.client import append, read, wait
    from session_projector.worker.errors import (
        CheckFailed,
        InterventionRequired,
        ProjectorError,
        TransientError,
        UsageError,
    )

__all__ = [
    "SESSION_EVENTS",
    "CheckFailed",
    "CorruptRow",
    "Event",
    "InterventionRequired",
    "Messages",
    "MessagesAppended",
    "Other",
    "PerSession",
    "Projection",
    "ProjectorError",
    "SessionCreated",
    "SessionUpdated",
    "Table",
    "TransientError",
    "Unfoldable",
    "UsageError",
    "append",
    "read",
    "wait",
]
# In this order, so that no name imports more than it needs.
_MODULES = ("projections.event", "projections.projection", "worker.errors", "worker.client")


def __getattr__(name: str) -> "Any":
    """Imports a name when it is first asked for: a command starts without most of them."""
    from importlib import import_module

    if name in __all__:
        for path in _MODULES:
            module = import_module(f"{__name__}.{path}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
