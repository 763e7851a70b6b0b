"""`projector event …`: check an event before it is written; the types of those that are."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from msgspec import to_builtins
from msgspec.structs import asdict

from session_projector.worker.cli import output
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.options import Database, Json, read_stdin
from session_projector.worker.errors import UsageError, many
from session_projector.worker.operations.event_check import check
from session_projector.worker.operations.event_types import TypeCount, types
from session_projector.worker.storage import open as storage

event = typer.Typer(help=HELP["event"], **SETTINGS)


@event.command("check")
def event_check(
    file: Annotated[
        str, typer.Argument(help="File with MessagePack or JSON; - reads stdin.")
    ] = "-",
    database: Database = "local.db",
    json: Json = False,
) -> None:
    """Check whether an event would fold, and if not, why."""
    try:
        data = read_stdin() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", "give a file, or - for stdin") from None
    found = check(storage.database(database), data)
    if json:
        print(output.to_json(asdict(found)))
    said = found.required()
    if not json:
        print(output.one_line(said))


@event.command("types")
def event_types(database: Database = "local.db", json: Json = False) -> None:
    """Count the newest 100,000 events by type, and say who folds them."""
    with storage.database(database).open() as store:
        found = types(store)
    if json:
        print(output.to_json(to_builtins(found)))
        return
    if found.types:
        headers = ("type", "events", "first", "last", "folded by")
        rows = [(one.type, one.events, one.first, one.last, _folded_by(one)) for one in found.types]
        print(output.table(headers, rows))
    if not found.events:
        print("there is no event yet", file=sys.stderr)
    elif found.looked_at < found.events:
        said = f"looked at the newest {found.looked_at:,} of {many(found.events, 'event')}"
        print(said, file=sys.stderr)


def _folded_by(one: TypeCount) -> str:
    """Who folds events of a type, or what the type may have been meant to be."""
    near = f": did you mean {one.did_you_mean}?" if one.did_you_mean else ""
    return ", ".join(one.projections) or f"none, skipped{near}"
