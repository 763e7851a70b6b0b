"""`projector health`: one line and an exit code, for a container or cron."""

import typer

from session_projector.worker.cli.options import Database, pasteable
from session_projector.worker.cli.output import one_line
from session_projector.worker.errors import ProjectorError
from session_projector.worker.operations.health import check
from session_projector.worker.storage import open as storage


def health(database: Database = "local.db") -> None:
    """Say in a line whether a daemon keeps up; exit 1 if not."""
    try:
        print(one_line(check(storage.database(database))))
    except ProjectorError as error:  # whatever it is: an engine knows no other code
        print(one_line(pasteable(f"{error}: {error.hint}" if error.hint else str(error))))
        raise typer.Exit(1) from None
