"""Whether an event would fold, seen before it is written."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from session_projector.projections.event import Event, LogRow
from session_projector.projections.fold import Rejected, fold, key_of, read
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.rows import restore
from session_projector.projections.session_index import SessionIndex
from session_projector.worker.errors import ProjectorError
from session_projector.worker.sessions.timeline import SESSIONS, folded
from session_projector.worker.storage.sqlite.client import Client


def verdicts(
    client: Client | None, row: LogRow, projections: Iterable[Projection]
) -> dict[str, str | None]:
    """By name, for each projection that an event concerns: why it would not fold, or None.

    Without a client the event alone is looked at, not what it would be folded onto. The index goes
    with the session view.
    """
    (event,) = read([row], projections)
    return dict(_verdicts(client, event, projections))


def _verdicts(
    client: Client | None, event: Event | Rejected, projections: Iterable[Projection]
) -> Iterator[tuple[str, str | None]]:
    for projection in projections:
        if isinstance(event, Rejected):
            if event.type is None or event.type in projection.events:
                yield projection.name, event.reason
            continue
        key = key_of(projection, event)
        if key is None or isinstance(projection, SessionIndex):
            continue
        reason = None
        if client is not None:
            view = _standing(client, projection, event, key)
            rejected = fold(projection, {key: view}, [event]).quarantined
            reason = rejected[0].reason if rejected else None
        yield projection.name, reason


def _standing(client: Client, projection: Projection, event: Event, key: str) -> Any | None:
    """The view that an event is about: of a session as the log has it, of others as it stands."""
    if projection.name == SESSIONS.name:
        return folded(client, event.session_id)
    table = projection.table
    with suppress(ProjectorError, CorruptRow):  # where it never ran there is no table
        for row in client.rows(
            f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {table.key} = ?", (key,)
        ):
            return restore(projection, row)
    return None
