"""The past of one session: its view at a point, what changed, and which event set what."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from session_projector.projections.event import (
    Body,
    Event,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
)
from session_projector.projections.messagepack import decode_exact, fields, items
from session_projector.worker.clock import EPOCH, when
from session_projector.worker.errors import CheckFailed, UsageError
from session_projector.worker.sessions.timeline import SESSIONS, Moment, moments
from session_projector.worker.storage.port import ANY_POSITION, Store

_SESSION_BODIES: Final = (SessionCreated, MessagesAppended, SessionUpdated)
_FIELDS: Final = ("id", "project", "messages", "status", "createdAt", "updatedAt")
# `datetime.fromisoformat` takes any character between date and time, were it the sign of an offset.
_ISO_8601: Final = re.compile(
    r"(\d{4}-\d\d-\d\d|\d{8}|\d{4}-?W\d\d(-?\d)?)([Tt ][\d:.,]+([Zz]|[+-][\d:.]+)?)?", re.ASCII
)


class Point(msgspec.Struct, frozen=True):
    """A point in a session's past: a position in the log, or a time in milliseconds."""

    value: int
    is_time: bool

    def covers(self, event: Event) -> bool:
        return (event.time if self.is_time else event.seq) <= self.value


class Changes(msgspec.Struct, frozen=True):
    """What changed in a session between two points.

    `began` is the position of the session's first event. `start` and `end` are the positions of
    the last event folded at each point, None before the session began. `messages` has the keys
    added, removed and changed.
    """

    session: str
    began: int
    start: int | None
    end: int | None
    fields: list[dict[str, Any]]
    messages: dict[str, list[dict[str, Any]]]


class Origin(msgspec.Struct, frozen=True):
    """The event that set a field or added a message; `time` is in milliseconds."""

    seq: int
    time: int
    type: str
    id: str


class Origins(msgspec.Struct, frozen=True):
    """Which events a view comes from.

    `fields` has each field's name, its value (for `messages`, their number) and the event that last
    set it. `messages` has runs of them: first number, last number, and the event that added them.
    """

    fields: list[tuple[str, Any, Origin]]
    messages: list[tuple[int, int, Origin]]


def time_ms(text: str | None) -> int | None:
    """Parse an ISO 8601 time, in milliseconds; raises `UsageError`."""
    if text is None:
        return None
    with suppress(UsageError):
        if (found := point(text)).is_time:
            return found.value
    raise UsageError(f"{text} is no time", "give one such as 2025-06-01 or 2025-06-01T12:00")


