"""A few messages of a session that may have many: only those are decoded."""

from typing import Any, Final

import msgspec

from session_projector.projections.event import (
    PREFIX,
    Event,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
    keys_of,
)
from session_projector.projections.fold import fold, read
from session_projector.projections.messagepack import decode_exact, items, list_header
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.projections.scanner import Malformed
from session_projector.worker.sessions.read import not_ours
from session_projector.worker.sessions.timeline import SESSIONS, no_session
from session_projector.worker.storage.port import Store


class View(msgspec.Struct, frozen=True):
    """A session, its messages not decoded yet; times in milliseconds."""

    id: str
    project: str
    messages: list[msgspec.Raw]
    status: str
    createdAt: int  # noqa: N815
    updatedAt: int  # noqa: N815

    @property
    def fields(self) -> dict[str, Any]:
        """All but the messages."""
        return {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if name != "messages"
        }


_decode: Final = msgspec.msgpack.Decoder(View).decode
_MOST_EVENTS: Final = 1000


def opened(data: bytes) -> View:
    """The session that a row of `view` has in its column `data`."""
    return _decode(data)


def stored(store: Store, session_id: str) -> View:
    """The view of a session, with the events that it is behind, if any; raises `CheckFailed` if
    there is none."""
    key = PREFIX + session_id
    row = store.views.row(SESSIONS, key)
    if row is None:
        raise no_session(store, session_id)
    try:
        checkpoint = store.checkpoints.get(SESSIONS.name)
        if checkpoint and (behind := checkpoint.deferred.get(key)):
            view, after = restore(SESSIONS, row), behind.position
            while rows := store.log.of(keys_of(session_id), after=after, until=checkpoint.position):
                after = rows[-1].seq
                view = fold(SESSIONS, {key: view}, read(rows)).views.get(key, view)
            row = SESSIONS.to_row(view)
        return opened(row[2])
    except (CorruptRow, msgspec.MsgspecError, TypeError):
        raise not_ours(store, session_id) from None


def message(store: Store, session_id: str, encoded: bytes | msgspec.Raw) -> dict[Any, Any]:
    """One message of a view."""
    try:
        found = decode_exact(bytes(encoded))
    except Malformed:
        found = None
    if not isinstance(found, dict):
        raise not_ours(store, session_id)
    return found


def grown(store: Store, session_id: str, *, after: int, until: int) -> list[bytes] | None:
    """The messages that the events of a session after a position, up to another, added at its end;
    None where they changed others too, or are very many."""
    added: list[bytes] = []
    seen = 0
    while rows := store.log.of(keys_of(session_id), after=after, until=until):
        after, seen = rows[-1].seq, seen + len(rows)
        refused = store.quarantine.reasons(SESSIONS.name, [row.seq for row in rows])
        for event in read([row for row in rows if row.seq not in refused]):
            body = event.body if isinstance(event, Event) else None
            match body:
                case MessagesAppended(messages=some):
                    added += map(bytes, items(list_header(some.count) + some.body))
                case SessionCreated() | SessionUpdated() if body.messages is not None:
                    return None
        if seen > _MOST_EVENTS:
            return None
    return added
