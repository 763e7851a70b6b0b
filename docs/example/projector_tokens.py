"""The tokens that each project used each day, from events of a type of one's own.

An agent writes, after each call of its model, under the key of its session:

    {"type": "tokens_used", "data": {"project": "web", "input": 1200, "output": 350}}
"""

from datetime import UTC, datetime
from typing import Any

from session_projector import Event, Other, Projection, Table, Unfoldable


class TokensPerDay(Projection[tuple[Any, ...]]):
    """One row for each project and day (UTC) on which it used any."""

    name = "tokens_per_day"
    version = 1
    events = frozenset({"tokens_used"})
    table = Table(
        name="tokens_per_day",
        columns={
            "id": "TEXT",
            "day": "TEXT",
            "project": "TEXT",
            "input": "INTEGER",
            "output": "INTEGER",
        },
        key="id",
        indexes=("day",),
    )

    def key_of(self, event: Event) -> str | None:
        return f"{_day(event)}/{_data(event, 'project', str)}"

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        key, day, project = self.key_of(event), _day(event), _data(event, "project", str)
        *_, read, written = view or (key, day, project, 0, 0)
        read += _data(event, "input", int)
        written += _data(event, "output", int)
        return (key, day, project, read, written)


def _day(event: Event) -> str:
    return datetime.fromtimestamp(event.time // 1000, UTC).date().isoformat()


def _data(event: Event, name: str, kind: type) -> Any:
    """A field of the event; what it lacks or has wrong is the reason in the quarantine."""
    assert isinstance(event.body, Other)
    value = event.body.data.get(name)
    if type(value) is not kind:
        raise Unfoldable(f"{name} is missing or not of type {kind.__name__}")
    return value
