"""How things stand: the daemon, the log, and each projection."""

import time
from contextlib import suppress
from typing import Final, Literal

import msgspec

from session_projector.projections.decode import created_ms
from session_projector.projections.event import Unfoldable
from session_projector.worker.folding.checkpoints import fits_log
from session_projector.worker.operations.projections import ProjectionInfo, listing
from session_projector.worker.storage.port import (
    Checkpoint,
    Database,
    Leader,
    ProjectionStatus,
    Store,
)

CLOCKS: Final = 100
"""Of so many events that wait, one may have a time that is possible."""


class DaemonStatus(msgspec.Struct, frozen=True):
    """The daemon that leads; `pid` is None where there is none, 0 where it cannot be seen."""

    alive: bool
    pid: int | None
    suspended: bool = msgspec.field(name="stopped")
    running: list[str]


class TailingStatus(msgspec.Struct, frozen=True):
    """A projection that says nothing of itself: it tails, or its views are of an older version."""

    state: Literal["tailing", "old"]


class Progress(msgspec.Struct, frozen=True):
    """Where a projection stands; `lag_seconds` is None where no event says a possible time."""

    name: str
    version: int | None
    code_version: int | None
    state: ProjectionStatus | TailingStatus
    position: int
    lag_events: int
    lag_seconds: float | None
    views: int
    quarantined: int
    dismissed: int
    skipped: int
    fits_log: bool


class Status(msgspec.Struct, frozen=True):
    """How things stand, true also when no daemon is alive."""

    database: str
    daemon: DaemonStatus
    schema: str
    newest: int
    events: int
    projections: list[Progress]
    file_bytes: int
    wal_bytes: int
    wal_warning_bytes: int


def status(database: Database) -> Status:
    """Look at everything once."""
    with database.open() as store:
        newest, events = store.log.newest(), store.log.count()
        reports = store.checkpoints.reports()
        projections = [_progress(store, info, reports.get(info.name)) for info in listing(store)]
    applied = [name for name, is_applied in database.migrations() if is_applied]
    sizes = database.sizes()
    return Status(
        database=database.name,
        daemon=_daemon(database.leadership().leader()),
        schema=applied[-1],
        newest=newest,
        events=events,
        projections=projections,
        file_bytes=sizes.file_bytes,
        wal_bytes=sizes.wal_bytes,
        wal_warning_bytes=sizes.wal_warning_bytes,
    )


def _daemon(leader: Leader | None) -> DaemonStatus:
    if leader is None:
        return DaemonStatus(False, None, False, [])
    return DaemonStatus(True, leader.pid, leader.suspended, [*leader.running])


def _progress(store: Store, info: ProjectionInfo, report: ProjectionStatus | None) -> Progress:
    older = info.version is not None and info.version < (info.code_version or 0)
    checkpoint = store.checkpoints.get(info.name) or Checkpoint(info.name, 0, 0, 0, "", 0)
    return Progress(
        name=info.name,
        version=info.version,
        code_version=info.code_version,
        state=report or TailingStatus("old" if older else "tailing"),
        position=info.position,
        lag_events=store.log.count(after=info.position),
        lag_seconds=_lag_seconds(store, info.position),
        views=info.rows,
        quarantined=info.quarantined,
        dismissed=store.quarantine.count(info.name).dismissed,
        skipped=info.skipped,
        fits_log=fits_log(store, checkpoint),
    )


def _lag_seconds(store: Store, position: int) -> float | None:
    """Since the oldest event that is not folded was written, by its writer's clock.

    One whose clock is ahead, or says no time, says nothing: then those after it count, then the
    last that was folded. None where none of them says it.
    """
    waiting = store.log.page(start=position + 1, events=CLOCKS)[:CLOCKS]
    if not waiting:
        return 0.0
    folded = store.log.event(position)
    for row in (*waiting, *([folded] if folded else [])):
        with suppress(Unfoldable):
            age_s = time.time() - created_ms(row.created_at) / 1000
            if age_s >= 0:
                return round(age_s, 3)
    return None
