"""Views and events in; changed views, quarantined events and a count of the skipped out."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from projections.event import Event, LogRow, Unfoldable, decode, is_utf8
from projections.projection import Damaged, Projection

FAULT: Final = "a fault in the code of the projection: "


class Rejected(msgspec.Struct, frozen=True):
    """An event that goes to quarantine, and why."""

    seq: int
    reason: str


class Folded(msgspec.Struct, frozen=True):
    """What a run of events did to a projection."""

    views: dict[str, Any]
    quarantined: list[Rejected]
    skipped: int


def read(rows: Iterable[LogRow]) -> list[Event | Rejected]:
    """Every row decoded once, for all projections."""
    return [_read(row) for row in rows]


def fold(
    projection: Projection, views: Mapping[str, Any | None], events: Iterable[Event | Rejected]
) -> Folded:
    """Fold events, in log order, onto the views that stand; only changed views come back."""
    changed: dict[str, Any] = {}
    quarantined: list[Rejected] = []
    skipped = 0
    for event in events:
        if isinstance(event, Rejected):
            quarantined.append(event)
            continue
        try:
            key = projection.key_of(event)
            if key is None:
                skipped += 1
            else:
                changed[key] = projection.fold(changed.get(key, views.get(key)), event)
        except Exception as error:
            quarantined.append(Rejected(event.seq, _reason(error)))
    return Folded(changed, quarantined, skipped)


def _read(row: LogRow) -> Event | Rejected:
    try:
        return decode(row)
    except Exception as error:
        return Rejected(row.seq, _reason(error))


def restore(projection: Projection, row: tuple[Any, ...]) -> Any:
    """The view that a row keeps; raises `Damaged`, also where the projection fails on it."""
    if not all(is_utf8(value) for value in row if isinstance(value, str)):
        raise Damaged("a text in it is not UTF-8")
    try:
        return projection.from_row(row)
    except (Damaged, MemoryError):
        raise
    except Exception as error:
        raise Damaged(f"{type(error).__name__} when it was read") from error


def key_of(projection: Projection, event: Event | Rejected) -> str | None:
    """The view to have at hand for an event; none where the projection fails to say."""
    if isinstance(event, Rejected):
        return None
    try:
        return projection.key_of(event)
    except Exception as error:
        _reason(error)
        return None


def _reason(error: Exception) -> str:
    """Why an event goes to quarantine. A fault in the code is no reason to stop the feed either;
    only a lack of memory is, because it says nothing of the event."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, Unfoldable):
        return str(error)
    return f"{FAULT}{type(error).__name__}"
