"""`projector status`: daemon, log and projections, as text or JSON."""

import time
from collections.abc import Iterator
from typing import Final

from msgspec import to_builtins

from session_projector.worker import linux
from session_projector.worker.cli import output
from session_projector.worker.cli.color import painted
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, Json, pasteable
from session_projector.worker.errors import many, quoted
from session_projector.worker.folding.checkpoints import rewound
from session_projector.worker.operations import status as operations
from session_projector.worker.operations.status import DaemonStatus, DeferredView, Progress, Status
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import FOLD_AGAIN, ProjectionStatus

_STATES: Final = ("trouble", "daemon", "  state")


def status(database: Database = "local.db", json: Json = False) -> None:
    """Show position, lag, views, quarantine and daemon."""
    target = storage.database(database)
    found = operations.status(target)
    if json:
        print(output.to_json(to_builtins(found)))
        return
    lines = [*_lines(found)]
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        text = output.one_line(value)
        print(f"{label:{width}}  {painted(text) if label in _STATES else text}")
    barred = "" if found.daemons else target.leadership().barred()
    for advice in _advice(found, barred):
        print(f"\n{printable(pasteable(advice))}")


def _lines(found: Status) -> Iterator[tuple[str, object]]:
    daemon = found.daemon
    yield "database", quoted(found.database)
    for each in found.daemons:
        if each.trouble and not each.suspended:
            yield "trouble", each.trouble
    for one in found.projections:
        if isinstance(one.state, ProjectionStatus) and one.state.state == "failed":
            yield "trouble", f"failed: {one.name}, see below"
    if not found.daemons:
        yield "daemon", "none is alive"
    for each in found.daemons:
        doing = "suspended (SIGSTOP)" if each.suspended else "alive"
        names = f": {', '.join(each.running)}" if len(found.daemons) > 1 else ""
        yield "daemon", f"{doing}, {each}{names}"
    yield "schema", found.schema
    yield "newest event", found.newest
    for holder in found.held_back_by:
        yield "held back by", holder.who
    if found.wal_warning_bytes:
        yield "file", f"{found.file_bytes:,} bytes"
        yield "write-ahead log", f"{found.wal_bytes:,} bytes"
    else:  # the server looks after its log
        yield "size", f"{found.file_bytes:,} bytes"
    for one in found.projections:
        version = "-" if one.version is None else abs(one.version)
        yield "projection", f"{one.name}, version {version}"
        if doing := _doing(one, daemon):
            yield "  state", doing
        yield "  position", one.position
        behind = "no valid time" if one.lag_seconds is None else f"{one.lag_seconds:.1f} s"
        lag = f"{many(one.lag_events, 'event')}, {behind}"
        yield "  lag", lag if one.position <= found.newest else "none: it is ahead of the log"
        yield "  views", f"{one.views:,}"
        if one.deferred:
            yield "  deferred", _deferred(one.deferred)
        yield "  skipped", many(one.skipped, "event")
        quarantined = many(one.quarantined, "event")
        yield "  quarantined", f"{quarantined}, {one.dismissed:,} of them dismissed"


def _doing(one: Progress, daemon: DaemonStatus) -> str:
    """What a projection is doing, unless it tails."""
    if daemon.running and one.name not in daemon.running:
        return "the daemon does not run it"
    report = one.state
    if not isinstance(report, ProjectionStatus):
        old = report.state == "old"
        return f"outdated; the next daemon rebuilds it as version {one.code_version}" * old
    since_s = time.time() - report.since / 1000
    if report.state == "failed":
        return f"failed, for {since_s:,.0f} s: {pasteable(report.why)}"
    if not daemon.alive:
        return f"a rebuild as version {report.version} was interrupted; the next run does it again"
    share = min(100 * report.events // max(report.total, 1), 100)
    return (
        f"being rebuilt as version {report.version}: {share} %, {report.events:,} of"
        f" about {many(report.total, 'event')}, for {since_s:,.0f} s; rows not reached yet"
        " are unchanged"
    )


def _deferred(views: list[DeferredView]) -> str:
    costliest, key = views[0], output.one_line(views[0].key, 80)
    return (
        f"{len(views):,}, as they cost much to write; the most: {key}, {costliest.bytes:,} bytes,"
        f" {costliest.cost_ms:,} ms each time, so it is written every {costliest.delay_s:g} s"
    )


def _advice(found: Status, barred: str) -> Iterator[str]:
    if any(each.trouble and not each.suspended for each in found.daemons):
        yield "see what keeps the daemon back: `projector doctor`"
    if unfit := [f"{one.name}@{one.position}" for one in found.projections if not one.fits_log]:
        yield f"{rewound(unfit)}.\n{FOLD_AGAIN}"
    elif barred:
        yield f"none can be started by this user: {barred}.\nSee what to do: `projector doctor`"
    elif not found.daemon.alive:
        yield "start one: `projector run`"
    elif found.daemon.suspended:
        resume = linux.ending([found.daemon.pid or 0], "-CONT", seen=found.daemon.seen)
        yield f"resume it, as no other takes over from it: {resume}"
    for holder in found.held_back_by:
        yield f"events wait for that transaction; end it where it was forgotten: {holder.cure}"
    if found.wal_readers:
        yield (
            "the write-ahead log is large: a read is open all the time in process\n"
            f"{', '.join(map(str, found.wal_readers))}. See which it is: `projector doctor`"
        )
    elif found.wal_bytes > found.wal_warning_bytes:
        yield (
            "the write-ahead log is large, and no read holds it: a daemon that is alive empties\n"
            "it within a minute. See how much of it is copied back: `projector doctor`"
        )
    if any(one.quarantined > one.dismissed for one in found.projections):
        yield "see why: `projector quarantine list`"
