"""The table `session_index`: what a list or a board needs of a session, one small row each."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from session_projector.projections.event import (
    TEXT_PARTS,
    Event,
    Messages,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
)
from session_projector.projections.messagepack import fields, items, list_header, maps, scalar
from session_projector.projections.projection import CorruptRow, PerSession, Table
from session_projector.projections.scanner import FAILURES, is_list

TITLE_LENGTH: Final = 80
"""Characters, the ellipsis included."""
# Not `str.split`, whose idea of white space moves with Unicode and so with Python. A longer word
# comes in pieces, the first of which fills a title.
_WORD: Final = re.compile(rf"[^ \t\n\r\f\v]{{1,{TITLE_LENGTH + 1}}}")


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


class SessionIndex(PerSession[Entry]):
    """Folds every event of a session into a few plain columns."""

    name = "session_index"
    version = 3
    built_in = True
    followed = True
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
        return _changed(empty, event, [body.messages], body.project, body.status)

    def changed(self, view: Entry, event: Event) -> Entry:
        body = event.body
        if isinstance(body, MessagesAppended):
            return self.appended(view, event, [body.messages])
        if isinstance(body, SessionUpdated):
            if body.messages is not None:
                view = msgspec.structs.replace(view, title=None, message_count=0, last_role=None)
            project = view.project if body.project is None else body.project
            status = view.status if body.status is None else body.status
            added = [body.messages] if body.messages else []
            return _changed(view, event, added, project, status)
        raise AssertionError(f"{event.type} changes no session")

    def appended(self, view: Entry, last: Event, added: Sequence[Messages]) -> Entry:
        return _changed(view, last, added, view.project, view.status)

    def to_row(self, view: Entry) -> tuple[Any, ...]:
        return msgspec.structs.astuple(view)

    def from_row(self, row: tuple[Any, ...]) -> Entry:
        try:
            return msgspec.convert(dict(zip(self.table.columns, row, strict=True)), Entry)
        except msgspec.ValidationError as error:
            raise CorruptRow(str(error)) from None


def _changed(
    view: Entry, event: Event, added: Sequence[Messages], project: str, status: str
) -> Entry:
    """The row after some messages; status and times are those of `event`, the last one."""
    title, count, last_role = view.title, view.message_count, view.last_role
    last, role = None, None
    for messages in added:
        if messages.count:
            count += messages.count
            last, role = messages, None
        if title is None and b"user" in messages.body:
            title, role = _first_title(messages)
    if last:
        last_role = _role(last) if role is None else _as_role(role)
    return msgspec.structs.replace(
        view,
        project=project,
        status=status,
        title=title,
        message_count=count,
        last_role=last_role,
        updated_at=event.time,
        last_event_id=event.id,
        last_seq=event.seq,
    )


def _first_title(added: Messages) -> tuple[str | None, bytes | None]:
    """The title, and the role of the last message if it was read for that, null if it has none."""
    role = None
    for index, message in enumerate(_said(added), 1):
        role, content, parts = fields(message, _SAID)
        if scalar(role) == "user":
            return _title(content, parts), role if index == added.count else None
    return None, role or b"\xc0"


class _Said(msgspec.Struct, gc=False):
    """What most messages have; nothing else of them is decoded."""

    role: str | None = None


_decode_said = msgspec.msgpack.Decoder(list[_Said]).decode


def _role(added: Messages) -> str | None:
    try:
        return _decode_said(list_header(added.count) + added.body)[-1].role
    except FAILURES:  # of keys that are not text, or a role that is none
        pass
    return _as_role(fields(_said(added)[-1], _SAID)[0])


def _as_role(encoded: bytes | None) -> str | None:
    role = scalar(encoded)
    return role if isinstance(role, str) else None


def _said(added: Messages) -> list[msgspec.Raw]:
    return items(list_header(added.count) + added.body)


_SAID: Final = ("role", "content", "parts")
_PART: Final = ("type", "text")


def _title(content: bytes | None, parts: bytes | None) -> str:
    """What a user's message says, in one line; '' where it says nothing in words. Gemini and the AI
    SDK call its content `parts`."""
    words = islice(_WORD.finditer(_text(content) or _text(parts)), TITLE_LENGTH + 1)
    line = " ".join(word[0] for word in words)
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"


def _text(content: bytes | None) -> str:
    """The content, or the first part of it that is text."""
    if content is None or not is_list(content[0]):
        text = scalar(content)
        return text if isinstance(text, str) else ""
    for part in maps(content):
        if b"text" not in part:
            continue  # it has no type of those
        kind, said = (scalar(value) for value in fields(part, _PART))
        if (kind is None or kind in TEXT_PARTS) and isinstance(said, str):
            return said
    return ""
