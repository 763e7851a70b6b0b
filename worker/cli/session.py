"""`projector session …`, in the verbs that Kanbatte's users know."""

import sys
from typing import Annotated, Final, Literal

import typer
from msgspec.structs import asdict

from session_projector.projections import BUILT_IN
from session_projector.projections.session_index import Entry
from session_projector.worker.cli import output
from session_projector.worker.cli.color import painted
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, Json, JsonLines, read_stdin
from session_projector.worker.clock import when
from session_projector.worker.errors import (
    CheckFailed,
    InterventionRequired,
    ProjectorError,
    UsageError,
    many,
)
from session_projector.worker.operations.wait import wait as wait_for
from session_projector.worker.sessions import read, time_travel, timeline, write
from session_projector.worker.storage import open as storage
from session_projector.worker.storage import port


def _utf8(text: str | None) -> str | None:
    """Refuse an argument that is not UTF-8, which cannot be written into an event."""
    try:
        if text:
            text.encode()
    except UnicodeEncodeError:
        raise UsageError("an argument is not UTF-8", "set a UTF-8 locale, or correct it") from None
    return text


session = typer.Typer(help=HELP["session"], **SETTINGS)

_POINT: Final = "a seq, or an ISO 8601 time (UTC without an offset)"
Id = Annotated[str, typer.Argument(metavar="ID", help="The session's id.", callback=_utf8)]
Known = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help=f"The session's id, or its beginning ({read.SHORTEST_PREFIX} characters or more).",
        callback=_utf8,
    ),
]
Only = Annotated[str | None, typer.Option("-p", "--project", help="Only sessions of this project.")]
Form = Annotated[
    Literal["table", "json", "markdown"],
    typer.Option("-f", "--format", metavar="table|markdown", help="How it is printed."),
]
"""`json` is what `--json` was called before, and is understood as that."""
EventId = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="TEXT",
        help="The event's id (not the session's), of your choice: the same command again finds it"
        " and writes nothing.",
        callback=_utf8,
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait", help="Wait until the views include it, at most 30 s, if a daemon is alive."
    ),
]


@session.command("queue")
def session_queue(
    message: Annotated[str, typer.Argument(help="The first user message.", callback=_utf8)],
    project: Annotated[
        str, typer.Option("-p", "--project", help="The project's name.", callback=_utf8)
    ],
    session_id: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="ID",
            help="The session's id; without it, the project's name and its next free number.",
            callback=_utf8,
        ),
    ] = None,
    event_id: EventId = None,
    database: Database = "local.db",
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Start a session with its first message; print its id."""
    target = storage.database(database)
    with target.open(writable=True) as store:
        started, seq = write.queue(store, project, message, event_id, session_id)
        _tell(started, seq, printable(started), json)
        _wait(target, store, seq, wait)


@session.command("append")
def session_append(
    session_id: Id,
    messages: Annotated[
        str,
        typer.Option(
            "-m", "--messages", help="A JSON list of messages; - reads stdin.", callback=_utf8
        ),
    ],
    stop: Annotated[bool, typer.Option("--stop", help="Also set the status to ready.")] = False,
    event_id: EventId = None,
    database: Database = "local.db",
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Append messages to a session; print the position of the event."""
    data = read_stdin() if messages == "-" else messages.encode()
    target = storage.database(database)
    with target.open(writable=True) as store:
        seq = write.append(store, session_id, data, stop=stop, event_id=event_id)
        _tell(session_id, seq, seq, json)
        _wait(target, store, seq, wait)


@session.command("status")
def session_status(
    session_id: Id,
    new_status: Annotated[
        str | None,
        typer.Argument(
            metavar="STATUS",
            help="The new status; without it, the present one is printed.",
            callback=_utf8,
        ),
    ] = None,
    event_id: EventId = None,
    database: Database = "local.db",
    wait: Wait = False,
    json: Json = False,
) -> None:
    """Print a session's status, or set it and print the position."""
    target = storage.database(database)
    with target.open(writable=new_status is not None) as store:
        if new_status is not None:
            seq = write.set_status(store, session_id, new_status, event_id)
            _tell(session_id, seq, seq, json)
            _wait(target, store, seq, wait)
            return
        if wait:
            wait_for(target, store, names=[timeline.SESSIONS.name], needs_daemon=True)
        status = read.session(store, session_id)["status"]
        if json:
            print(output.to_json({"session_id": session_id, "status": status}))
        else:
            print(output.one_line(status))


@session.command("list")
def session_list(
    database: Database = "local.db",
    project: Only = None,
    statuses: Annotated[
        str | None,
        typer.Option("-s", "--status", help="Only these statuses, such as ready,in-progress."),
    ] = None,
    form: Form = "table",
    json: Json = False,
) -> None:
    """List sessions, oldest first."""
    wanted = None if statuses is None else statuses.split(",")
    with storage.database(database).open() as store:
        found = list(read.sessions(store, project=project, statuses=wanted))
    if json or form == "json":
        print(output.to_json([*map(asdict, found)]))
        return
    if not found:
        print("no session matches", file=sys.stderr)
        return
    headers = ("id", "project", "status", "messages", "updated", "title")
    rows = [
        (e.session_id, e.project, e.status, e.message_count, when(e.updated_at), e.title)
        for e in found
    ]
    print((output.table if form == "table" else output.markdown_table)(headers, rows))


