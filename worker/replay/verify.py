"""Composition of verify and replay: each projection's walk in turn, and what is told of it."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.daemon.service import holder_rebuilds, run_once
from session_projector.worker.daemon.tail import faults_of
from session_projector.worker.errors import (
    Finding,
    LostRace,
    NeedsPerson,
    ProjectorError,
    RetryLater,
    quoted,
)
from session_projector.worker.replay import rebuild as walks
from session_projector.worker.replay.round_robin import Attempt, Turn, side_by_side
from session_projector.worker.replay.walk import Pages, Step
from session_projector.worker.storage.port import Checkpoint
from session_projector.worker.storage.sqlite.connection import DaemonLock
from session_projector.worker.storage.sqlite.schema import migrate as schema
from session_projector.worker.storage.sqlite.store import SqliteStore, opened

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Tally:
    """What a walk over one projection has found so far."""

    def __init__(self, projection: Projection, position: int, total: int) -> None:
        self.projection = projection.name
        self.built_in = projection.built_in
        self.position = position
        self.total = total
        """Events that the walk is about to read, for the time that is left."""
        self.events = self.views = 0
        self.rows: Counter[tuple[str, str]] = Counter()
        self.fields: Counter[str] = Counter()

    def add(self, step: Step) -> None:
        self.events += step.events
        self.views += step.views
        for difference in step.differences:
            self.rows[difference.row, difference.kind] += 1
            self.fields.update({field.field for field in difference.fields})


class Listener(Protocol):
    """Whoever is told of a walk as it goes."""

    def step(self, tally: Tally, step: Step) -> None: ...

    def done(self, tally: Tally) -> None: ...


async def compare(
    path: Path,
    projections: Sequence[Projection],
    listener: Listener,
    *,
    session: str | None = None,
    dry_run: bool = False,
) -> int:
    """Say what differs from the log; returns how much. `dry_run`: a log that was replaced too.

    A projection that cannot be compared does not keep the others from it; the gravest of such
    errors is raised at the end.
    """
    tallies: list[Tally] = []

    async def turn(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Turn:
        only = _view_of(projection, session)
        steps = walks.compare(
            *(store, projection),
            checkpoint=checkpoint,
            pages=pages,
            only=only,
            dry_run=dry_run,
        )
        try:
            tally = await _tally(store, projection)
            tallies.append(tally)
            async for _ in _follow(tally, steps, listener):
                yield True
        except LostRace:
            raise RetryLater(
                f"{path} was restored, or {projection.name} dropped, while it was compared",
                "start again",
            ) from None

    async with opened(path) as store, _each() as attempt:
        await side_by_side(store, projections, turn, attempt)
    return sum(tally.rows.total() for tally in tallies)


async def replay(
    path: Path,
    projections: Sequence[Projection],
    listener: Listener,
    *,
    session: str | None = None,
) -> None:
    """Replace what differs from the log; without a daemon, catch up with its newest event too."""
    lock = DaemonLock(path)

    def turn(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Turn:
        return _replay(path, store, projection, checkpoint, pages, lock, listener, session)

    try:
        async with opened(path) as store, _each() as attempt:
            await side_by_side(store, projections, turn, attempt)
        caught_up = session is not None or not lock.acquire()
    finally:
        lock.release()
    if not caught_up:
        await run_once(path, projections)


@asynccontextmanager
async def _each() -> AsyncIterator[Attempt]:
    """Whatever one projection's turn raises is kept until the others had theirs."""
    errors: list[ProjectorError] = []

    @contextmanager
    def attempt(projection: Projection) -> Iterator[None]:
        try:
            with faults_of(projection):
                yield
        except (Finding, NeedsPerson) as error:
            errors.append(error)

    yield attempt
    if errors:
        gravest = max(errors, key=lambda error: error.exit_code)
        for error in errors:
            if error is not gravest:
                log.error("projection_left_out", why=str(error), hint=error.hint)
        raise gravest


async def _replay(
    path: Path,
    store: SqliteStore,
    projection: Projection,
    checkpoint: Checkpoint,
    pages: Pages,
    lock: DaemonLock,
    listener: Listener,
    session: str | None,
) -> Turn:
    waiting = lost = False
    while True:
        if lost:
            schema.require_current(path)  # a table that was dropped meanwhile is no race
            yield False
        now = await store.prepare(projection)
        if lost or waiting or now.generation != checkpoint.generation:
            checkpoint = now  # a rebuild that ends leaves the generation as it is
        if await walks.is_sound(store, projection, checkpoint):
            only = _view_of(projection, session)
            steps = walks.mend(store, projection, checkpoint=checkpoint, pages=pages, only=only)
        elif session is not None:
            raise Finding(
                f"the views of {projection.name} as a whole are not of this log and this version",
                f"replay all of them: `projector replay -d {quoted(path)}`",
            )
        elif lock.acquire() or not holder_rebuilds(lock, projection):
            steps = walks.rebuild(store, projection, checkpoint, pages=pages)
        elif checkpoint.position == 0 and not await store.view_keys(projection, after=None):
            return  # nothing is folded yet, and a daemon is there to do it
        else:
            if not waiting:
                log.warning("waiting_for_daemon", projection=projection.name, pid=lock.holder())
            waiting = True
            yield False
            continue
        try:
            async for _ in _follow(await _tally(store, projection), steps, listener):
                yield True
            return
        except LostRace:
            lost = True
            log.warning("checkpoint_moved_by_another", projection=projection.name)


async def _tally(store: SqliteStore, projection: Projection) -> Tally:
    position = (await store.checkpoint(projection)).position
    return Tally(projection, position, await store.newest())


async def _follow(
    tally: Tally, steps: AsyncGenerator[Step, None], listener: Listener
) -> AsyncGenerator[None, None]:
    async with aclosing(steps) as taken:
        async for step in taken:
            tally.add(step)
            listener.step(tally, step)
            yield
    listener.done(tally)


def _view_of(projection: Projection, session: str | None) -> str | None:
    return None if session is None else projection.view_of(f"session:{session}")
