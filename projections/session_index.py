"""The table `session_index`: what a list or a board needs of a session, one small row each."""

import re
from typing import Any, Final

import msgspec

from projections.event import Event, Messages, MessagesAppended, SessionCreated, SessionUpdated
from projections.projection import Damaged, PerSession, Table

TITLE_LENGTH: Final = 80
"""Characters, the ellipsis included."""
# Not `str.split`, whose idea of white space moves with Unicode and so with Python.
_WHITE_SPACE: Final = re.compile("[ \t\n\r\f\v]+")


class Entry(msgspec.Struct, frozen=True):
    """A row, column by column; times in milliseconds.

    `title` is the text of the first user message in one line, None before there is one.
    """

    session_id: str
    project: str
    status: str
    title: str | None
    message_count: int
    last_role: str | None
    created_at: int
    updated_at: int
    last_event_id: str
    last_seq: int


class SessionIndex(PerSession):
    """Folds every event of a session into a few plain columns."""

    name = "session_index"
    version = 1
    trusted = True
    table = Table(
        name="session_index",
        columns={
            "session_id": "TEXT",
            "project": "TEXT",
            "status": "TEXT",
            "title": "TEXT",
            "message_count": "INTEGER",
            "last_role": "TEXT",
            "created_at": "INTEGER",
            "updated_at": "INTEGER",
            "last_event_id": "TEXT",
            "last_seq": "INTEGER",
        },
        key="session_id",
        indexes=("last_seq", "project, status", "status", "created_at"),
    )

    def created(self, event: Event, body: SessionCreated) -> Entry:
        empty = Entry(
            session_id=event.session_id,
            project=body.project,
            status=body.status,
            title=None,
            message_count=0,
            last_role=None,
            created_at=body.created_at,
            updated_at=event.time,
            last_event_id=event.id,
            last_seq=event.seq,
        )
        return _with_messages(empty, body.messages)

    def changed(self, view: Entry, event: Event) -> Entry:
        view = msgspec.structs.replace(
            view, updated_at=event.time, last_event_id=event.id, last_seq=event.seq
        )
        match event.body:
            case MessagesAppended(added):
                return _with_messages(view, added)
            case SessionUpdated() as body:
                return _updated(view, body)
        raise AssertionError(f"{event.type} changes no session")

    def to_row(self, view: Entry) -> tuple[Any, ...]:
        return msgspec.structs.astuple(view)

    def from_row(self, row: tuple[Any, ...]) -> Entry:
        try:
            return msgspec.convert(dict(zip(self.table.columns, row, strict=True)), Entry)
        except msgspec.ValidationError as error:
            raise Damaged(str(error)) from None


def _updated(view: Entry, body: SessionUpdated) -> Entry:
    view = msgspec.structs.replace(
        view,
        project=view.project if body.project is None else body.project,
        status=view.status if body.status is None else body.status,
    )
    if body.messages is None:
        return view
    empty = msgspec.structs.replace(view, title=None, message_count=0, last_role=None)
    return _with_messages(empty, body.messages)


def _with_messages(view: Entry, added: Messages) -> Entry:
    if not added.values:
        return view
    title = view.title
    if title is None:
        users = (message for message in added.values if message.get("role") == "user")
        title = next((_title(message) for message in users), None)
    role = added.values[-1].get("role")
    return msgspec.structs.replace(
        view,
        title=title,
        message_count=view.message_count + added.count,
        last_role=role if isinstance(role, str) else None,
    )


def _title(message: dict[Any, Any]) -> str:
    """What a user's message says, in one line; '' where it says nothing in words."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = (
        part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"
    )
    text = next((text for text in texts if isinstance(text, str)), "")
    line = _WHITE_SPACE.sub(" ", text).strip(" ")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
