"""The quarantine: what stands there, and the way back out of it."""

import time
import uuid
from typing import Any

import msgspec

from session_projector.projections.event import LogRow
from session_projector.projections.fold import key_of, read
from session_projector.projections.messagepack import decode_partly
from session_projector.worker import registry
from session_projector.worker.errors import Finding, quoted
from session_projector.worker.operations import event_check as foldable
from session_projector.worker.sessions.write import as_data, require_foldable, stated_key
from session_projector.worker.storage.sqlite.client import Client

_COLUMNS = "seq, id, key, data, created_at"


class Shown(msgspec.Struct, frozen=True):
    """An event in quarantine: its row, what of it decodes and where that ends, and why."""

    row: LogRow
    decoded: Any
    breaks_off: str | None
    reasons: dict[str, str]
    note: str | None


def listing(client: Client) -> list[dict[str, Any]]:
    """The quarantine, by position; `dismissed` is the operator's note."""
    names = ("projection", "seq", "id", "key", "reason", "dismissed")
    found = client.rows(
        "SELECT q.projection, q.seq, q.id, q.key, q.reason, d.note FROM quarantine AS q"
        " LEFT JOIN dismissed AS d ON d.seq = q.seq AND d.id IS q.id"
        " ORDER BY q.seq, q.projection"
    )
    return [dict(zip(names, row, strict=True)) for row in found]


def show(client: Client, seq: int) -> Shown:
    """One event of the quarantine; raises `Finding`."""
    row, reasons = _row(client, seq), _reasons(client, seq)
    decoded, breaks_off = decode_partly(row.data) if isinstance(row.data, bytes) else (None, None)
    notes = client.rows("SELECT note FROM dismissed WHERE seq = ? AND id IS ?", (seq, row.id))
    return Shown(row, decoded, breaks_off, reasons, next((note for (note,) in notes), None))


def resubmit(client: Client, seq: int, fixed: bytes | None) -> int:
    """Append an event of the quarantine again, mended or as it was, and dismiss the old one.

    The new event's id is `resubmit-<seq>-…`; returns its position. Raises `Finding` where it
    would not fold.
    """
    with client.transaction():
        row = _row(client, seq)
        reasons = _reasons(client, seq)
        data = row.data if fixed is None else as_data(fixed)
        key = stated_key(data) if isinstance(data, str | bytes) else None
        event_id = f"resubmit-{seq}-{uuid.uuid4().hex[:12]}"
        now = time.time_ns() // 1_000_000
        mended = LogRow(0, event_id, row.key if key is None else key, data, now)
        _require_foldable(client, row, reasons, mended)
        cursor = client.connection.execute(
            "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)",
            (mended.id, mended.key, mended.data, mended.created_at),
        )
        appended = cursor.lastrowid or 0
        _dismiss(client, seq, f"resubmitted as seq {appended}")
    return appended


def dismiss(client: Client, seq: int, note: str) -> None:
    """Take an event off the count that `status` warns of; raises `Finding`."""
    with client.transaction():
        _reasons(client, seq)
        _dismiss(client, seq, note)


def _dismiss(client: Client, seq: int, note: str) -> None:
    client.connection.execute(
        "INSERT INTO dismissed (seq, id, note, dismissed_at)"
        " SELECT seq, id, ?, ? FROM event_log WHERE seq = ? ON CONFLICT (seq) DO UPDATE"
        " SET id = excluded.id, note = excluded.note, dismissed_at = excluded.dismissed_at",
        (note, time.time_ns() // 1_000_000, seq),
    )


def _row(client: Client, seq: int) -> LogRow:
    rows = client.rows(f"SELECT {_COLUMNS} FROM event_log WHERE seq = ?", (seq,))
    for row in rows:
        return LogRow(*row)
    raise Finding(f"there is no event {seq} in {client.path}", _list_hint(client))


def _reasons(client: Client, seq: int) -> dict[str, str]:
    rows = client.rows("SELECT projection, reason FROM quarantine WHERE seq = ?", (seq,))
    if not (reasons := dict(rows)):
        raise Finding(f"event {seq} is not in quarantine in {client.path}", _list_hint(client))
    return reasons


def _list_hint(client: Client) -> str:
    return f"see what is with `projector quarantine list -d {quoted(client.path)}`"


def _require_foldable(client: Client, old: LogRow, reasons: dict[str, str], new: LogRow) -> None:
    known = registry.known()
    (event,) = read([old], known)
    folded = [p.name for p in known if p.name not in reasons and key_of(p, event) is not None]
    if folded:
        raise Finding(
            f"event {old.seq} is in quarantine for {', '.join(reasons)} alone: appended again, it"
            f" would count twice for {', '.join(folded)}",
            "mend the code, raise its version and start the daemon again, or `projector replay`",
        )
    hint = "nothing was written; give the whole event, mended: -m EVENT, or -m - for stdin"
    found = foldable.verdicts(client, new, known)
    require_foldable(found, hint)
    if not found:
        raise Finding("would be skipped: its type is none that a projection here folds", hint)
