"""`projector run`, and what its environment asks of it."""

import math
import os
import re
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from session_projector.worker.cli.options import Database, LogFormat, LogLevel
from session_projector.worker.errors import BadUsage
from session_projector.worker.storage.sqlite.connection import resolve

if TYPE_CHECKING:
    from session_projector.worker.telemetry.systemd import Notifier

_NUMBER = re.compile("[1-9][0-9]{0,17}")


def run(
    database: Database = "local.db",
    once: Annotated[bool, typer.Option("--once", help="Catch up, then end.")] = False,
    create: Annotated[
        bool, typer.Option("--create", envvar="PROJECTOR_CREATE", help="Make an absent database.")
    ] = False,
    projection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            envvar="PROJECTOR_PROJECTION",
            help="One more projection; may be repeated.",
        ),
    ] = None,
    verify_every: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="SECONDS",
            envvar="PROJECTOR_VERIFY_EVERY",
            help="Check some views against the log so often.",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="PROJECTOR_HTTP",
            help="Serve /metrics, /healthz and /readyz there.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            envvar="PROJECTOR_LOG_LEVEL", case_sensitive=False, help="The least that is logged."
        ),
    ] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="PROJECTOR_LOG_FORMAT",
            case_sensitive=False,
            help="auto: readable on a terminal, else JSON.",
        ),
    ] = LogFormat.AUTO,
) -> None:
    """Fold the log into views, and go on as events come."""
    import anyio

    from session_projector.worker import registry
    from session_projector.worker.cli import logging as worker_log  # before whatever else logs
    from session_projector.worker.daemon import service
    from session_projector.worker.operations import projections as catalog
    from session_projector.worker.replay import rebuild as replay
    from session_projector.worker.storage.sqlite.client import Client
    from session_projector.worker.storage.sqlite.schema import migrate as schema
    from session_projector.worker.telemetry.state import DaemonState

    if verify_every is not None and not math.isfinite(verify_every):
        raise BadUsage(f"--verify-every {verify_every} is no number of seconds", "such as 1")
    path = resolve(database)
    worker_log.configure(log_level, log_format)
    if create and (not path.exists() or path.stat().st_size == 0):
        schema.setup(path)
    schema.require_current(path)
    projections = registry.known(projection or ())
    with Client.reading(path) as client:
        catalog.warn_of_unknown(client, projections)
        for one, version in catalog.versions(client, projections):
            replay.refuse_newer(one, version)  # now, and not when it takes over from another
    if once:
        anyio.run(service.run_once, path, projections)
        return
    vitals = DaemonState(_notifier().notify)
    with ExitStack() as stack:
        if http is not None:
            from session_projector.worker.storage.sqlite import probe
            from session_projector.worker.telemetry.http import served
            from session_projector.worker.telemetry.metrics import StateCollector
            from session_projector.worker.telemetry.probes import BUSY_TIMEOUT_S

            newest = partial(probe.newest, path, BUSY_TIMEOUT_S)
            metrics = StateCollector(vitals, probe.ENGINE, partial(probe.wal_bytes, path))
            stack.enter_context(served(http, vitals, newest, metrics))
        anyio.run(partial(service.run, path, projections, vitals, verify_every_s=verify_every))


def _notifier() -> "Notifier":
    """As systemd asks for it; a watchdog that is another process's is none of ours."""
    from session_projector.worker.telemetry.systemd import Notifier

    every_us = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    watchdog_s = int(every_us) / 1_000_000 if _NUMBER.fullmatch(every_us) and ours else None
    return Notifier(os.environ.get("NOTIFY_SOCKET"), watchdog_s)
