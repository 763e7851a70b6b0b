"""Helpers that fold, verify and replay in this process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from session_projector.projections import BUILT_IN
from session_projector.projections.projection import Projection
from session_projector.worker.daemon import supervisor
from session_projector.worker.doctor import examine as doctor
from session_projector.worker.errors import naming
from session_projector.worker.folding.checkpoints import checkpoint_of
from session_projector.worker.replay import verify, walk
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Check, Checkpoint, Thread
from support import Database


def target(url: str | Path, limits: Limits | None = None) -> Any:
    """A database, as the program opens it."""
    return storage.database(str(url), limits)


@asynccontextmanager
async def opened(url: str | Path) -> AsyncIterator[Thread]:
    """A store in a thread of its own."""
    async with target(url).open_thread() as thread:
        yield thread


async def checkpoint(thread: Thread, projection: Projection) -> Checkpoint:
    return await thread.run(lambda store: checkpoint_of(store, projection))


async def run_once(url: str | Path, projections: Sequence[Any] = BUILT_IN) -> None:
    await supervisor.run_once(target(url), projections)


def catch_up(
    database: Database, projections: Sequence[Any] = BUILT_IN, limits: Limits | None = None
) -> None:
    anyio.run(supervisor.run_once, target(database.url, limits), projections)


def refolded(database: Database) -> Database:
    """Fold the same log into a fresh database, all at once."""
    fresh = database.another()
    fresh.insert_log(database.log())
    catch_up(fresh)
    return fresh


class Heard:
    """The differences that a full scan reported."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}

    def step(self, tally: verify.Tally, step: walk.WalkProgress) -> None: ...

    def done(self, tally: verify.Tally) -> None:
        for (row, kind), count in tally.rows.items():
            self.kinds[f"{row} {kind}"] = self.kinds.get(f"{row} {kind}", 0) + count


async def replay(database: Any, projections: Sequence[Any], heard: Heard) -> None:
    """As the command does it."""
    leadership = database.leadership()
    try:
        await verify.replay(database, projections, heard, leadership=leadership)
        catch_up = leadership.acquire()
    finally:
        leadership.release()
    if catch_up:
        await supervisor.run_once(database, projections)


async def compare(database: Any, projections: Sequence[Any], heard: Heard) -> None:
    await verify.compare(database, projections, heard)


def repair(
    database: Database, projections: Sequence[Any] = BUILT_IN, limits: Limits | None = None
) -> dict[str, int]:
    heard = Heard()
    anyio.run(replay, target(database.url, limits), projections, heard)
    return heard.kinds


def differences(
    database: Database, projections: Sequence[Any] = BUILT_IN, limits: Limits | None = None
) -> dict[str, int]:
    heard = Heard()
    anyio.run(compare, target(database.url, limits), projections, heard)
    return heard.kinds


def examine(url: str | Path) -> list[Check]:
    """What the doctor finds, as its command prints it: commands name the database."""
    found = doctor.examine(target(url))
    return [msgspec.structs.replace(one, fix=naming(str(url), one.fix)) for one in found]
