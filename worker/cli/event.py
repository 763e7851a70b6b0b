"""`projector event …`: check an event before it is written."""

from pathlib import Path
from typing import Annotated

import typer

from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.options import Database, read_stdin
from session_projector.worker.cli.output import one_line
from session_projector.worker.errors import UsageError
from session_projector.worker.operations.event_check import check
from session_projector.worker.storage import open as storage

event = typer.Typer(help=HELP["event"], **SETTINGS)


@event.command("check")
def event_check(
    file: Annotated[
        str, typer.Argument(help="File with MessagePack or JSON; - reads stdin.")
    ] = "-",
    database: Database = "local.db",
) -> None:
    """Check whether an event would fold, and if not, why."""
    try:
        data = read_stdin() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", "give a file, or - for stdin") from None
    print(one_line(check(storage.database(database), data)))
