"""`projector search`: what people and agents said, over all sessions."""

import sys
from typing import Annotated, Literal

import typer
from msgspec.structs import asdict

from session_projector.worker.cli import output
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, Json
from session_projector.worker.clock import when
from session_projector.worker.errors import many
from session_projector.worker.operations.health import restart
from session_projector.worker.sessions import search as searching
from session_projector.worker.sessions import time_travel
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Database as Target


def search(
    words: Annotated[
        list[str],
        typer.Argument(metavar="WORDS", help='Words; "two words" that follow each other; begin*.'),
    ],
    database: Database = "local.db",
    project: Annotated[
        str | None, typer.Option("-p", "--project", help="Only sessions of this project.")
    ] = None,
    role: Annotated[
        Literal["user", "assistant"] | None, typer.Option(help="Only what these said.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only since an ISO 8601 time (UTC without an offset)."),
    ] = None,
    json: Json = False,
) -> None:
    """Find messages by their words, newest first."""
    since_ms = time_travel.time_ms(since)
    target = storage.database(database)
    with target.open() as store:
        try:
            found = searching.search(
                store,
                " ".join(words),
                project=project,
                role=role,
                since_ms=since_ms,
            )
        except searching.SearchOff as error:
            error.hint = _switch_on(target)
            raise
    if json:
        print(output.to_json(asdict(found) | {"results": [*map(_plain, found.results)]}))
        return
    headers = ("session", "n", "role", "time", "text")
    rows = [
        (one.session, one.n, one.role, when(one.time), "".join(map(_marked, one.snippet)))
        for one in found.results
    ]
    if rows:
        print(output.table(headers, rows))
    elif not found.partly:
        print("no message matches", file=sys.stderr)
    if found.more:
        print(f"… the newest {len(rows)}; add a word to see fewer")
    if found.partly:
        said = f"only the newest {searching.MOST_ROWS:,} events with these words were looked at"
        print(f"{said}: add a word", file=sys.stderr)
    if found.behind:
        events = many(found.behind, "event")
        said = f"not searched yet: {events}; `projector status` tells why"
        print(printable(said), file=sys.stderr)


def _switch_on(target: Target) -> str:
    """How to switch search on, where a daemon runs without it, too; on a server one with it works
    beside that."""
    leader = None if target.is_served else target.leadership().leader()
    if leader is None:
        return "switch it on: `projector run --with search`, and later `projector run` alone"
    return (
        f"switch it on: {restart(leader, ' --with search')}, and later `projector run` alone; or,"
        " where systemd runs it, `projector run --once --with search` beside it, then restart it"
    )


def _plain(result: searching.Result) -> dict[str, object]:
    named = {
        "session_id" if name == "session" else name: value for name, value in asdict(result).items()
    }
    return named | {"snippet": [asdict(piece) for piece in result.snippet]}


def _marked(piece: searching.Piece) -> str:
    return f"**{piece.text}**" if piece.mark else piece.text
