"""`projector session …`, in the verbs that Kanbatte's users know."""

from typing import Annotated, Any, Final

import typer

from session_projector.worker.cli.options import SETTINGS, Database, Format, Json, Wait, read_stdin
from session_projector.worker.errors import BadUsage, Finding, NeedsPerson, ProjectorError
from session_projector.worker.storage.sqlite.connection import resolve

session = typer.Typer(help="Read sessions, and write events about them.", **SETTINGS)

_POINT: Final = "a seq, or an ISO 8601 time (UTC without an offset)"


@session.command("queue")
def session_queue(
    message: Annotated[str, typer.Argument(help="The first user message.")],
    project: Annotated[str, typer.Option("-p", "--project", help="The project's name.")],
    database: Database = "local.db",
    wait: Wait = False,
) -> None:
    """Start a session with its first message; prints the new id."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import write as writers
    from session_projector.worker.storage.sqlite.client import Client

    with Client.writing(resolve(database)) as client:
        print(output.printable(writers.queue(client, _utf8(project), _utf8(message))), flush=True)
        _wait(client, wait)


@session.command("append")
def session_append(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    messages: Annotated[
        str, typer.Option("-m", "--messages", help="A JSON list of messages; - reads stdin.")
    ],
    stop: Annotated[bool, typer.Option("--stop", help="Also set the status ready.")] = False,
    database: Database = "local.db",
    wait: Wait = False,
) -> None:
    """Add messages at the end of a session; prints the position of the event."""
    from session_projector.worker.sessions import write as writers
    from session_projector.worker.storage.sqlite.client import Client

    data = read_stdin() if messages == "-" else _utf8(messages).encode()
    with Client.writing(resolve(database)) as client:
        print(writers.append(client, _utf8(session_id), data, stop=stop), flush=True)
        _wait(client, wait)


@session.command("status")
def session_status(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    new_status: Annotated[str | None, typer.Argument(metavar="STATUS")] = None,
    database: Database = "local.db",
    wait: Wait = False,
) -> None:
    """Print the status of a session; or set it, and print the position of the event."""
    from session_projector.worker.cli import output
    from session_projector.worker.operations import wait as waiting
    from session_projector.worker.sessions import read as readers
    from session_projector.worker.sessions import timeline as history
    from session_projector.worker.sessions import write as writers
    from session_projector.worker.storage.sqlite.client import Client

    if new_status is None:
        with Client.reading(resolve(database)) as client:
            if wait:
                waiting.wait(client, names=[history.SESSIONS.name])
            print(output.one_line(readers.session(client, _utf8(session_id))["status"]))
    else:
        with Client.writing(resolve(database)) as client:
            print(writers.set_status(client, _utf8(session_id), _utf8(new_status)), flush=True)
            _wait(client, wait)


@session.command("list")
def session_list(
    database: Database = "local.db",
    project: Annotated[
        str | None, typer.Option("-p", "--project", help="Only this project's.")
    ] = None,
    statuses: Annotated[
        str | None, typer.Option("-s", "--status", help="Only these, such as ready,in-progress.")
    ] = None,
    form: Annotated[Format, typer.Option("-f", "--format")] = Format.TABLE,
) -> None:
    """List sessions, oldest first."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import read as readers
    from session_projector.worker.storage.sqlite.client import Client

    wanted = None if statuses is None else statuses.split(",")
    with Client.reading(resolve(database)) as client:
        found = list(readers.sessions(client, project=project, statuses=wanted))
    if form is Format.JSON:
        print(output.to_json([_summary(entry) for entry in found]))
        return
    headers = ("id", "project", "status", "messages", "updated", "title")
    rows = [
        (
            entry.session_id,
            entry.project,
            entry.status,
            entry.message_count,
            output.when(entry.updated_at),
            entry.title or "",
        )
        for entry in found
    ]
    print((output.table if form is Format.TABLE else output.markdown_table)(headers, rows))


@session.command("watch")
def session_watch(
    database: Database = "local.db",
    project: Annotated[
        str | None, typer.Option("-p", "--project", help="Only this project's.")
    ] = None,
) -> None:
    """Print a JSON line for each change of a session as it becomes visible."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import read as readers
    from session_projector.worker.storage.sqlite.client import Client

    with Client.reading(resolve(database)) as client:
        for entry in readers.watch(client, project):
            print(output.to_json(_summary(entry), indent=None), flush=True)


@session.command("view")
def session_view(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    database: Database = "local.db",
    form: Annotated[Format, typer.Option("-f", "--format")] = Format.MARKDOWN,
    at: Annotated[
        str | None, typer.Option(metavar="SEQ|TIME", help=f"As it was then: {_POINT}.")
    ] = None,
) -> None:
    """Print a session with all its messages."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import read as readers
    from session_projector.worker.sessions import time_travel as look_back
    from session_projector.worker.storage.sqlite.client import Client

    point = None if at is None else look_back.point(at)
    with Client.reading(resolve(database)) as client:
        if point is None:
            view = readers.session(client, _utf8(session_id))
        else:
            view = look_back.view_at(client, _utf8(session_id), point)
    if form is Format.JSON:
        print(output.to_json(view))
    else:
        print(output.session_table(view) if form is Format.TABLE else output.session_markdown(view))


