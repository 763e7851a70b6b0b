"""Verify and replay of several projections: their full scans take turns, and report progress."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Protocol

import structlog

from session_projector.projections.projection import Projection
from session_projector.worker.errors import (
    CheckFailed,
    InterventionRequired,
    LostRace,
    ProjectorError,
    TransientError,
)
from session_projector.worker.folding.checkpoints import checkpoint_of, fits_log, is_sound
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.replay import rebuild as walks
from session_projector.worker.replay.as_of import AsOf, as_of_checkpoint
from session_projector.worker.replay.round_robin import Attempt, Scan, interleave
from session_projector.worker.replay.walk import Pages, WalkProgress
from session_projector.worker.replay.walkers import Walkers
from session_projector.worker.storage.port import Checkpoint, Database, Leadership, Store, Thread

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Tally:
    """What the scan of one projection has found so far."""

    def __init__(
        self,
        projection: Projection,
        position: int,
        total: int,
        *,
        is_first: bool = False,
        is_sound: bool = True,
    ) -> None:
        """`is_first`: nothing was folded before; `is_sound`: this code made what is stored."""
        self.is_first = is_first
        self.is_sound = is_sound
        self.projection = projection.name
        self.built_in = projection.built_in
        self.position = position
        self.total = total
        """Events that the scan will read, for an estimate of the time that is left."""
        self.events = self.views = 0
        self.rows: Counter[tuple[str, str]] = Counter()
        self.fields: Counter[str] = Counter()

    def add(self, step: WalkProgress) -> None:
        self.events += step.events
        self.views += step.views
        for difference in step.differences:
            self.rows[difference.row, difference.kind] += 1
            self.fields.update({field.field for field in difference.fields})


class Listener(Protocol):
    """Whoever is told of the progress of a scan."""

    def step(self, tally: Tally, step: WalkProgress) -> None: ...

    def done(self, tally: Tally) -> None: ...


async def compare(
    database: Database,
    projections: Sequence[Projection],
    listener: Listener,
    *,
    session: str | None = None,
    dry_run: bool = False,
    jobs: int = 1,
) -> int:
    """Report what differs from the log; returns the number of views.

    A `dry_run` also compares where the log was replaced. Where one projection cannot be compared,
    the others are; the gravest of such errors is raised at the end. `jobs`: as of `Walkers`.
    """
    tallies: list[Tally] = []

    async def scan(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Scan:
        only = _view_of(projection, session)
        steps = walks.compare(
            thread, projection, checkpoint, pages=pages, only=only, dry_run=dry_run
        )
        try:
            tally = await _tally(thread, projection)
            tallies.append(tally)
            async for _ in _follow(tally, steps, listener):
                yield True
        except LostRace:
            raise TransientError(
                f"{database.name} was restored, or {projection.name} dropped, while it was"
                " compared",
                "start again",
            ) from None

    async with database.open_thread() as thread, _each() as attempt:
        with Walkers(database, projections, jobs) as walkers:
            known = await _begin(thread, projections, walkers, session)
            await interleave(thread, projections, scan, attempt, known=known, walkers=walkers)
    return sum(tally.rows.total() for tally in tallies)


async def replay(
    database: Database,
    projections: Sequence[Projection],
    listener: Listener,
    *,
    session: str | None = None,
    leadership: Leadership,
    jobs: int = 1,
) -> None:
    """Replace what differs from the log. Where views must be rebuilt, `leadership` is acquired; the
    caller releases it. `jobs`: as of `Walkers`."""

    async def scan(projection: Projection, checkpoint: Checkpoint, pages: Pages) -> Scan:
        waiting = lost = False
        while True:
            if lost:
                await thread.run(lambda store: store.check_schema())  # a dropped table is no race
                yield False
            now = await thread.run(lambda store: store.views.prepare(projection))
            if lost or waiting or now.generation != checkpoint.generation:
                checkpoint = now  # a rebuild that ends leaves the generation as it is
            if await thread.run(lambda store: is_sound(store, projection, checkpoint)):
                only = _view_of(projection, session)
                steps = walks.repair(thread, projection, checkpoint, pages=pages, only=only)
            elif session is not None:
                raise CheckFailed(
                    f"not all views of {projection.name} were made from this log by this version",
                    "replay all of them: `projector replay`",
                )
            elif leadership.acquire() or not leader_rebuilds(leadership, projection):
                steps = walks.rebuild(thread, projection, checkpoint, pages=pages)
            elif checkpoint.position == 0 and not await thread.run(
                lambda store: store.views.keys(projection, after=None)
            ):
                return  # nothing is folded yet, and a daemon is there to do it
            else:
                if not waiting:
                    leader = leadership.leader()
                    pid = leader.pid if leader else None
                    log.warning("waiting_for_daemon", projection=projection.name, pid=pid)
                waiting = True
                yield False
                continue
            try:
                async for _ in _follow(await _tally(thread, projection), steps, listener):
                    yield True
                return
            except LostRace:
                lost = True
                log.warning("checkpoint_moved_by_another", projection=projection.name)

    async with database.open_thread() as thread, _each() as attempt:
        with Walkers(database, projections, jobs) as walkers:
            known = await _begin(thread, projections, walkers, session)
            await interleave(thread, projections, scan, attempt, known=known, walkers=walkers)


async def _begin(
    thread: Thread, projections: Sequence[Projection], walkers: Walkers, session: str | None
) -> dict[str, Checkpoint]:
    """The checkpoints, which are of one moment. A scan reads by the log's indexes: with a wrong one
    it would take right views for wrong, so these are checked first, while the walkers begin."""
    stored = await thread.run(lambda store: store.checkpoints.all())
    known = {p.name: stored[p.name].checkpoint for p in projections if p.name in stored}

    def moment(store: Store) -> AsOf | None:
        for projection in projections:
            with suppress(ProjectorError):  # what its scan raises, too
                if checkpoint := known.get(projection.name):
                    if is_sound(store, projection, checkpoint):
                        return as_of_checkpoint(checkpoint)
                    return AsOf(checkpoint, store.log.settled(), follows=False)
        return None

    if session is None and (as_of := await thread.run(moment)):
        walkers.start(as_of)
    tables = [projection.table for projection in projections]
    await thread.run(lambda store: store.check_indexes(tables))
    # Where another database was restored meanwhile, they are read again.
    return await thread.run(
        lambda store: {name: one for name, one in known.items() if fits_log(store, one)}
    )


@asynccontextmanager
async def _each() -> AsyncIterator[Attempt]:
    """Keep what the scan of one projection raises until the others are done."""
    errors: list[ProjectorError] = []

    @contextmanager
    def attempt(projection: Projection) -> Iterator[None]:
        try:
            with faults_of(projection):
                yield
        except (CheckFailed, InterventionRequired) as error:
            errors.append(error)

    yield attempt
    if errors:
        gravest = max(errors, key=lambda error: error.exit_code)
        for error in errors:
            if error is not gravest:
                log.error("projection_left_out", why=str(error), hint=error.hint)
        raise gravest


def leader_rebuilds(leadership: Leadership, projection: Projection) -> bool:
    """Whether the daemon that leads runs a projection, and will rebuild it.

    Raises `TransientError` where it is a daemon of an older version, which never will.
    """
    leader = leadership.leader()
    if leader is None:
        return True  # it has ended just now: look again
    version = leader.running.get(projection.name, projection.version)
    if version < projection.version:
        raise TransientError(
            f"the daemon that is alive ({leader}) runs version {version} of"
            f" {projection.name}, and this is version {projection.version}",
            "restart the daemon, and it rebuilds the views by itself",
        )
    return leader.runs(projection.name)


async def _tally(thread: Thread, projection: Projection) -> Tally:
    def tally(store: Store) -> Tally:
        checkpoint = checkpoint_of(store, projection)
        return Tally(
            projection,
            checkpoint.position,
            store.log.newest(),
            is_first=not (checkpoint.position or store.views.keys(projection, after=None)),
            is_sound=is_sound(store, projection, checkpoint),
        )

    return await thread.run(tally)


async def _follow(
    tally: Tally, steps: AsyncGenerator[WalkProgress, None], listener: Listener
) -> AsyncGenerator[None, None]:
    async with aclosing(steps) as taken:
        async for step in taken:
            tally.add(step)
            listener.step(tally, step)
            yield
    listener.done(tally)


def _view_of(projection: Projection, session: str | None) -> str | None:
    return None if session is None else projection.view_of(f"session:{session}")
