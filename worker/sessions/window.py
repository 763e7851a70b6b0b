"""A few messages of a session that may have many: only those are decoded."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from session_projector.projections.event import (
    PREFIX,
    Event,
    LogRow,
    Messages,
    MessagesAppended,
    is_name,
    keys_of,
)
from session_projector.projections.fold import fold, read
from session_projector.projections.messagepack import decode_exact, items, list_header
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.projections.scanner import FAILURES, Malformed
from session_projector.worker.sessions.read import not_ours
from session_projector.worker.sessions.timeline import SESSIONS, no_session
from session_projector.worker.storage.port import Store, size_of


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


class Brought(msgspec.Struct, frozen=True):
    """A message of a session, the `n`th from 1, as an event brought it; `time` is the event's, in
    milliseconds."""

    n: int
    time: int
    data: bytes


_decode: Final = msgspec.msgpack.Decoder(View).decode
_MOST_EVENTS: Final = 1000
MOST_BACK: Final = 20_000
"""So many events back from the newest one of a session is looked for what brought a message."""
_MOST_BYTES_BACK: Final = 64 * 1024 * 1024
"""The same in their bytes, and a page."""
_BESIDES: Final = 100
"""So many events at a time are read besides those that bring the messages, if each brings one."""


def opened(data: bytes) -> View:
    """The session that a row of `view` has in its column `data`."""
    return _decode(data)


def stored(store: Store, session_id: str) -> tuple[View, int]:
    """The view of a session, with the events that it is behind, if any, and the position of the
    last one in it, 0 where that cannot be told; raises `CheckFailed` if there is none."""
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
        last = store.log.position_of(row[3]) if is_name(row[3]) else None
        return opened(row[2]), last or 0
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


def grown(
    store: Store, session_id: str, *, after: int, until: int, total: int
) -> list[Brought] | None:
    """The messages that the events of a session after a position, up to another, added at its end,
    where it has `total` by then; None where they changed others too, or are very many."""
    added: list[tuple[int, bytes]] = []
    seen = 0
    while rows := store.log.of(keys_of(session_id), after=after, until=until):
        after, seen = rows[-1].seq, seen + len(rows)
        for event, messages in _events(_folded(store, rows)):
            if not isinstance(event.body, MessagesAppended):
                return None
            added += ((event.time, data) for data in _split(messages))
        if seen > _MOST_EVENTS:
            return None
    first = total - len(added) + 1
    return [Brought(n, *one) for n, one in enumerate(added, first)] if first > 0 else None


def brought(
    store: Store, session_id: str, wanted: range, *, total: int, until: int
) -> list[Brought]:
    """Some messages of a session by their numbers, the last one first, as its events up to a
    position brought them, which left it with `total`. Those of events that are very far back are
    left out: what it costs grows with how far the first one is from the end."""
    found: list[Brought] = []
    keys, seen, size = keys_of(session_id), 0, 0
    while (
        (wanted and total >= wanted.start)
        and (seen < MOST_BACK and size < _MOST_BYTES_BACK)
        and (rows := store.log.latest(keys, until=until, events=total - wanted.start + _BESIDES))
    ):
        until, seen = rows[-1].seq - 1, seen + len(rows)
        size += sum(size_of((row.data,)) for row in rows)
        for row in _folded(store, rows):
            added = _appended(row)
            if added and total - added + 1 >= wanted.stop:
                total -= added  # without reading what they say
                continue
            for event, messages in _events([row]):
                first = total - messages.count + 1
                numbered = reversed([*enumerate(_split(messages), first)])
                found += [Brought(n, event.time, data) for n, data in numbered if n in wanted]
                total = first - 1
            if total < wanted.start:  # as where all were replaced
                return found
    return found


class _Said(msgspec.Struct):
    messages: list[msgspec.Raw]


class _Appended(msgspec.Struct, tag="session_append"):
    """As much of an event as counts its messages, which takes a tenth of reading it."""

    data: _Said


_as_json: Final = msgspec.json.Decoder(_Appended).decode
_as_msgpack: Final = msgspec.msgpack.Decoder(_Appended).decode


def _appended(row: LogRow) -> int:
    """How many messages an event that was folded appended, 0 where it may be another one."""
    try:
        found = _as_json(row.data) if isinstance(row.data, str) else _as_msgpack(row.data)
    except FAILURES:
        return 0
    return len(found.data.messages)


def _folded(store: Store, rows: Sequence[LogRow]) -> list[LogRow]:
    refused = store.quarantine.reasons(SESSIONS.name, [row.seq for row in rows])
    return [row for row in rows if row.seq not in refused]


def _events(rows: Sequence[LogRow]) -> Iterator[tuple[Event, Messages]]:
    """Those of some events that have messages."""
    for event in read(rows):
        if isinstance(event, Event):
            messages = getattr(event.body, "messages", None)
            if messages is not None:
                yield event, messages


def _split(messages: Messages) -> list[bytes]:
    return [*map(bytes, items(list_header(messages.count) + messages.body))]
