"""One projection of a tail."""

import msgspec
import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.daemon.view_cache import ViewCache
from session_projector.worker.folding.checkpoints import checkpoint_of, refuse_newer
from session_projector.worker.storage.port import Checkpoint, Store, Thread

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Member(msgspec.Struct, frozen=True):
    """A projection, its checkpoint, and those of its views that are cached as of there."""

    projection: Projection
    checkpoint: Checkpoint
    cache: ViewCache = msgspec.field(default_factory=ViewCache)


async def load(thread: Thread, projection: Projection) -> Member:
    """A projection at its checkpoint, its table in shape; refuses views of a newer version."""

    def prepared(store: Store) -> tuple[Checkpoint, Checkpoint]:
        before = checkpoint_of(store, projection)
        refuse_newer(projection, before.version)
        return before, store.views.prepare(projection)

    before, checkpoint = await thread.run(prepared)
    if checkpoint.position < before.position:
        log.warning("views_gone", projection=projection.name, position=before.position)
    return Member(projection, checkpoint)
