"""The quarantine: showing, resubmitting and dismissing events."""

import uuid
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import msgspec

from session_projector.projections.decode import created_ms
from session_projector.projections.event import LogRow, Unfoldable, keys_of, session_of
from session_projector.projections.explain import detail
from session_projector.projections.fold import key_of, read
from session_projector.projections.messagepack import decode_partly
from session_projector.worker import registry
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed, argument
from session_projector.worker.operations import event_check
from session_projector.worker.operations.event_check import as_data, stated_key
from session_projector.worker.sessions.write import creating
from session_projector.worker.storage.port import QuarantineEntry, Store

_AGAIN: Final = "resubmitted as seq "
PAGE: Final = 500
"""Events that are read at once."""


class Wanted(msgspec.Struct, frozen=True):
    """Which quarantined events: those for which all that is given is so.

    `reason` is some words of it, `type` the event's as far as it can be read, `since_ms` the time
    that its row says; `standing`: none that is dismissed.
    """

    projection: str | None = None
    reason: str | None = None
    type: str | None = None
    session: str | None = None
    since_ms: int | None = None
    standing: bool = False


def found(store: Store, wanted: Wanted) -> Iterator[list[QuarantineEntry]]:
    """The entries of each event that is wanted, by position."""
    after = 0
    keys = None if wanted.session is None else keys_of(wanted.session)
    while page := store.quarantine.page(
        after=after, limit=PAGE, projection=wanted.projection, keys=keys
    ):
        for _, of_one in groupby(page, attrgetter("seq")):
            if entries := _fitting(store, list(of_one), wanted):
                yield entries
        after = page[-1].seq


def _fitting(store: Store, entries: list[QuarantineEntry], wanted: Wanted) -> list[QuarantineEntry]:
    if wanted.reason is not None:
        entries = [one for one in entries if wanted.reason in one.reason]
    if not entries or (wanted.standing and entries[0].dismissed is not None):
        return []
    if wanted.type is None and wanted.since_ms is None:
        return entries
    row = store.log.event(entries[0].seq)
    if row is None:
        return []
    if wanted.type is not None and read([row], registry.known())[0].type != wanted.type:
        return []
    if wanted.since_ms is not None:
        try:
            return entries if created_ms(row.created_at) >= wanted.since_ms else []
        except Unfoldable:
            return []
    return entries


class QuarantinedEvent(msgspec.Struct, frozen=True):
    """A quarantined event: its row, what decodes of it, and by projection the reasons.

    `fault` says why decoding stopped, `detail` what is wrong with how it is encoded; `note` is that
    of a dismissal.
    """

    row: LogRow
    decoded: Any
    fault: str | None
    detail: str | None
    reasons: dict[str, str]
    note: str | None


def summary(entries: Iterable[QuarantineEntry]) -> list[dict[str, Any]]:
    """How many entries there are of each reason, those of most events first."""
    of: dict[tuple[str, str], dict[str, Any]] = {}
    for one in entries:
        said = of.setdefault(
            (one.projection, one.reason),
            {
                "projection": one.projection,
                "reason": one.reason,
                "events": 0,
                "dismissed": 0,
                "first": one.seq,
                "id": one.id,
            },
        )
        said["events"] += 1
        said["dismissed"] += one.dismissed is not None
        said["last"] = one.seq
    return sorted(of.values(), key=lambda one: -one["events"])


def show(store: Store, seq: int) -> QuarantinedEvent:
    """One quarantined event; raises `CheckFailed` if it is not quarantined."""
    row, entries = _row(store, seq), require_quarantined(store, seq)
    decoded, fault = decode_partly(row.data) if isinstance(row.data, bytes) else (None, None)
    reasons = {entry.projection: entry.reason for entry in entries}
    return QuarantinedEvent(row, decoded, fault, detail(row.data), reasons, entries[0].dismissed)


def resubmit(store: Store, seq: int, fixed: bytes | None) -> int:
    """Append a quarantined event again, fixed or unchanged, and dismiss the old one.

    The new event's id is `resubmit-<seq>-…`; returns its position. Raises `CheckFailed` if it would
    not fold.
    """
    with store.transaction():
        appended = store.log.append(require_resubmittable(store, seq, fixed))
        store.quarantine.dismiss(seq, f"{_AGAIN}{appended}")
    return appended


def require_resubmittable(store: Store, seq: int, fixed: bytes | None = None) -> LogRow:
    """The event as it would be appended; raises `CheckFailed` as `resubmit` does."""
    row, entries = _row(store, seq), require_quarantined(store, seq)
    note = entries[0].dismissed or ""
    if note.startswith(_AGAIN):
        session = argument(session_of(str(row.key)))
        raise CheckFailed(
            f"event {seq} was {note}: once more, and what it says would be there twice",
            f"see what is there now: `projector session history {session}`",
        )
    projections = [entry.projection for entry in entries]
    data = row.data if fixed is None else as_data(fixed)
    key = stated_key(data) if isinstance(data, str | bytes) else None
    event_id = f"resubmit-{seq}-{uuid.uuid4().hex[:12]}"
    resubmitted = LogRow(0, event_id, row.key if key is None else key, data, now_ms())
    _require_foldable(store, row, projections, resubmitted)
    return resubmitted


def dismiss(store: Store, seq: int, note: str) -> None:
    """Leave an event out of the count that `status` warns about; raises `CheckFailed`."""
    with store.transaction():
        require_quarantined(store, seq)
        store.quarantine.dismiss(seq, note)


def _row(store: Store, seq: int) -> LogRow:
    row = store.log.event(seq, whole=True)
    if row is None:
        raise CheckFailed(f"there is no event {seq} in {store.name}", _LIST)
    return row


def require_quarantined(store: Store, seq: int) -> list[QuarantineEntry]:
    """The entries of an event; raises `CheckFailed` where it is not in quarantine."""
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
    create = creating(session_of(str(new.key)))
    create = f"nothing was written; {create}, then `projector quarantine resubmit {old.seq}`"
    found = event_check.verdicts(store, new, known)
    event_check.require_foldable(found, detail(new.data), hint, create)
    if not found:
        raise CheckFailed(event_check.skipped(event_check.nearly(new, known)), hint)
