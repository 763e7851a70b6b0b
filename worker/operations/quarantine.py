"""The quarantine: showing, resubmitting and dismissing events."""

import uuid
from typing import Any, Final

import msgspec

from session_projector.projections.event import LogRow
from session_projector.projections.fold import key_of, read
from session_projector.projections.messagepack import decode_partly
from session_projector.worker import registry
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed
from session_projector.worker.operations import event_check
from session_projector.worker.operations.event_check import as_data, stated_key
from session_projector.worker.storage.port import QuarantineEntry, Store


class QuarantinedEvent(msgspec.Struct, frozen=True):
    """A quarantined event: its row, what decodes of it, and by projection the reasons.

    `fault` says why decoding stopped; `note` is that of a dismissal.
    """

    row: LogRow
    decoded: Any
    fault: str | None
    reasons: dict[str, str]
    note: str | None


def show(store: Store, seq: int) -> QuarantinedEvent:
    """One quarantined event; raises `CheckFailed` if it is not quarantined."""
    row, entries = _row(store, seq), _entries(store, seq)
    decoded, fault = decode_partly(row.data) if isinstance(row.data, bytes) else (None, None)
    reasons = {entry.projection: entry.reason for entry in entries}
    return QuarantinedEvent(row, decoded, fault, reasons, entries[0].dismissed)


def resubmit(store: Store, seq: int, fixed: bytes | None) -> int:
    """Append a quarantined event again, fixed or unchanged, and dismiss the old one.

    The new event's id is `resubmit-<seq>-…`; returns its position. Raises `CheckFailed` if it would
    not fold.
    """
    with store.transaction():
        row = _row(store, seq)
        projections = [entry.projection for entry in _entries(store, seq)]
        data = row.data if fixed is None else as_data(fixed)
        key = stated_key(data) if isinstance(data, str | bytes) else None
        event_id = f"resubmit-{seq}-{uuid.uuid4().hex[:12]}"
        resubmitted = LogRow(0, event_id, row.key if key is None else key, data, now_ms())
        _require_foldable(store, row, projections, resubmitted)
        appended = store.log.append(resubmitted)
        store.quarantine.dismiss(seq, f"resubmitted as seq {appended}")
    return appended


def dismiss(store: Store, seq: int, note: str) -> None:
    """Leave an event out of the count that `status` warns about; raises `CheckFailed`."""
    with store.transaction():
        _entries(store, seq)
        store.quarantine.dismiss(seq, note)


def _row(store: Store, seq: int) -> LogRow:
    row = store.log.event(seq, whole=True)
    if row is None:
        raise CheckFailed(f"there is no event {seq} in {store.name}", _LIST)
    return row


def _entries(store: Store, seq: int) -> list[QuarantineEntry]:
    entries = store.quarantine.entries(seq)
    if not entries:
        raise CheckFailed(f"event {seq} is not in quarantine in {store.name}", _LIST)
    return entries


_LIST: Final = "list what is: `projector quarantine list`"


def _require_foldable(store: Store, old: LogRow, projections: list[str], new: LogRow) -> None:
    known = registry.known()
    (event,) = read([old], known)
    folded = [p.name for p in known if p.name not in projections and key_of(p, event) is not None]
    if folded:
        raise CheckFailed(
            f"event {old.seq} is quarantined only for {', '.join(projections)}: appended again, it"
            f" would count twice for {', '.join(folded)}",
            "fix the code, raise its version and restart the daemon, or run `projector replay`",
        )
    hint = "nothing was written; give the whole event, fixed: -m EVENT, or -m - for stdin"
    found = event_check.verdicts(store, new, known)
    event_check.require_foldable(found, hint)
    if not found:
        raise CheckFailed(f"would be skipped: {event_check.NO_PROJECTION}", hint)