@session.command("watch")
def session_watch(
    database: Database = "local.db", project: Only = None, json: JsonLines = False
) -> None:
    """Print a line for each change of a session, as it happens."""
    with storage.database(database).open() as store:
        for entry in read.watch(store, project):
            line = output.to_json(asdict(entry), indent=None) if json else _changed(entry)
            print(line, flush=True)


@session.command("view")
def session_view(
    session_id: Known,
    database: Database = "local.db",
    form: Form = "markdown",
    at: Annotated[
        str | None, typer.Option(metavar="SEQ|TIME", help=f"The session at this point: {_POINT}.")
    ] = None,
    json: Json = False,
) -> None:
    """Print a session with all its messages.

    A call of a tool and what it returned are a line each, which says if there is more: --json has
    all of it."""
    point = None if at is None else time_travel.point(at)
    with storage.database(database).open() as store:
        session_id = read.resolved(store, session_id)
        if point is None:
            view = read.session(store, session_id)
        else:
            view = time_travel.view_at(store, session_id, point)
    if json or form == "json":
        print(output.to_json(view))
    else:
        print(output.session_table(view) if form == "table" else output.session_markdown(view))


@session.command("history")
def session_history(session_id: Known, database: Database = "local.db", json: Json = False) -> None:
    """List a session's events, and why any are quarantined."""
    with storage.database(database).open() as store:
        session_id = read.resolved(store, session_id)
        entries = timeline.listing(store, session_id)
    headers = ("seq", "time", "type", "bytes", "id", "quarantined")
    found = [(e.seq, e.time, e.type, e.size_bytes, e.id, e.reason) for e in entries]
    if json:
        print(output.to_json([dict(zip(headers, row, strict=True)) for row in found]))
        return
    rows = [
        (
            seq,
            None if time is None else when(time),
            output.one_line(kind or "", 40),
            size_bytes,
            event_id,
            output.one_line(reason or ""),
        )
        for seq, time, kind, size_bytes, event_id, reason in found
    ]
    print(output.table(headers, rows))


@session.command("diff")
def session_diff(
    session_id: Known,
    start: Annotated[str, typer.Argument(metavar="A", help=f"Start: {_POINT}.")],
    end: Annotated[str, typer.Argument(metavar="B", help="End, in the same form.")],
    database: Database = "local.db",
    json: Json = False,
) -> None:
    """Show what changed in a session between two points."""
    points = time_travel.point(start), time_travel.point(end)
    with storage.database(database).open() as store:
        session_id = read.resolved(store, session_id)
        found = time_travel.diff(store, session_id, *points)
    changed = {
        "session_id": found.session,
        "from": found.start,
        "to": found.end,
        "fields": found.fields,
        "messages": found.messages,
    }
    print(output.to_json(changed) if json else output.changes(changed, found.began))


@session.command("why")
def session_why(session_id: Known, database: Database = "local.db", json: Json = False) -> None:
    """Show which event set each field and added each message."""
    with storage.database(database).open() as store:
        session_id = read.resolved(store, session_id)
        found = time_travel.why(store, session_id)
    if json:
        fields = [{"field": f, "value": v, **asdict(o)} for f, v, o in found.fields]
        runs = [{"first": a, "last": b, **asdict(o)} for a, b, o in found.messages]
        print(output.to_json({"session_id": session_id, "fields": fields, "messages": runs}))
        return
    found_in = [
        (name, when(value) if name.endswith("At") else value, origin)
        for name, value, origin in found.fields
    ]
    for first, last, origin in found.messages:
        found_in.append((f"messages {first}" + f"-{last}" * (last > first), "", origin))
    rows = [
        (name, value, origin.seq, when(origin.time), origin.type, origin.id)
        for name, value, origin in found_in
    ]
    print(output.table(("field", "value", "seq", "time", "type", "id"), rows))


def _tell(session_id: str, seq: int, text: str | int, json: bool) -> None:
    """What was written, before anything is waited for."""
    found = {"session_id": session_id, "seq": seq}
    print(output.to_json(found, indent=None) if json else text, flush=True)


def _wait(database: port.Database, store: port.Store, seq: int, wanted: bool) -> None:
    """Wait, if `wanted`, for the event that was just written at a position."""
    if wanted:
        try:
            names = [projection.name for projection in BUILT_IN]
            wait_for(database, store, seq, names=names, needs_daemon=True)
        except ProjectorError as error:
            # Never exit code 3: a retry would write the event twice.
            kind = InterventionRequired if isinstance(error, InterventionRequired) else CheckFailed
            raise kind(f"event {seq} is written, but {error}", error.hint) from None


def _changed(entry: Entry) -> str:
    """How a session stands now, in one line."""
    count = many(entry.message_count, "message")
    cells = map(output.cell, (entry.session_id, entry.project, count, entry.title))
    state = painted(output.cell(entry.status))
    return "  ".join((when(entry.updated_at), state, *cells)).rstrip()