def point(text: str) -> Point:
    """Parse a position or an ISO 8601 time; raises `UsageError`."""
    if text.isascii() and text.isdigit():
        if len(text) <= len(str(ANY_POSITION)) and int(text) <= ANY_POSITION:
            return Point(int(text), is_time=False)
    elif _ISO_8601.fullmatch(text):
        try:
            time = datetime.fromisoformat(text)
            since_epoch = (time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH
            return Point(since_epoch // timedelta(milliseconds=1), is_time=True)
        except ValueError:
            pass
    raise UsageError(
        f"{text} is neither a position in the log nor a time",
        "give a seq such as 1041, or an ISO 8601 time such as 2026-03-01T12:00:00Z",
    )


def view_at(store: Store, session_id: str, at: Point) -> dict[str, Any]:
    """The view of a session at a point; raises `CheckFailed` if it had not begun."""
    (moment,) = moments_at(store, session_id, [at])
    assert moment is not None
    view: dict[str, Any] = decode_exact(data_of(moment))
    return view


def moments_at(store: Store, session_id: str, points: Sequence[Point]) -> list[Moment | None]:
    """A session at some points, None where it had not begun; raises `CheckFailed` if it had not at
    any."""
    begin, found = _at(store, session_id, points)
    if not any(found):
        raise _not_begun(session_id, begin)
    return found


def data_of(moment: Moment) -> bytes:
    """The view after an event as `view.data` has it."""
    data: bytes = SESSIONS.to_row(moment.view)[2]
    return data


def diff(store: Store, session_id: str, start: Point, end: Point) -> Changes:
    """What changed between two points; raises `CheckFailed` if the session began after both."""
    begin, (before, after) = _at(store, session_id, [start, end])
    if before is None and after is None:
        raise _not_begun(session_id, begin)
    one, other = _plain_fields(before), _plain_fields(after)
    return Changes(
        session=session_id,
        began=begin.seq,
        start=before.event.seq if before else None,
        end=after.event.seq if after else None,
        fields=[
            {"field": name, "before": one.get(name), "after": other.get(name)}
            for name in one | other
            if one.get(name) != other.get(name)
        ],
        messages=_changed_messages(_messages(before), _messages(after)),
    )


def why(store: Store, session_id: str) -> Origins:
    """The events that a session's view comes from; raises `CheckFailed` if none can be folded."""
    origins: dict[str, Origin] = {}
    runs: list[tuple[int, int, Origin]] = []
    values: dict[str, Any] = {}
    for moment in moments(store, session_id):
        event, body = moment.event, moment.event.body
        origin = Origin(event.seq, event.time, event.type, event.id)
        origins |= dict.fromkeys(_set_by(body), origin)
        if isinstance(body, _SESSION_BODIES) and body.messages is not None:
            if not isinstance(body, MessagesAppended):
                runs = []
            before = runs[-1][1] if runs else 0
            if body.messages.count:
                runs.append((before + 1, before + body.messages.count, origin))
        values = {"id": session_id, "messages": moment.view.count, **_plain_fields(moment)}
    return Origins([(name, values[name], origins[name]) for name in _FIELDS], runs)


def _at(
    store: Store, session_id: str, points: Sequence[Point]
) -> tuple[Event, list[Moment | None]]:
    """The event that begins a session, and for each point the last moment up to it."""
    begin: Event | None = None
    found: list[Moment | None] = [None] * len(points)
    for moment in moments(store, session_id):
        begin = begin or moment.event
        found = [
            moment if at.covers(moment.event) else last
            for at, last in zip(points, found, strict=True)
        ]
        if all(not at.is_time and at.value <= moment.event.seq for at in points):
            break
    assert begin is not None
    return begin, found


def _not_begun(session_id: str, begin: Event) -> CheckFailed:
    return CheckFailed(
        f"session {session_id} begins after that, at seq {begin.seq} ({when(begin.time)})",
        "give that seq, or a later one",
    )


def _plain_fields(moment: Moment | None) -> dict[str, Any]:
    if moment is None:
        return {}
    view = moment.view
    return {
        "project": view.project,
        "status": view.status,
        "createdAt": view.created_at,
        "updatedAt": view.updated_at,
    }


def _messages(moment: Moment | None) -> list[bytes]:
    """The encoded messages."""
    if moment is None:
        return []
    (messages,) = fields(SESSIONS.to_row(moment.view)[2], ("messages",))
    return [bytes(message) for message in items(messages or b"\x90")]


def _changed_messages(before: list[bytes], after: list[bytes]) -> dict[str, list[dict[str, Any]]]:
    common = min(len(before), len(after))
    return {
        "added": _numbered(after, common),
        "removed": _numbered(before, common),
        "changed": [
            {"number": number, "before": decode_exact(one), "after": decode_exact(other)}
            for number, (one, other) in enumerate(zip(before, after, strict=False), 1)
            if one != other
        ],
    }


def _numbered(messages: list[bytes], start: int) -> list[dict[str, Any]]:
    return [
        {"number": number, "message": decode_exact(message)}
        for number, message in enumerate(messages[start:], start + 1)
    ]


def _set_by(body: Body | None) -> tuple[str, ...]:
    """The fields that an event sets, even to the value they already have."""
    match body:
        case SessionCreated():
            return _FIELDS
        case MessagesAppended():
            return "messages", "updatedAt"
    optional = ("messages", "status", "project")
    return (*(name for name in optional if getattr(body, name) is not None), "updatedAt")
