"""The command line: the only reader of the environment; results to stdout, logs to stderr."""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from session_projector.worker.cli.doctor import doctor
from session_projector.worker.cli.options import (
    SETTINGS,
    Database,
    Json,
    LogFormat,
    LogLevel,
    Sections,
    pasteable,
    read_stdin,
)
from session_projector.worker.cli.quarantine import quarantine
from session_projector.worker.cli.replay import replay, verify
from session_projector.worker.cli.run import run
from session_projector.worker.cli.session import session
from session_projector.worker.cli.status import status
from session_projector.worker.errors import BadUsage, Finding, ProjectorError
from session_projector.worker.storage import open as storage

# Imports that a command does not share with `--help` stand inside it: they cost more than it does.

app = typer.Typer(
    cls=Sections,
    help="Tail an event log in SQLite and keep session views.",
    pretty_exceptions_enable=False,
    **SETTINGS,
)
db = typer.Typer(help="Make, upgrade and look at a database.", **SETTINGS)
event = typer.Typer(help="Look at single events.", **SETTINGS)
projection = typer.Typer(help="The projections of a database.", **SETTINGS)
app.command()(run)
app.command()(status)
app.command()(doctor)
app.command()(verify)
app.command()(replay)
app.add_typer(db, name="db")
app.add_typer(session, name="session")
app.add_typer(event, name="event")
app.add_typer(projection, name="projection")
app.add_typer(quarantine, name="quarantine")


def main() -> NoReturn:
    """Run a command; what a user can cause ends in one line, a hint and an exit code."""
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
        sys.stdout.flush()
    except ProjectorError as error:
        _fail(error)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains once more
        _fail(Finding(f"{error.filename or 'standard output'}: {error.strerror}"))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fill_closed_streams() -> None:
    """Whoever started this may have closed some: no file of ours may get their numbers, or what is
    said on them would be written into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _fail(error: ProjectorError) -> NoReturn:
    from session_projector.worker.cli.output import one_line

    print(f"projector: {one_line(error)}", file=sys.stderr)
    if error.hint:
        print(f"  {one_line(pasteable(error.hint))}", file=sys.stderr)
    sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("session-projector"))
        raise typer.Exit


@app.callback()
def _app(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from session_projector.worker.cli import logging as log

    log.configure(LogLevel.WARNING, LogFormat.AUTO)  # `run` says more


@app.command()
def health(database: Database = "local.db") -> None:
    """Say in a line whether a daemon keeps up; exit 1 if not."""
    from session_projector.worker.cli import output
    from session_projector.worker.operations import health

    try:
        print(output.one_line(health.check(storage.database(database))))
    except ProjectorError as error:  # whatever it is: an engine knows no other code
        print(output.one_line(pasteable(f"{error}: {error.hint}" if error.hint else str(error))))
        raise typer.Exit(1) from None


@app.command()
def wait(
    seq: Annotated[int | None, typer.Argument(min=0, max=2**63 - 1, metavar="[SEQ]")] = None,
    database: Database = "local.db",
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", envvar="PROJECTOR_TIMEOUT", help="At most so long."),
    ] = 30,
    projection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this projection.")
    ] = None,
) -> None:
    """Wait until views hold an event, the newest where no SEQ is given."""
    from session_projector.worker.operations import wait as waiting

    target = storage.database(database)
    with target.open() as store:
        if projection is not None:
            waiting.require_known(store, projection)
        names = () if projection is None else (projection,)
        print(waiting.wait(target, store, seq, timeout_s=timeout, names=names))


@app.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(help="End by itself; else Ctrl-C ends it.", min=1)
    ] = None,
) -> None:
    """Watch a daemon fold what a few agents write, in a scratch database."""
    from session_projector.worker.cli import demo

    demo.run(seconds)


@db.command("setup")
def db_setup(
    database: Database = "local.db",
    group: Annotated[
        str | None,
        typer.Option(
            envvar="PROJECTOR_GROUP",
            help="Let this group write events: files 0660, folder 2770.",
        ),
    ] = None,
) -> None:
    """Create a database, or upgrade one, Kanbatte's included."""
    from session_projector.worker.cli.output import one_line, printable

    target = storage.database(database)
    done = target.setup(group=group)
    name = printable(target.name)
    if done.backup:
        print(f"copied the database as it was to {printable(done.backup)}")
    for migration in done.applied:
        print(f"applied {migration}")
    for key in done.doubled_keys:
        print(f"repaired {one_line(key)}: it stood in several rows of view, the newest was kept")
    for restored in done.restored:
        print(f"restored {restored}: it was gone or changed")
    if group:
        print(f"shared {name} and its folder with the group {printable(group)}")
    print(
        f"{name} is ready"
        if done.applied or done.restored
        else f"nothing to do: {name} is up to date"
    )


@db.command("status")
def db_status(database: Database = "local.db", json: Json = False) -> None:
    """List the migrations, and which are applied."""
    from session_projector.worker.cli import output

    found = storage.database(database).migrations()
    if json:
        print(output.to_json([{"name": name, "applied": applied} for name, applied in found]))
        return
    for name, applied in found:
        print(f"{'applied' if applied else 'pending'}  {output.printable(name)}")


@event.command("check")
def event_check(
    file: Annotated[str, typer.Argument(help="MessagePack or JSON; - reads stdin.")] = "-",
    database: Database = "local.db",
) -> None:
    """Say whether an event would fold, and why not."""
    from session_projector.worker.cli import output
    from session_projector.worker.operations import event_check

    try:
        data = read_stdin() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BadUsage(f"{file}: {error.strerror}", "give a file, or - for stdin") from None
    print(output.one_line(event_check.check(storage.database(database), data)))


@projection.command("list")
def projection_list(database: Database = "local.db", json: Json = False) -> None:
    """List the projections: version, position, rows."""
    from msgspec.structs import asdict

    from session_projector.worker.cli import output
    from session_projector.worker.operations import projections as catalog

    with storage.database(database).open() as store:
        found = [asdict(listed) for listed in catalog.listing(store)]
    if json:
        print(output.to_json(found))
        return
    headers = (
        "name",
        "version",
        "code_version",
        "position",
        "kept_in",
        "rows",
        "quarantined",
        "skipped",
    )
    rows = [["-" if row[h] is None else row[h] for h in headers] for row in found]
    print(output.table(headers, rows))


@projection.command("drop")
def projection_drop(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    database: Database = "local.db",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a projection's rows, quarantine and checkpoint, after saying what that is."""
    from session_projector.worker.cli import output
    from session_projector.worker.operations import projections as catalog

    target = storage.database(database)
    with target.open(writable=True) as store:
        listed = catalog.find(store, name)
        leader = target.leadership().leader()
        if leader and (name in leader.running or (listed.code_version and leader.runs(name))):
            raise Finding(
                f"a daemon ({leader}) runs {name}, and would make it anew at once",
                "stop it first",
            )
        if listed.version is None:
            raise Finding(f"{output.one_line(name)} never ran here: there is nothing to drop")
        print(
            f"drops {listed.rows:,} rows of {listed.kept_in}, {listed.quarantined:,} of quarantine,"
            f" and the checkpoint of {output.one_line(name)} at {listed.position:,};"
            " the log stays as it is"
        )
        if not yes:
            typer.confirm("Drop it?", abort=True)
        store.views.drop(name)
    print("dropped" + ("; the next run makes it anew" if listed.code_version else ""))
