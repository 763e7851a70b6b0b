"""Whether a checkpoint matches the log, the code and the views."""

from collections.abc import Sequence

from session_projector.projections.projection import Projection
from session_projector.worker.errors import InterventionRequired, upgrade
from session_projector.worker.storage.port import FOLD_AGAIN, Checkpoint, Store, digest


def checkpoint_of(store: Store, projection: Projection) -> Checkpoint:
    """The checkpoint of a projection; it and the table are created if they do not exist."""
    return store.checkpoints.get(projection.name) or store.views.prepare(projection)


def fits_log(store: Store, checkpoint: Checkpoint) -> bool:
    """Whether the event at the position of a checkpoint is the one that was folded."""
    if not checkpoint.position:
        return True
    row = store.log.event(checkpoint.position)
    return row is not None and digest(row) == checkpoint.digest


def refuse_newer(projection: Projection, version: int) -> None:
    """Raises `InterventionRequired` where a newer version made the views.

    `version` is that of the checkpoint, below 0 while a rebuild by that version is not done.
    """
    if abs(version) > projection.version:
        raise InterventionRequired(
            f"the views of {projection.name} were made by version {abs(version)} of the"
            f" projection; this projector has version {projection.version}",
            f"{upgrade()}, or the projection's own package",
        )


def needs_rebuild(store: Store, projection: Projection, checkpoint: Checkpoint) -> bool:
    """Whether there are rows that the checkpoint did not make, or that an older version made."""
    refuse_newer(projection, checkpoint.version)
    if checkpoint.version != projection.version:
        return True
    return checkpoint.position == 0 and bool(store.views.keys(projection, after=None))


def is_sound(store: Store, projection: Projection, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint made the views, so that they can be repaired while a daemon runs; if
    not, all of them are rebuilt."""
    if checkpoint.position == 0 or needs_rebuild(store, projection, checkpoint):
        return False
    return fits_log(store, checkpoint)


def does_not_fit(name: str, position: int) -> InterventionRequired:
    """The error of a log that is not the one that was folded."""
    return InterventionRequired(rewound([f"{name}@{position}"]), FOLD_AGAIN)


def rewound(checkpoints: Sequence[str]) -> str:
    """What is said of a log that some checkpoints, each `NAME@POSITION`, do not match."""
    which = (
        f"checkpoints {', '.join(checkpoints)} do"
        if len(checkpoints) > 1
        else f"checkpoint {checkpoints[0]} does"
    )
    return f"event_log was truncated or replaced: {which} not match"
