"""`projector health`: one line and an exit code, for containers and cron."""

import typer

from session_projector.worker.cli.options import Database, pasteable
from session_projector.worker.cli.output import one_line
from session_projector.worker.errors import ProjectorError
from session_projector.worker.operations.health import check
from session_projector.worker.storage import open as storage


def health(database: Database = "local.db") -> None:
    """Check that a daemon keeps up, in one line; exit 1 if not."""
    try:
        print(one_line(check(storage.database(database))))
    except ProjectorError as error:  # any error: container engines know only exit codes 0 and 1
        print(one_line(pasteable(f"{error}: {error.hint}" if error.hint else str(error))))
        raise typer.Exit(1) from None
