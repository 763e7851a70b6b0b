"""The answers about events in quarantine, and the actions on them."""

from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from starlette.requests import Request

from session_projector.projections.event import LogRow, beginning
from session_projector.projections.explain import detail
from session_projector.projections.fold import read
from session_projector.worker import registry
from session_projector.worker.board import query
from session_projector.worker.board.values import MESSAGE_BYTES, cut, exact, short, to_json
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed, UsageError, naming
from session_projector.worker.operations import event_check
from session_projector.worker.operations import quarantine as operations
from session_projector.worker.sessions import timeline
from session_projector.worker.sessions.plain import plain
from session_projector.worker.storage.port import QuarantineEntry, Store

MOST: Final = 100
MOST_REASONS: Final = 500
HEX_BYTES: Final = 1024
_READ_BYTES: Final = 1024 * 1024
"""The largest event in a list that is read for its type and time."""
Seq = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Seqs = Annotated[list[Seq], msgspec.Meta(min_length=1, max_length=1000)]


class Check(msgspec.Struct, forbid_unknown_fields=True):
    seq: Seq
    event: Any = None


class Resubmit(msgspec.Struct, forbid_unknown_fields=True):
    seqs: Seqs | None = None
    seq: Seq | None = None
    event: Any = None


class Dismiss(msgspec.Struct, forbid_unknown_fields=True):
    seqs: Seqs
    note: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


def listing(store: Store, request: Request) -> dict[str, Any]:
    limit = query.number(request, "limit", MOST, low=1, high=MOST)
    after = query.number(request, "after", 0)
    with store.snapshot():
        reasons = store.quarantine.summary(MOST_REASONS)
        entries = store.quarantine.page(
            after=after,
            limit=limit + 1,
            projection=query.text(request, "projection"),
            reason=query.text(request, "reason"),
        )
        counts = [store.quarantine.count(name) for name in store.quarantine.projections()]
    by_seq: defaultdict[int, list[QuarantineEntry]] = defaultdict(list)
    for entry in entries:
        by_seq[entry.seq].append(entry)
    shown = [*by_seq][:limit]
    return {
        "total": sum(count.quarantined for count in counts),
        "undismissed": sum(count.quarantined - count.dismissed for count in counts),
        "reasons": [
            {
                "projection": one.projection,
                "reason": one.reason,
                "count": one.count,
                "dismissed": one.dismissed,
                "first": exact(one.first),
                "last": exact(one.last),
            }
            for one in reasons
        ],
        "events": [row for seq in shown for row in _rows(store, seq, by_seq[seq])],
        "next": exact(shown[-1]) if len(by_seq) > limit else None,
    }


def _rows(store: Store, seq: int, entries: list[QuarantineEntry]) -> list[dict[str, Any]]:
    kind, time = None, None
    if store.log.size(seq) <= _READ_BYTES and (row := store.log.event(seq)):
        (event,) = read([row])
        kind, time = timeline.type_and_time(row, event)
    return [
        {
            "seq": exact(seq),
            "id": _name(one.id),
            "key": _name(one.key),
            "projection": one.projection,
            "reason": one.reason,
            "note": one.dismissed,
            "type": kind and short(kind),
            "time": exact(time),
        }
        for one in entries
    ]


def event(store: Store, request: Request) -> dict[str, Any]:
    seq = query.number(request, "seq", low=1)
    found = operations.show(store, seq)
    row = found.row
    data = row.data.encode("utf-8", "surrogateescape") if isinstance(row.data, str) else row.data
    decoded = found.decoded if isinstance(row.data, bytes) else row.data
    if isinstance(row.data, str):
        try:
            decoded = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            decoded = row.data
    at = str(seq)
    return {
        "seq": exact(seq),
        "id": _name(row.id),
        "key": _name(row.key),
        "created_at": plain(row.created_at, cut),
        "reasons": found.reasons,
        "note": found.note,
        "event": _bounded(decoded),
        "text": _text(row, decoded, found.fault),
        "fault": found.fault,
        "detail": found.detail,
        "hex": data[:HEX_BYTES].hex() if isinstance(data, bytes) else "",
        "bytes": len(data) if isinstance(data, bytes) else 0,
        "commands": {
            "check": naming(store.name, "`projector event check FILE`")[1:-1],
            "resubmit": naming(store.name, f"`projector quarantine resubmit {at}`")[1:-1],
            "dismiss": naming(store.name, f"`projector quarantine dismiss {at} --note WHY`")[1:-1],
        },
    }


def check(store: Store, asked: Check) -> dict[str, Any]:
    """Why an event would not fold into each projection, as it is or otherwise; None: it would."""
    found = operations.show(store, asked.seq)
    row = found.row
    if asked.event is not None:
        data = event_check.as_data(_given(asked.event) or b"")
        key = event_check.stated_key(data)
        row = LogRow(0, "checked", row.key if key is None else key, data, now_ms())
    more = detail(row.data)
    verdicts = event_check.verdicts(store, row, registry.known())
    return {
        "verdicts": {
            name: f"{why}; {more}" if why and more else why for name, why in verdicts.items()
        }
    }


def resubmit(store: Store, asked: Resubmit) -> dict[str, Any]:
    if (asked.seqs is None) == (asked.seq is None) or (asked.seqs and asked.event is not None):
        raise UsageError("give seqs, or seq and event", "correct the request")
    done: dict[str, Any] = {}
    failed: dict[str, dict[str, str]] = {}
    for seq in asked.seqs or [asked.seq or 0]:
        try:
            done[str(seq)] = exact(operations.resubmit(store, seq, _given(asked.event)))
        except CheckFailed as error:
            if asked.seqs is None:
                raise
            failed[str(seq)] = {"error": str(error), "hint": naming(store.name, error.hint)}
    return {"seqs": done, "failed": failed}


def dismiss(store: Store, asked: Dismiss) -> dict[str, Any]:
    if not asked.note.strip():
        raise UsageError("the note is empty", "say why the event may stay")
    for seq in asked.seqs:
        operations.dismiss(store, seq, asked.note)
    return {"dismissed": len(asked.seqs)}


ACTIONS: Final[dict[str, tuple[type[Any], Callable[[Store, Any], dict[str, Any]]]]] = {
    "check": (Check, check),
    "resubmit": (Resubmit, resubmit),
    "dismiss": (Dismiss, dismiss),
}


def asked_for(kind: type[Any], data: bytes) -> Any:
    """The body of a request; raises `UsageError`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UsageError(f"the request is not what it must be: {error}", "correct it") from None


def _given(value: Any) -> bytes | None:
    """An event as the request has it: a whole one in JSON, or the text of one."""
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _name(value: Any) -> Any:
    """An id or key, whatever it is; of one that is too long for an event the beginning."""
    return plain(beginning(value), exact)


def _text(row: LogRow, decoded: Any, fault: str | None) -> str | None:
    """The whole event as JSON, to be corrected; None where that would lose something, or is long.
    `event` is to look at: what is cut or wrapped in it must not come back."""
    text = row.data if isinstance(row.data, str) else None
    if isinstance(row.data, bytes) and fault is None:
        try:
            encoded = msgspec.json.encode(decoded)
            text = encoded.decode() if msgspec.json.decode(encoded) == decoded else None
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            text = None  # binary, an extension type, a key that is no text
    return text if text is not None and len(text) <= MESSAGE_BYTES else None


def _bounded(value: Any) -> Any:
    """A value of which each text is cut, and all of it where it is still large."""
    found = plain(value, cut)
    data = to_json(found)
    return found if len(data) <= _READ_BYTES else cut(data.decode())
