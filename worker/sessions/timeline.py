"""The timeline of one session: its events, and the view after each one that can be folded."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from session_projector.projections.decode import time_of
from session_projector.projections.event import (
    MAX_EVENT_BYTES,
    PREFIX,
    Event,
    LogRow,
    SessionUpdated,
    Unfoldable,
    is_utf8,
    keys_of,
)
from session_projector.projections.fold import Rejected, fold, read
from session_projector.projections.messagepack import decode, decode_partly
from session_projector.projections.scanner import Malformed
from session_projector.projections.search import MAX_WORDS, first_words
from session_projector.projections.sessions import Session, Sessions
from session_projector.worker.errors import CheckFailed, argument
from session_projector.worker.storage.port import ANY_POSITION, Store

SESSIONS: Final = Sessions()
_SEARCHED_BYTES: Final = 1024 * 1024
"""How much of an event that does not decode is searched for its type."""


class Moment(msgspec.Struct, frozen=True):
    """A folded event, and the view after it."""

    event: Event
    view: Session


class TimelineEntry(msgspec.Struct, frozen=True):
    """An event of a session; `id` is as stored.

    `type` and `time` (milliseconds) are None if they cannot be read. A quarantined event has a
    `reason`, a folded one has a `moment`, and one of another program's types has neither. `says` is
    the beginning of its first message, or its status, where a page has it.
    """

    seq: int
    id: Any
    size_bytes: int
    type: str | None
    time: int | None
    reason: str | None
    moment: Moment | None
    says: str = ""


def timeline(store: Store, session_id: str) -> Iterator[TimelineEntry]:
    """Yield a session's events in log order, up to the event that is newest when this starts."""
    key = PREFIX + session_id
    view: Session | None = None
    after, newest = 0, store.log.newest()
    while rows := store.log.of(keys_of(session_id), after=after, until=newest):
        after = rows[-1].seq
        for row in rows:
            (event,) = read([row])
            folded = fold(SESSIONS, {key: view}, [event])
            moment = None
            if key in folded.views and isinstance(event, Event):
                view = folded.views[key]
                moment = Moment(event, view)
            reason = folded.quarantined[0].reason if folded.quarantined else None
            yield TimelineEntry(
                row.seq, row.id, _size(store, row), *type_and_time(row, event), reason, moment
            )


def listing(store: Store, session_id: str) -> list[TimelineEntry]:
    """A session's events without their contents; raises `CheckFailed` if there are none."""
    found = [msgspec.structs.replace(entry, moment=None) for entry in timeline(store, session_id)]
    if not found:
        raise no_session(store, session_id)
    return found


def page(
    store: Store, session_id: str, *, after: int, limit: int
) -> tuple[list[TimelineEntry], bool]:
    """Some events of a session after a position, without their contents and with the reasons that
    the quarantine has, and whether there are more; raises `CheckFailed` if there are none at all.
    """
    keys = keys_of(session_id)
    found = store.log.of(keys, after=after, until=ANY_POSITION)
    if not found and not store.log.present(keys):
        raise no_session(store, session_id)
    rows = found[:limit]
    reasons = store.quarantine.reasons(SESSIONS.name, [row.seq for row in rows])
    entries = [
        TimelineEntry(
            row.seq,
            row.id,
            _size(store, row),
            *type_and_time(row, event),
            reasons.get(row.seq),
            None,
            _says(event) if isinstance(event, Event) else "",
        )
        for row, event in zip(rows, read(rows), strict=True)
    ]
    more = bool(found) and (
        len(found) > limit or bool(store.log.of(keys, after=found[-1].seq, until=ANY_POSITION))
    )
    return entries, more


def _says(event: Event) -> str:
    status = event.body.status if isinstance(event.body, SessionUpdated) else None
    return first_words(event) or " ".join((status or "").split())[:MAX_WORDS]


def moments(store: Store, session_id: str) -> Iterator[Moment]:
    """Yield each folded event and the view after it; raises `CheckFailed` if there is none."""
    known = begun = False
    for entry in timeline(store, session_id):
        known = True
        if entry.moment is not None:
            begun = True
            yield entry.moment
    if not known:
        raise no_session(store, session_id)
    if not begun:
        raise CheckFailed(
            f"none of the events of session {session_id} in {store.name} can be folded",
            f"see why: `projector session history {argument(session_id)}`",
        )


def folded(store: Store, session_id: str) -> Session | None:
    """The view after all events of a session, None if none can be folded."""
    view = None
    for entry in timeline(store, session_id):
        view = entry.moment.view if entry.moment else view
    return view


def exists(store: Store, session_id: str) -> bool:
    return any(entry.moment for entry in timeline(store, session_id))


def no_session(store: Store, session_id: str) -> CheckFailed:
    if is_utf8(session_id) and exists(store, session_id):
        return CheckFailed(
            f"session {session_id} is in the log but not yet folded into a view",
            "is a daemon running? `projector status`",
        )
    return CheckFailed(
        f"there is no session {session_id} in {store.name}",
        "list the sessions: `projector session list`",
    )


def _size(store: Store, row: LogRow) -> int:
    """The size of an event's data, which a page cuts at the limit."""
    data = row.data
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    if isinstance(data, bytes) and len(data) <= MAX_EVENT_BYTES:
        return len(data)
    return store.log.size(row.seq)


def type_and_time(row: LogRow, event: Event | Rejected) -> tuple[str | None, int | None]:
    """The type and time of an event, as folded or as far as it can be read."""
    if isinstance(event, Event) and event.body is not None:
        return event.type, event.time
    partial = _as_far_as_it_decodes(row.data, whole=isinstance(event, Event))
    kind = partial.get("type")
    return kind if isinstance(kind, str) else None, _time(partial, row.created_at)


def _time(partial: dict[Any, Any], created_at: Any) -> int | None:
    for stated in (partial, {}):
        try:
            return time_of(stated.get("timestamp"), created_at)
        except Unfoldable:
            continue
    return None


def _as_far_as_it_decodes(data: Any, *, whole: bool) -> dict[Any, Any]:
    """`whole`: it is an event within the limits; of others no more is built than is searched."""
    value: Any = None
    within = whole or (isinstance(data, str | bytes) and len(data) <= _SEARCHED_BYTES)
    try:
        if isinstance(data, str) and within:
            value = msgspec.json.decode(data)
        elif isinstance(data, bytes) and within:
            value = decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, Malformed):
        pass
    if value is None and isinstance(data, bytes):
        value, _fault = decode_partly(data[:_SEARCHED_BYTES])
        if isinstance(value, dict):  # the value in which decoding stopped is "…"
            value = {name: item for name, item in value.items() if item != "…"}
    return value if isinstance(value, dict) else {}
