"""The projections of a database."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from session_projector.projections.projection import Projection, Table
from session_projector.worker import linux, registry
from session_projector.worker.errors import CheckFailed, argument
from session_projector.worker.folding.checkpoints import refuse_newer
from session_projector.worker.operations.health import restart_same
from session_projector.worker.storage.port import Database, Leader, Store

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class ProjectionInfo(msgspec.Struct, frozen=True):
    """A projection's checkpoint and what it stores; `version` is None if it has no checkpoint.

    `code_version` is the version that is built in or installed here, None if there is none.
    """

    name: str
    version: int | None
    code_version: int | None
    position: int
    digest: str
    skipped: int
    kept_in: str
    rows: int
    quarantined: int


def listing(store: Store) -> list[ProjectionInfo]:
    """The projections that are built in, installed, have a checkpoint or only events in quarantine,
    in this order."""
    known = {projection.name: projection for projection in registry.known(store=store)}
    stored = store.checkpoints.all()
    found = []
    for name in dict.fromkeys((*known, *stored, *store.quarantine.projections())):
        code, there = known.get(name), stored.get(name)
        table = there.table if there else code.table if code else Table("", {}, "")
        checkpoint = there.checkpoint if there else None
        info = ProjectionInfo(
            name=name,
            version=checkpoint.version if checkpoint else None,
            code_version=code.version if code else None,
            position=checkpoint.complete if checkpoint else 0,
            digest=checkpoint.digest if checkpoint else "",
            skipped=checkpoint.skipped if checkpoint else 0,
            kept_in=f"{table.name} ({table.prefix}…)" if table.prefix else table.name,
            rows=store.views.count(table),
            quarantined=store.quarantine.count(name).quarantined,
        )
        found.append(info)
    return found


def find(store: Store, name: str) -> ProjectionInfo:
    """One of `listing`, by name; raises `CheckFailed`."""
    known = listing(store)
    for info in known:
        if info.name == name:
            return info
    raise CheckFailed(
        f"there is no projection {name} in {store.name}",
        f"there are {', '.join(info.name for info in known)}",
    )


def warn_of_unknown(store: Store, projections: Iterable[Projection]) -> None:
    """Log which projections of the database have no code here."""
    known = {projection.name for projection in projections}
    if unknown := [name for name in store.checkpoints.all() if name not in known]:
        known |= {one.name for one in registry.unusable(store)}  # of which that is logged
    for name in unknown:
        if name not in known:
            log.warning("projection_without_code", projection=name, hint=without_code(name))


def outdated(
    leaders: Iterable[Leader], projections: Iterable[Projection]
) -> Iterator[tuple[str, str]]:
    """The daemons of this machine that go on with the code that a projection (none that is built
    in) had before its module was changed: what is wrong, and what to do."""
    for projection in projections:
        changed_s = 0.0 if projection.built_in else _changed_s(projection)
        for leader in leaders if changed_s else ():
            started_s = linux.started_s(leader.local_pid) if leader.local_pid else None
            if started_s and started_s < changed_s and projection.name in leader.running:
                yield (
                    f"the daemon ({leader}) started before the code of {projection.name} was"
                    " changed, and goes on with what it was",
                    restart_same(leader),
                )


def _changed_s(projection: Projection) -> float:
    """When the file of a projection's module was written, in Unix time; 0 where none is seen."""
    file = getattr(sys.modules.get(type(projection).__module__), "__file__", None)
    with suppress(OSError):
        return Path(file).stat().st_mtime if file else 0.0
    return 0.0


def warn_of_outdated(database: Database, projections: Sequence[Projection]) -> None:
    """Log which daemons go on with the code that a projection had."""
    if all(projection.built_in for projection in projections):
        return
    for why, hint in outdated(database.leadership().leaders(), projections):
        log.warning("daemon_runs_old_code", why=why, hint=hint)


def without_code(name: str) -> str:
    """What to do about a projection of the database that has no code here."""
    return (
        "install its package or name it with --projection MODULE:NAME; if it is no longer needed:"
        f" `projector projection drop {argument(name)}`"
    )


def refuse_newer_views(store: Store, projections: Iterable[Projection]) -> None:
    """Raise `InterventionRequired` if a newer version of a projection made its views."""
    stored = store.checkpoints.all()
    for projection in projections:
        if projection.name in stored:
            refuse_newer(projection, stored[projection.name].checkpoint.version)
