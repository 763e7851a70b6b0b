"""`projector db …`: create, upgrade or inspect a database."""

from typing import Annotated

import typer

from session_projector.worker.cli.color import painted
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, Json
from session_projector.worker.cli.output import one_line, to_json
from session_projector.worker.storage import open as storage

db = typer.Typer(help=HELP["db"], **SETTINGS)


@db.command("setup")
def db_setup(
    database: Database = "local.db",
    group: Annotated[
        str | None,
        typer.Option(
            envvar="PROJECTOR_GROUP",
            help="SQLite: let this group write events: files 0660, folder 2770.",
        ),
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(
            envvar="PROJECTOR_WRITER",
            help="PostgreSQL: let this role add events, and nothing else.",
        ),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            envvar="PROJECTOR_READER", help="PostgreSQL: let this role read events and views."
        ),
    ] = None,
) -> None:
    """Create a database, or upgrade one, including Kanbatte's."""
    target = storage.database(database)
    done = target.setup(group=group, writer=writer, reader=reader)
    name = printable(target.name)
    if done.folder:
        print(f"created the folder {printable(done.folder)}")
    if done.backup:
        print(f"copied the original database to {printable(done.backup)}")
    for migration in done.applied:
        print(f"applied {migration}")
    for key in done.doubled_keys:
        print(f"repaired {one_line(key)}: kept the newest of its several rows in view")
    for restored in done.restored:
        print(f"restored {one_line(restored)}: it was missing or changed")
    if group:
        print(f"shared {name} and its folder with the group {printable(group)}")
    if writer:
        print(f"the role {printable(writer)} may add events")
    if reader:
        print(f"the role {printable(reader)} may read events and views")
    print(
        f"{name} is ready"
        if done.applied or done.restored
        else f"nothing to do: {name} is up to date"
    )


@db.command("status")
def db_status(database: Database = "local.db", json: Json = False) -> None:
    """List the migrations and which of them are applied."""
    found = storage.database(database).migrations()
    if json:
        print(to_json([{"name": name, "applied": applied} for name, applied in found]))
        return
    for name, applied in found:
        print(f"{painted('applied' if applied else 'pending')}  {printable(name)}")
