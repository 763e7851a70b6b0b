"""`projector health`: one line and an exit code, for containers and cron."""

import typer

from session_projector.worker.cli.options import Database, Json, pasteable
from session_projector.worker.cli.output import one_line, to_json
from session_projector.worker.errors import ProjectorError
from session_projector.worker.operations.health import check
from session_projector.worker.storage import open as storage


def health(database: Database = "local.db", json: Json = False) -> None:
    """Check that a daemon keeps up, in one line; exit 1 if not."""
    healthy, hint = True, ""
    try:
        said = check(storage.database(database))
    except ProjectorError as error:  # any error: container engines know only exit codes 0 and 1
        healthy, said, hint = False, str(error), pasteable(error.hint)
    if json:
        print(to_json({"healthy": healthy, "message": said, "hint": hint}))
    else:
        print(one_line(f"{said}: {hint}" if hint else said))
    if not healthy:
        raise typer.Exit(1)
