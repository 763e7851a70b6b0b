"""`projector run`: the daemon, set up from options and the environment."""

import math
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Literal, TextIO

import anyio
import structlog
import typer

from session_projector.projections import SEARCH
from session_projector.projections.projection import Projection
from session_projector.worker import registry
from session_projector.worker.cli import logging
from session_projector.worker.cli.logging import LogFormat, LogLevel
from session_projector.worker.cli.options import Database
from session_projector.worker.cli.progress import TERMINAL_EVERY_S, Progress
from session_projector.worker.daemon import service, supervisor
from session_projector.worker.errors import CheckFailed, DatabaseUnavailable, UsageError
from session_projector.worker.operations import projections as catalog
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Database as Target
from session_projector.worker.telemetry.state import DaemonState
from session_projector.worker.telemetry.systemd import Notifier

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
_NUMBER = re.compile("[1-9][0-9]{0,17}")


def run(
    database: Database = "local.db",
    once: Annotated[bool, typer.Option("--once", help="Catch up, then exit.")] = False,
    create: Annotated[
        bool,
        typer.Option(
            "--create", envvar="PROJECTOR_CREATE", help="Create the database if it does not exist."
        ),
    ] = False,
    projection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            envvar="PROJECTOR_PROJECTION",
            help="Add a projection; may be repeated.",
        ),
    ] = None,
    with_: Annotated[
        Literal["search"] | None,
        typer.Option(
            "--with",
            envvar="PROJECTOR_WITH",
            help="From now on, keep the text of messages for `projector search`.",
        ),
    ] = None,
    without: Annotated[
        Literal["search"] | None,
        typer.Option(envvar="PROJECTOR_WITHOUT", help="Leave that as it is, this time."),
    ] = None,
    verify_every: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="SECONDS",
            envvar="PROJECTOR_VERIFY_EVERY",
            help="Verify some views against the log at this interval.",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="PROJECTOR_HTTP",
            help="Serve /metrics, /healthz and /readyz at this address.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            envvar="PROJECTOR_LOG_LEVEL",
            case_sensitive=False,
            help="Minimum log level; info, but for --once on a terminal, which shows progress.",
        ),
    ] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="PROJECTOR_LOG_FORMAT",
            case_sensitive=False,
            help="auto: readable on a terminal, otherwise JSON.",
        ),
    ] = "auto",
) -> None:
    """Run the daemon: catch up, then follow the log."""
    shows = once and sys.stderr.isatty()
    level: LogLevel = log_level or ("warning" if shows else "info")
    logging.configure(level, log_format, of_daemon=True)
    if verify_every is not None and not math.isfinite(verify_every):
        raise UsageError(
            f"--verify-every {verify_every} is not a number of seconds", "give one, such as 1"
        )
    if with_ and without:
        raise UsageError("--with search and --without search contradict each other", "give one")
    search = True if with_ else False if without else None
    if not sys.stderr.isatty():  # a terminal that is closed ends what runs in it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    target, out = storage.database(database), sys.stdout
    logging.configure(level, log_format, queued=not shows, of_daemon=True)

    def known() -> list[Projection]:
        if create and not target.exists() and (folder := target.setup().folder):
            log.warning("folder_created", folder=folder)
        with target.open(writable=True) as store:
            found = registry.known(projection or (), store, search=search)
            catalog.warn_of_unknown(store, [*found, SEARCH])
            # Now, not only when it takes over from another daemon.
            catalog.refuse_newer_views(store, found)
        return found

    projections: list[Projection] | Callable[[], list[Projection]] = known
    if once:
        try:
            anyio.run(_once, target, known(), out, shows)
        except BaseExceptionGroup as group:
            raise service.first_error(group) from None
        return
    try:
        projections = known()
    except DatabaseUnavailable:
        if not target.is_served:
            raise
    state = DaemonState(_notifier().notify)
    with ExitStack() as stack:
        if http is not None:  # otherwise do without prometheus_client, which is slow to import
            from session_projector.worker.telemetry.http import served
            from session_projector.worker.telemetry.metrics import StateCollector
            from session_projector.worker.telemetry.probes import PROBE_TIMEOUT_S

            newest = partial(target.newest, busy_timeout_s=PROBE_TIMEOUT_S)
            metrics = StateCollector(state, dict([target.engine]), target.wal_bytes)
            stack.enter_context(served(http, state, newest, metrics))
        run = partial(service.run, target, projections, state)
        anyio.run(partial(run, verify_every_s=verify_every))


async def _once(
    target: Target, projections: Sequence[Projection], out: TextIO, shows: bool
) -> None:
    """Catch up, and say what was done, also where one failed; `shows`: and how far it is."""
    state, progress = DaemonState(), Progress()

    async def tell() -> None:
        while True:
            await anyio.sleep(TERMINAL_EVERY_S)
            for name, at in state.progress.items():
                done, total = at.rebuild or (at.position, state.newest)
                if done < total:
                    progress.tell(name, done, total)

    try:
        async with anyio.create_task_group() as tasks:
            if shows:
                tasks.start_soon(tell)
            await supervisor.run_once(target, projections, state)
            tasks.cancel_scope.cancel()
    finally:
        progress.clear()
        unfit = _say(state, out)
    if unfit:
        raise CheckFailed(
            f"more events went to quarantine than were folded, for {', '.join(unfit)}",
            "see why: `projector quarantine list`",
        )


def _say(state: DaemonState, out: TextIO) -> list[str]:
    """Say what was done; returns the projections that quarantined more than they folded."""
    unfit = []
    for name, at in state.progress.items():
        done = Counter[str]()
        for (projection, _, outcome), events in state.outcomes.items():
            done[outcome] += events if projection == name else 0
        each = ", ".join(f"{done[how]:,} {how}" for how in ("folded", "quarantined", "skipped"))
        print(f"{name}: up to event {at.position:,}; events: {each}", file=out)
        out.flush()
        unfit += [name] if done["quarantined"] > done["folded"] else []
    return unfit


def _notifier() -> Notifier:
    """The notifier that systemd asks for; a watchdog for another process is ignored."""
    every_us = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    watchdog_s = int(every_us) / 1_000_000 if _NUMBER.fullmatch(every_us) and ours else None
    return Notifier(os.environ.get("NOTIFY_SOCKET"), watchdog_s)
