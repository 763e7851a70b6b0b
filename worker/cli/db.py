"""`projector db …`: create and upgrade a database."""

from typing import Annotated

import typer

from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.options import Database, Json
from session_projector.worker.cli.output import one_line, printable, to_json
from session_projector.worker.storage import open as storage

db = typer.Typer(help=HELP["db"], **SETTINGS)


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
    found = storage.database(database).migrations()
    if json:
        print(to_json([{"name": name, "applied": applied} for name, applied in found]))
        return
    for name, applied in found:
        print(f"{'applied' if applied else 'pending'}  {printable(name)}")
