"""The quarantine: what stands there, and the way back out of it."""

import uuid
from typing import Any, Final

import msgspec

from session_projector.projections.event import LogRow
from session_projector.projections.fold import key_of, read
from session_projector.projections.messagepack import decode_partly
from session_projector.worker import registry
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import Finding
from session_projector.worker.operations import event_check
from session_projector.worker.operations.event_check import as_data, stated_key
from session_projector.worker.storage.port import QuarantineEntry, Store


class Shown(msgspec.Struct, frozen=True):
    """An event in quarantine: its row, what of it decodes and where that ends, and why."""

    row: LogRow
    decoded: Any
    breaks_off: str | None
    reasons: dict[str, str]
    note: str | None


def show(store: Store, seq: int) -> Shown:
    """One event of the quarantine; raises `Finding`."""
    row, entries = _row(store, seq), _entries(store, seq)
    decoded, breaks_off = decode_partly(row.data) if isinstance(row.data, bytes) else (None, None)
    reasons = {entry.projection: entry.reason for entry in entries}
    return Shown(row, decoded, breaks_off, reasons, entries[0].dismissed)


def resubmit(store: Store, seq: int, fixed: bytes | None) -> int:
    """Append an event of the quarantine again, repaired or as it was, and dismiss the old one.

    The new event's id is `resubmit-<seq>-…`; returns its position. Raises `Finding` where it
    would not fold.
    """
    with store.transaction():
        row = _row(store, seq)
        projections = [entry.projection for entry in _entries(store, seq)]
        data = row.data if fixed is None else as_data(fixed)
        key = stated_key(data) if isinstance(data, str | bytes) else None
        event_id = f"resubmit-{seq}-{uuid.uuid4().hex[:12]}"
        repaired = LogRow(0, event_id, row.key if key is None else key, data, now_ms())
        _require_foldable(store, row, projections, repaired)
        appended = store.log.append(repaired)
        store.quarantine.dismiss(seq, f"resubmitted as seq {appended}")
    return appended


def dismiss(store: Store, seq: int, note: str) -> None:
    """Take an event off the count that `status` warns of; raises `Finding`."""
    with store.transaction():
        _entries(store, seq)
        store.quarantine.dismiss(seq, note)


def _row(store: Store, seq: int) -> LogRow:
    row = store.log.event(seq, whole=True)
    if row is None:
        raise Finding(f"there is no event {seq} in {store.name}", _LIST)
    return row


def _entries(store: Store, seq: int) -> list[QuarantineEntry]:
    entries = store.quarantine.entries(seq)
    if not entries:
        raise Finding(f"event {seq} is not in quarantine in {store.name}", _LIST)
    return entries


_LIST: Final = "see what is with `projector quarantine list`"


def _require_foldable(store: Store, old: LogRow, projections: list[str], new: LogRow) -> None:
    known = registry.known()
    (event,) = read([old], known)
    folded = [p.name for p in known if p.name not in projections and key_of(p, event) is not None]
    if folded:
        raise Finding(
            f"event {old.seq} is in quarantine for {', '.join(projections)} alone: appended again,"
            f" it would count twice for {', '.join(folded)}",
            "fix the code, raise its version and start the daemon again, or `projector replay`",
        )
    hint = "nothing was written; give the whole event, repaired: -m EVENT, or -m - for stdin"
    found = event_check.verdicts(store, new, known)
    event_check.require_foldable(found, hint)
    if not found:
        raise Finding("would be skipped: its type is none that a projection here folds", hint)
