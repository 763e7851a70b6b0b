"""The status of a database: its daemon, its log, and each projection."""

import time
from contextlib import suppress
from typing import Final, Literal

import msgspec

from session_projector.projections.decode import created_ms
from session_projector.projections.event import Unfoldable
from session_projector.worker.folding.checkpoints import fits_log
from session_projector.worker.folding.deferral import delay_s
from session_projector.worker.operations.projections import ProjectionInfo, listing
from session_projector.worker.storage.port import (
    UNSEEN,
    Checkpoint,
    Database,
    Holder,
    Leader,
    ProjectionStatus,
    Store,
    Trouble,
    together,
)

CLOCKS: Final = 100
"""How many unfolded events are searched for a valid time."""


class DaemonStatus(msgspec.Struct, frozen=True):
    """A leading daemon; `pid` is None if there is none, 0 if its process cannot be seen.

    `seen` is whether that process is seen to hold the lock (`Leader`). `host` is where it runs, ''
    for this machine. `trouble` is what it waits for, None where it goes on.
    """

    alive: bool
    pid: int | None
    suspended: bool = msgspec.field(name="stopped")
    running: list[str]
    seen: bool
    host: str = ""
    trouble: Trouble | None = None

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        return f"process {self.pid}{where}" if self.pid else f"{UNSEEN}{where}"


class TailingStatus(msgspec.Struct, frozen=True):
    """A projection without a report: it tails, or an older version made its views."""

    state: Literal["tailing", "old"]


class DeferredView(msgspec.Struct, frozen=True):
    """A view that is behind, as of `position`; it is written `delay_s` after its last write."""

    key: str
    position: int
    bytes: int
    cost_ms: int
    delay_s: float
    since: int


class Progress(msgspec.Struct, frozen=True):
    """How far a projection is; `lag_seconds` is None if no event has a valid time.

    `position` is that of `checkpoint`: all views hold their events up to there. All but those that
    are `deferred` because they cost much to write, the costliest first, hold them up to
    `read_position`.
    """

    name: str
    version: int | None
    code_version: int | None
    state: ProjectionStatus | TailingStatus
    position: int
    read_position: int
    deferred: list[DeferredView]
    lag_events: int
    lag_seconds: float | None
    views: int
    quarantined: int
    dismissed: int
    skipped: int
    fits_log: bool


class Status(msgspec.Struct, frozen=True):
    """The status of a database, whether or not a daemon is running.

    Where several daemons share the projections, `daemon` is one of them with what all are running.
    """

    database: str
    daemon: DaemonStatus
    daemons: list[DaemonStatus]
    schema: str
    newest: int
    events: int
    projections: list[Progress]
    file_bytes: int
    wal_bytes: int
    wal_warning_bytes: int
    wal_readers: list[int]
    held_back_by: list[Holder]


def status(database: Database) -> Status:
    """Read the status of a database once."""
    with database.open() as store:
        newest, events = store.log.newest(), store.log.count()
        held_back_by = store.log.held_back_by()
        reports = store.checkpoints.reports()
        projections = [_progress(store, info, reports.get(info.name)) for info in listing(store)]
    leaders = database.leadership().leaders()
    applied = [name for name, is_applied in database.migrations() if is_applied]
    return Status(
        database=database.name,
        daemon=_daemon(together(leaders)),
        daemons=[*map(_daemon, leaders)],
        schema=applied[-1],
        newest=newest,
        events=events,
        projections=projections,
        held_back_by=held_back_by,
        **msgspec.structs.asdict(database.sizes()),
    )


def _daemon(leader: Leader | None) -> DaemonStatus:
    if leader is None:
        return DaemonStatus(False, None, False, [], False)
    names = [*leader.running]
    return DaemonStatus(
        True, leader.pid, leader.suspended, names, leader.seen, leader.host, leader.trouble
    )


def _progress(store: Store, info: ProjectionInfo, report: ProjectionStatus | None) -> Progress:
    older = info.version is not None and info.version < (info.code_version or 0)
    checkpoint = store.checkpoints.get(info.name) or Checkpoint(info.name, 0, 0, 0, "", 0)
    return Progress(
        name=info.name,
        version=info.version,
        code_version=info.code_version,
        state=report or TailingStatus("old" if older else "tailing"),
        position=checkpoint.complete,
        read_position=checkpoint.written,
        deferred=_deferred(checkpoint),
        lag_events=store.log.count(after=checkpoint.written),
        lag_seconds=_lag_seconds(store, checkpoint.written),
        views=info.rows,
        quarantined=info.quarantined,
        dismissed=store.quarantine.count(info.name).dismissed,
        skipped=info.skipped,
        fits_log=fits_log(store, checkpoint),
    )


def _deferred(checkpoint: Checkpoint) -> list[DeferredView]:
    views = [
        DeferredView(
            key, one.position, one.bytes, one.cost_ms, delay_s(one.cost_ms / 1000), one.since
        )
        for key, one in checkpoint.costly.items()
    ]
    return sorted(views, key=lambda view: view.cost_ms, reverse=True)


def _lag_seconds(store: Store, position: int) -> float | None:
    """The age of the oldest event that is not folded, by its writer's clock.

    Of events that are all held back it is the newest one that tells, as they are not to be read.
    An event without a valid time, or with one in the future, is passed over: then the events after
    it count, then the last one that was folded. None if none of them has a valid time.
    """
    waiting = store.log.page(start=position + 1, events=CLOCKS)[:CLOCKS]
    if not waiting:
        newest = store.log.newest()
        held_back = store.log.event(newest) if newest > position else None
        if held_back is None:
            return 0.0
        waiting = [held_back]
    folded = store.log.event(position)
    for row in (*waiting, *([folded] if folded else [])):
        with suppress(Unfoldable):
            age_s = time.time() - created_ms(row.created_at) / 1000
            if age_s >= 0:
                return round(age_s, 3)
    return None
