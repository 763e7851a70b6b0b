"""Projections beside the built-in ones, for the curve over how many there are."""

from typing import Any

from session_projector.projections.event import Event, MessagesAppended
from session_projector.projections.projection import PerSession, Table


class Counted(PerSession):
    """How many messages a session has, as a projection of one's own would count them."""

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
    """The same, once more."""

    name = "counted_too"
    table = Table(name="counted_too", columns=Counted.table.columns, key="session_id")
