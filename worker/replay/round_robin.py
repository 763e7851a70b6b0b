"""Full scans of several projections that take turns, a page each."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import anyio

from session_projector.projections.projection import Projection
from session_projector.worker.folding.checkpoints import checkpoint_of
from session_projector.worker.replay.walk import Pages
from session_projector.worker.replay.walkers import Walkers
from session_projector.worker.storage.port import Checkpoint, Thread

STANDBY_POLL_S: Final = 0.5
"""How often a process that is waited for is checked."""

Scan = AsyncGenerator[Any, None]
"""One projection's scan; it yields False while it waits for another process."""
Attempt = Callable[[Projection], AbstractContextManager[None]]


async def interleave(
    thread: Thread,
    projections: Sequence[Projection],
    scan: Callable[[Projection, Checkpoint, Pages], Scan],
    attempt: Attempt,
    *,
    share: bool = False,
    known: Mapping[str, Checkpoint] | None = None,
    walkers: Walkers | None = None,
) -> None:
    """Let the scans take turns, so that those up to the same position read the log once.

    An error that `attempt` suppresses ends the scan of that projection alone.
    `share`: other tasks get as much time as the scans take. `known` are checkpoints that
    were read before, `walkers` fold for them.
    """
    pages = Pages(thread, projections, share=share, walkers=walkers)
    scans: dict[Projection, Scan] = {}
    for projection in projections:
        with attempt(projection):
            if (checkpoint := (known or {}).get(projection.name)) is None:
                checkpoint = await thread.run(lambda store: checkpoint_of(store, projection))
            scans[projection] = scan(projection, checkpoint, pages)
    try:
        while scans:
            moved = False
            for projection, steps in [*scans.items()]:
                went = None
                with attempt(projection):
                    went = await anext(steps, None)
                moved = moved or went is not False
                if went is None:
                    await scans.pop(projection).aclose()
            if not moved:
                await anyio.sleep(STANDBY_POLL_S)
    finally:
        for steps in scans.values():
            await steps.aclose()