@session.command("history")
def session_history(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    database: Database = "local.db",
    json: Json = False,
) -> None:
    """List a session's events, and why one is quarantined."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import timeline as history
    from session_projector.worker.storage.sqlite.client import Client

    with Client.reading(resolve(database)) as client:
        steps = history.listing(client, _utf8(session_id))
    if json:
        names = ("seq", "time", "type", "bytes", "id", "quarantined")
        print(output.to_json([dict(zip(names, _listed(step), strict=True)) for step in steps]))
        return
    rows = []
    for step in steps:
        seq, time, kind, size_bytes, event_id, reason = _listed(step)
        time = "" if time is None else output.when(time)
        kind = output.one_line(kind or "", 40)
        event_id = "" if event_id is None else event_id
        rows.append((seq, time, kind, size_bytes, event_id, output.one_line(reason or "")))
    print(output.table(("seq", "time", "type", "bytes", "id", "quarantined"), rows))


@session.command("diff")
def session_diff(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    start: Annotated[str, typer.Argument(metavar="A", help=f"From here: {_POINT}.")],
    end: Annotated[str, typer.Argument(metavar="B", help="To here, likewise.")],
    database: Database = "local.db",
    json: Json = False,
) -> None:
    """Say what changed in a session between two points."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import time_travel as look_back
    from session_projector.worker.storage.sqlite.client import Client

    points = look_back.point(start), look_back.point(end)
    with Client.reading(resolve(database)) as client:
        found = look_back.diff(client, _utf8(session_id), *points)
    changed = {
        "session": found.session,
        "from": found.start,
        "to": found.end,
        "fields": found.fields,
        "messages": found.messages,
    }
    print(output.to_json(changed) if json else output.changes(changed, found.began))


@session.command("why")
def session_why(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    database: Database = "local.db",
    json: Json = False,
) -> None:
    """Say which event last set each field of a session, and brought each message."""
    from msgspec.structs import asdict

    from session_projector.worker.cli import output
    from session_projector.worker.sessions import time_travel as look_back
    from session_projector.worker.storage.sqlite.client import Client

    with Client.reading(resolve(database)) as client:
        found = look_back.why(client, _utf8(session_id))
    if json:
        fields = [{"field": f, "value": v, **asdict(o)} for f, v, o in found.fields]
        runs = [{"first": a, "last": b, **asdict(o)} for a, b, o in found.messages]
        print(output.to_json({"session": session_id, "fields": fields, "messages": runs}))
        return
    found_in = [
        (name, output.when(value) if name.endswith("At") else value, origin)
        for name, value, origin in found.fields
    ]
    for first, last, origin in found.messages:
        found_in.append((f"messages {first}" + f"-{last}" * (last > first), "", origin))
    rows = [
        (name, value, origin.seq, output.when(origin.time), origin.type, origin.id)
        for name, value, origin in found_in
    ]
    print(output.table(("field", "value", "seq", "time", "type", "id"), rows))


def _listed(step: Any) -> tuple[Any, ...]:
    return step.seq, step.time, step.type, step.size_bytes, step.id, step.reason


def _wait(client: Any, wanted: bool) -> None:
    """For the event that this connection has just written."""
    from session_projector.projections import BUILT_IN
    from session_projector.worker.operations import wait as waiting

    if wanted:
        seq = client.value("SELECT last_insert_rowid()")
        try:
            waiting.wait(client, seq, names=[projection.name for projection in BUILT_IN])
        except ProjectorError as error:
            # Not what a retry may mend: it would write the event twice.
            kind = NeedsPerson if isinstance(error, NeedsPerson) else Finding
            raise kind(f"event {seq} is written, but {error}", error.hint) from None


def _summary(entry: Any) -> dict[str, Any]:
    return {
        "id": entry.session_id,
        "project": entry.project,
        "status": entry.status,
        "title": entry.title,
        "messages": entry.message_count,
        "lastRole": entry.last_role,
        "createdAt": entry.created_at,
        "updatedAt": entry.updated_at,
        "lastEventId": entry.last_event_id,
        "lastSeq": entry.last_seq,
    }


def _utf8(text: str) -> str:
    """An argument as it was typed; bytes that are not UTF-8 cannot go into an event."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadUsage("an argument is not UTF-8", "set a UTF-8 locale, or mend it") from None
    return text
