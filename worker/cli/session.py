"""`projector session …`, in the verbs that Kanbatte's users know."""

from typing import Annotated, Any, Final

import typer

from session_projector.worker.cli.options import SETTINGS, Database, Format, Json, Wait, read_stdin
from session_projector.worker.clock import when
from session_projector.worker.errors import BadUsage, Finding, NeedsPerson, ProjectorError
from session_projector.worker.storage import open as storage

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

    target = storage.database(database)
    with target.open(writable=True) as store:
        session_id, seq = writers.queue(store, _utf8(project), _utf8(message))
        print(output.printable(session_id), flush=True)
        _wait(target, store, seq, wait)


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

    data = read_stdin() if messages == "-" else _utf8(messages).encode()
    target = storage.database(database)
    with target.open(writable=True) as store:
        seq = writers.append(store, _utf8(session_id), data, stop=stop)
        print(seq, flush=True)
        _wait(target, store, seq, wait)


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
    from session_projector.worker.sessions import timeline
    from session_projector.worker.sessions import write as writers

    target = storage.database(database)
    with target.open(writable=new_status is not None) as store:
        if new_status is not None:
            seq = writers.set_status(store, _utf8(session_id), _utf8(new_status))
            print(seq, flush=True)
            _wait(target, store, seq, wait)
            return
        if wait:
            waiting.wait(target, store, names=[timeline.SESSIONS.name])
        print(output.one_line(readers.session(store, _utf8(session_id))["status"]))


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

    wanted = None if statuses is None else statuses.split(",")
    with storage.database(database).open() as store:
        found = list(readers.sessions(store, project=project, statuses=wanted))
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
            when(entry.updated_at),
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

    with storage.database(database).open() as store:
        for entry in readers.watch(store, project):
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

    point = None if at is None else look_back.point(at)
    with storage.database(database).open() as store:
        if point is None:
            view = readers.session(store, _utf8(session_id))
        else:
            view = look_back.view_at(store, _utf8(session_id), point)
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

    with storage.database(database).open() as store:
        steps = history.listing(store, _utf8(session_id))
    if json:
        names = ("seq", "time", "type", "bytes", "id", "quarantined")
        print(output.to_json([dict(zip(names, _listed(step), strict=True)) for step in steps]))
        return
    rows = []
    for step in steps:
        seq, time, kind, size_bytes, event_id, reason = _listed(step)
        time = "" if time is None else when(time)
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

    points = look_back.point(start), look_back.point(end)
    with storage.database(database).open() as store:
        found = look_back.diff(store, _utf8(session_id), *points)
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

    with storage.database(database).open() as store:
        found = look_back.why(store, _utf8(session_id))
    if json:
        fields = [{"field": f, "value": v, **asdict(o)} for f, v, o in found.fields]
        runs = [{"first": a, "last": b, **asdict(o)} for a, b, o in found.messages]
        print(output.to_json({"session": session_id, "fields": fields, "messages": runs}))
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


def _listed(step: Any) -> tuple[Any, ...]:
    return step.seq, step.time, step.type, step.size_bytes, step.id, step.reason


def _wait(database: Any, store: Any, seq: int, wanted: bool) -> None:
    """For the event at a position, which was written just now."""
    from session_projector.projections import BUILT_IN
    from session_projector.worker.operations import wait as waiting

    if wanted:
        try:
            waiting.wait(database, store, seq, names=[projection.name for projection in BUILT_IN])
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
