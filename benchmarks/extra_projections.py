"""Projections in addition to the built-in ones, for the curve over the number of projections."""

from typing import Any

from session_projector.projections.event import Event, MessagesAppended
from session_projector.projections.projection import PerSession, Table


class Counted(PerSession):
    """The number of messages in a session, counted as a user's own projection would."""

    name = "counted"
    version = 1
    table = Table(
        name="counted",
        columns={"session_id": "TEXT", "messages": "INTEGER", "updated_at": "INTEGER"},
        key="session_id",
    )

    def created(self, event: Event, body: Any) -> tuple[Any, ...]:
        return event.session_id, body.messages.count, event.time

    def changed(self, view: Any, event: Event) -> tuple[Any, ...]:
        added = event.body.messages.count if isinstance(event.body, MessagesAppended) else 0
        return event.session_id, view[1] + added, event.time


class CountedToo(Counted):
    """The same projection as `Counted`, under another name."""

    name = "counted_too"
    table = Table(name="counted_too", columns=Counted.table.columns, key="session_id")
