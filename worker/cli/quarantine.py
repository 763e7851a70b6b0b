"""`projector quarantine …`: events that could not be folded, and what to do about them."""

from typing import Annotated, Final

import typer
from msgspec.structs import asdict

from session_projector.worker.cli import output
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, Json, read_stdin
from session_projector.worker.errors import UsageError
from session_projector.worker.operations import quarantine as events
from session_projector.worker.storage import open as storage

SHOWN: Final = 16384
"""Characters of an event that are shown."""
HEX_BYTES: Final = 1024
"""How much of an event is printed as hex."""

quarantine = typer.Typer(help=HELP["quarantine"], **SETTINGS)

Seq = Annotated[
    int,
    typer.Argument(metavar="SEQ", help="The event's position in the log.", min=1, max=2**63 - 1),
]


@quarantine.command("list")
def quarantine_list(database: Database = "local.db", json: Json = False) -> None:
    """List the events that could not be folded, and why."""
    with storage.database(database).open() as store:
        found = [asdict(entry) for entry in store.quarantine.entries()]
    if json:
        print(output.to_json(found))
    elif not found:
        print("nothing is quarantined")
    else:
        headers = ("seq", "projection", "id", "key", "reason", "dismissed")
        print(output.table(headers, [[row[h] for h in headers] for row in found]))


@quarantine.command("show")
def quarantine_show(seq: Seq, database: Database = "local.db") -> None:
    """Print why an event is quarantined, and its contents."""
    with storage.database(database).open() as store:
        shown = events.show(store, seq)
    row = shown.row
    for name, reason in shown.reasons.items():
        print(f"{name}: {output.one_line(reason)}")
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
    seq: Seq,
    fixed: Annotated[
        str | None, typer.Option("-m", help="The whole event, fixed (JSON); - reads stdin.")
    ] = None,
    database: Database = "local.db",
) -> None:
    """Append an event again, fixed or not; print its new position."""
    try:
        data = read_stdin() if fixed == "-" else None if fixed is None else fixed.encode()
    except UnicodeEncodeError:
        raise UsageError("the event is not UTF-8", "set a UTF-8 locale, or correct it") from None
    with storage.database(database).open(writable=True) as store:
        print(events.resubmit(store, seq, data))


@quarantine.command("dismiss")
def quarantine_dismiss(
    seq: Seq,
    note: Annotated[str, typer.Option("--note", help="Why it may stay; kept by a replay.")],
    database: Database = "local.db",
) -> None:
    """Leave an event out of the count that `status` warns about."""
    if not note.strip():
        raise UsageError("the note is empty", "say why the event may stay: --note TEXT")
    with storage.database(database).open(writable=True) as store:
        events.dismiss(store, seq, note.encode("utf-8", "replace").decode())
    print(f"dismissed event {seq}")


def _hex(data: bytes) -> str:
    lines = (data[start : start + 16] for start in range(0, len(data), 16))
    return "\n".join(
        f"{16 * number:06x}  {line.hex(' '):47}  "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        for number, line in enumerate(lines)
    )


def _bounded(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"
