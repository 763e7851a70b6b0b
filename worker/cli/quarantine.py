"""`projector quarantine …`: events that could not be folded, and what to do about them."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Any, Final

import typer
from msgspec.structs import asdict

from session_projector.worker.cli import output
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, Json, JsonLines, read_stdin
from session_projector.worker.cli.progress import Progress
from session_projector.worker.errors import CheckFailed, UsageError, many
from session_projector.worker.operations import quarantine as events
from session_projector.worker.sessions import time_travel
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Store

SHOWN: Final = 16384
"""Characters of an event that are shown."""
HEX_BYTES: Final = 1024
"""How much of an event is printed as hex."""

quarantine = typer.Typer(help=HELP["quarantine"], **SETTINGS)

Seq = Annotated[
    int,
    typer.Argument(metavar="SEQ", help="The event's position in the log.", min=1, max=2**63 - 1),
]


Projection = Annotated[
    str | None, typer.Option("--projection", metavar="NAME", help="Only of this projection.")
]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="WORDS", help="Only whose reason has these words.")
]
Type = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", help="Only events of this type.")
]
Session = Annotated[
    str | None, typer.Option("--session", metavar="ID", help="Only events of this session.")
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only events written since an ISO 8601 time (UTC without an offset).",
    ),
]
Seqs = Annotated[
    list[int] | None,
    typer.Argument(
        metavar="[SEQ]...",
        help="Positions in the log; or say which by the options.",
        min=1,
        max=2**63 - 1,
    ),
]
All = Annotated[bool, typer.Option("--all", help="All that are not dismissed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@quarantine.command("list")
def quarantine_list(
    database: Database = "local.db",
    projection: Projection = None,
    reason: Reason = None,
    type_: Type = None,
    session: Session = None,
    since: Since = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="The first N events.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="How many, by reason, with an example of each.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, an object for each projection of an event.")
    ] = False,
) -> None:
    """List the events that could not be folded, and why."""
    since_ms = time_travel.time_ms(since)
    wanted = events.Wanted(projection, reason, type_, session, since_ms)
    with storage.database(database).open() as store:
        of_each = islice(events.found(store, wanted), limit)
        entries = (entry for some in of_each for entry in some)
        found = events.summary(entries) if summary else [*map(asdict, entries)]
    if json:
        print(output.to_json(found))
    elif not found:
        print("nothing is quarantined" if wanted == events.Wanted() else "no such event")
    else:
        headers = ("seq", "projection", "id", "key", "reason", "dismissed")
        if summary:
            headers = ("projection", "events", "dismissed", "first", "last", "reason")
        print(output.table(headers, [[row[h] for h in headers] for row in _joined(found)]))


def _joined(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of which only the projection differs as one."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        same = repr({name: value for name, value in row.items() if name != "projection"})
        one = found.setdefault(same, {**row, "projection": []})
        one["projection"].append(row["projection"])
    return [{**row, "projection": ", ".join(row["projection"])} for row in found.values()]


def _chosen(
    store: Store, seqs: Sequence[int] | None, wanted: events.Wanted, all_: bool
) -> Sequence[int]:
    """The positions that were given, or those of what is wanted; refuses to take all unless asked
    to."""
    if bool(seqs) == (all_ or wanted != events.Wanted(standing=True)):
        raise UsageError(
            "which events?",
            "give their positions, or else --reason, --type, --session, --projection, --since, or"
            " --all; see what there is: `projector quarantine list --summary`",
        )
    return seqs or [entries[0].seq for entries in events.found(store, wanted)]


def _each(
    seqs: Sequence[int],
    work: Callable[[int], tuple[str, dict[str, Any]]],
    command: str,
    verb: str,
    json: bool,
) -> None:
    """Do something with each event, one after the other; what cannot be done is said at the end.

    `work` returns what was done in words, and as what `json` prints of it.
    """
    progress, failed, hint = Progress(), list[int](), ""
    for done, seq in enumerate(seqs):
        progress.tell(verb, done, len(seqs))
        try:
            said, found = work(seq)
        except CheckFailed as error:
            failed.append(seq)
            hint, said = error.hint, f"event {seq}: {error}"
            found = {"error": str(error)}
        progress.clear()
        print(output.to_json({"seq": seq, **found}, indent=None) if json else said)
    if failed and len(seqs) > 1:
        hint = f"what helps one of them: `projector quarantine {command} {failed[0]} --dry-run`"
    if failed:
        told = f"{len(failed):,} of {many(len(seqs), 'event')} could not be {verb}"
        others = len(seqs) - len(failed)
        raise CheckFailed(f"{told}, {others:,} could" if others else told, hint)


@quarantine.command("show")
def quarantine_show(seq: Seq, database: Database = "local.db", json: Json = False) -> None:
    """Print why an event is quarantined, and its contents."""
    with storage.database(database).open() as store:
        shown = events.show(store, seq)
    row = shown.row
    if json:
        rest = {name: value for name, value in asdict(shown).items() if name not in ("row", "note")}
        print(output.to_json({**asdict(row), **rest, "dismissed": shown.note}))
        return
    for name, reason in shown.reasons.items():
        print(f"{name}: {output.one_line(reason)}")
    if shown.detail is not None:
        print(f"in detail: {output.one_line(shown.detail)}")
    if shown.note is not None:
        print(f"dismissed: {output.one_line(shown.note)}")
    print(f"\nseq         {row.seq}")
    for label, value in (("id", row.id), ("key", row.key), ("created_at", row.created_at)):
        print(f"{label:10}  {output.one_line(output.to_json(value, indent=None))}")
    if isinstance(row.data, str):
        print(f"\ndata, a TEXT:\n{_bounded(printable(row.data[: SHOWN + 1]))}")
        data = row.data.encode("utf-8", "surrogateescape")
    elif isinstance(row.data, bytes):
        print(f"\ndata, a BLOB, as far as it decodes:\n{_bounded(output.to_json(shown.decoded))}")
        if shown.fault:
            print(f"… decoding stopped: {shown.fault}")
        data = row.data
    else:
        print(f"\ndata is {_bounded(output.to_json(row.data))}, which is not an event")
        return
    print(f"\n{len(data):,} bytes:")
    print(_hex(data[:HEX_BYTES]))
    if len(data) > HEX_BYTES:
        print(f"… for all of it: SELECT hex(data) FROM event_log WHERE seq = {row.seq}")


@quarantine.command("resubmit")
def quarantine_resubmit(
    seqs: Seqs = None,
    fixed: Annotated[
        str | None, typer.Option("-m", help="The whole event, fixed (JSON); - reads stdin.")
    ] = None,
    projection: Projection = None,
    reason: Reason = None,
    type_: Type = None,
    session: Session = None,
    since: Since = None,
    all_: All = False,
    dry_run: DryRun = False,
    database: Database = "local.db",
    json: JsonLines = False,
) -> None:
    """Append events again, fixed or not; print their new positions."""
    since_ms = time_travel.time_ms(since)
    wanted = events.Wanted(projection, reason, type_, session, since_ms, standing=True)
    try:
        data = read_stdin() if fixed == "-" else None if fixed is None else fixed.encode()
    except UnicodeEncodeError:
        raise UsageError("the event is not UTF-8", "set a UTF-8 locale, or correct it") from None
    with storage.database(database).open(writable=not dry_run) as store:
        chosen = _chosen(store, seqs, wanted, all_)
        if seqs and len(seqs) == 1 and not dry_run:
            new = events.resubmit(store, seqs[0], data)
            told = {"seq": seqs[0], "new_seq": new}
            print(output.to_json(told, indent=None) if json else new)
            return
        if data is not None:
            raise UsageError("-m is one event", "give one position with it, and no --dry-run")

        def resubmit(seq: int) -> tuple[str, dict[str, Any]]:
            if dry_run:
                events.require_resubmittable(store, seq)
                return f"would append event {seq} again", {"would": "resubmit"}
            new = events.resubmit(store, seq, None)
            return f"appended event {seq} again as {new}", {"new_seq": new}

        _each(chosen, resubmit, "resubmit", "resubmitted", json)


@quarantine.command("dismiss")
def quarantine_dismiss(
    seqs: Seqs = None,
    note: Annotated[str, typer.Option("--note", help="Why they may stay; kept by a replay.")] = "",
    projection: Projection = None,
    reason: Reason = None,
    type_: Type = None,
    session: Session = None,
    since: Since = None,
    all_: All = False,
    dry_run: DryRun = False,
    database: Database = "local.db",
    json: JsonLines = False,
) -> None:
    """Leave events out of the count that `status` warns about."""
    if not note.strip():
        raise UsageError(
            "the note is empty", "say why the events may stay: --note 'a test of the new writer'"
        )
    text = note.encode("utf-8", "replace").decode()
    since_ms = time_travel.time_ms(since)
    wanted = events.Wanted(projection, reason, type_, session, since_ms, standing=True)
    with storage.database(database).open(writable=not dry_run) as store:
        chosen = _chosen(store, seqs, wanted, all_)

        def dismiss(seq: int) -> tuple[str, dict[str, Any]]:
            if dry_run:
                events.require_quarantined(store, seq)
                return f"would dismiss event {seq}", {"would": "dismiss"}
            events.dismiss(store, seq, text)
            return f"dismissed event {seq}", {"dismissed": text}

        _each(chosen, dismiss, "dismiss", "dismissed", json)


def _hex(data: bytes) -> str:
    lines = (data[start : start + 16] for start in range(0, len(data), 16))
    return "\n".join(
        f"{16 * number:06x}  {line.hex(' '):47}  "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        for number, line in enumerate(lines)
    )


def _bounded(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"
