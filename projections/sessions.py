"""The `session:<id>` rows of `view`: one whole session each."""

from collections.abc import Sequence
from math import inf
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from session_projector.projections.event import (
    PREFIX,
    Event,
    Messages,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
    Unfoldable,
)
from session_projector.projections.messagepack import check, list_header, other_than_map, split_list
from session_projector.projections.projection import CorruptRow, PerSession, Table
from session_projector.projections.scanner import Malformed

MAX_VIEW_BYTES: Final = 256 * 1024 * 1024
"""The largest `view.data` that a fold may make."""
MOST_CHUNKS: Final = 32
"""The most chunks of a cached view; more are joined, which copies all of them."""

_Chunks = tuple["_Chunks", bytes] | None
"""Encoded messages, newest chunk outermost: adding one copies nothing and shares the rest."""


class Session(msgspec.Struct, frozen=True):
    """A session after some of its events; times in milliseconds."""

    id: str
    project: str
    status: str
    created_at: int
    updated_at: int
    last_event_id: str
    count: int
    body_bytes: int
    chunks: _Chunks


class Sessions(PerSession[Session]):
    """Folds every event of a session into its row."""

    name = "sessions"
    version = 2
    built_in = True
    table = Table(
        name="view",
        columns={
            "id": "TEXT",
            "key": "TEXT",
            "data": "BLOB",
            "last_offset_id": "TEXT",
            "created_at": "INTEGER",
            "updated_at": "INTEGER",
        },
        key="key",
        prefix=PREFIX,
    )

    def created(self, event: Event, body: SessionCreated) -> Session:
        session = Session(
            id=event.session_id,
            project=body.project,
            status=body.status,
            created_at=body.created_at,
            updated_at=event.time,
            last_event_id=event.id,
            count=body.messages.count,
            body_bytes=len(body.messages.body),
            chunks=(None, body.messages.body),
        )
        return _within_limit(session)

    def changed(self, view: Session, event: Event) -> Session:
        body = event.body
        if isinstance(body, MessagesAppended):
            return self.appended(view, event, [body.messages])
        if isinstance(body, SessionUpdated):
            return _within_limit(_updated(view, event, body))
        raise AssertionError(f"{event.type} changes no session")

    def appended(self, view: Session, last: Event, added: Sequence[Messages]) -> Session:
        body = b"".join([messages.body for messages in added])
        return _within_limit(
            replace(
                view,
                updated_at=last.time,
                last_event_id=last.id,
                count=view.count + sum([messages.count for messages in added]),
                body_bytes=view.body_bytes + len(body),
                chunks=(view.chunks, body),
            )
        )

    def settled(self, view: Session) -> Session:
        parts = _parts(view.chunks)
        if len(parts) <= MOST_CHUNKS:
            return view
        return replace(view, chunks=(None, b"".join(parts)))

    def to_row(self, view: Session) -> tuple[Any, ...]:
        key = PREFIX + view.id
        # As `_Data` is encoded, and the messages copied once only.
        data = b"".join(
            (
                *(_MAP, _NAMES[0], _encode(view.id), _NAMES[1], _encode(view.project)),
                *(_NAMES[2], list_header(view.count), *_parts(view.chunks)),
                *(_NAMES[3], _encode(view.status), _NAMES[4], _encode(view.created_at)),
                *(_NAMES[5], _encode(view.updated_at)),
            )
        )
        return (key, key, data, view.last_event_id, view.created_at, view.updated_at)

    def from_row(self, row: tuple[Any, ...]) -> Session:
        data, last_event_id = row[2:4]
        try:
            fields = _decode(data)
            count, body = split_list(fields.messages)
            # Every byte, as they are built upon without being looked at again.
            check(bytes(fields.messages), most=inf)
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError, Malformed) as error:
            raise CorruptRow(f"data is not a session: {error}") from None
        if other_than_map(fields.messages):
            raise CorruptRow("a message is not a map")
        session = Session(
            id=fields.id,
            project=fields.project,
            status=fields.status,
            created_at=fields.createdAt,
            updated_at=fields.updatedAt,
            last_event_id=last_event_id,
            count=count,
            body_bytes=len(body),
            chunks=(None, body),
        )
        if not isinstance(last_event_id, str) or self.to_row(session) != row:
            raise CorruptRow("its columns disagree with its data")
        return session


class _Data(msgspec.Struct, frozen=True):
    """`view.data`, its fields in the order of the contract."""

    id: str
    project: str
    messages: msgspec.Raw
    status: str
    createdAt: int  # noqa: N815
    updatedAt: int  # noqa: N815


_decode = msgspec.msgpack.Decoder(_Data).decode
_encode = msgspec.msgpack.Encoder().encode
_MAP: Final = bytes([0x80 | len(_Data.__struct_fields__)])
_NAMES: Final = tuple(map(_encode, _Data.__struct_fields__))


def _updated(view: Session, event: Event, body: SessionUpdated) -> Session:
    if body.messages is not None:
        count, encoded = body.messages.count, body.messages.body
        view = replace(view, count=count, body_bytes=len(encoded), chunks=(None, encoded))
    return replace(
        view,
        project=view.project if body.project is None else body.project,
        status=view.status if body.status is None else body.status,
        updated_at=event.time,
        last_event_id=event.id,
    )


def _within_limit(view: Session) -> Session:
    texts = len(view.id) + len(view.project) + len(view.status)
    if view.body_bytes + 4 * texts + 128 > MAX_VIEW_BYTES:
        empty = replace(view, count=0, body_bytes=0, chunks=None)
        rest = len(Sessions().to_row(empty)[2]) - 1 + len(list_header(view.count))
        if rest + view.body_bytes > MAX_VIEW_BYTES:
            raise Unfoldable(f"the view would be larger than {MAX_VIEW_BYTES} bytes")
    return view


def _parts(chunks: _Chunks) -> list[bytes]:
    """The oldest first."""
    parts: list[bytes] = []
    while chunks is not None:
        chunks, part = chunks
        parts.append(part)
    parts.reverse()
    return parts
