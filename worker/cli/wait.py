"""`projector wait`: until the views include an event."""

from typing import Annotated

import typer

from session_projector.worker.cli.options import Database
from session_projector.worker.operations import wait as waiting
from session_projector.worker.storage import open as storage


def wait(
    seq: Annotated[
        int | None,
        typer.Argument(min=0, max=2**63 - 1, metavar="[SEQ]", help="The event's position."),
    ] = None,
    database: Database = "local.db",
    timeout: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", envvar="PROJECTOR_TIMEOUT", help="Timeout in seconds."
        ),
    ] = 30,
    projection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this projection.")
    ] = None,
) -> None:
    """Wait until the views include an event, by default the newest."""
    target = storage.database(database)
    with target.open() as store:
        if projection is not None:
            waiting.require_known(store, projection)
        names = () if projection is None else (projection,)
        print(waiting.wait(target, store, seq, timeout_s=timeout, names=names))
