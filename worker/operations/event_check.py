"""Whether an event would fold, checked before it is written."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Final

import msgspec

from session_projector.projections.event import PREFIX, Event, LogRow, session_of
from session_projector.projections.fold import Rejected, fold, key_of, read
from session_projector.projections.messagepack import decode_exact
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.rows import restore
from session_projector.projections.scanner import Malformed
from session_projector.projections.session_index import SessionIndex
from session_projector.worker import registry
from session_projector.worker.errors import CheckFailed, ProjectorError
from session_projector.worker.sessions.timeline import SESSIONS, folded
from session_projector.worker.storage.port import Database, Store


def verdicts(
    store: Store | None, row: LogRow, projections: Iterable[Projection]
) -> dict[str, str | None]:
    """For each projection that an event concerns, by name: why it would not fold, or None.

    Without a store only the event is checked, not the view that it would change. The session index
    is left out: the session view says the same.
    """
    (event,) = read([row], projections)
    found: dict[str, str | None] = {}
    for projection in projections:
        if isinstance(event, Rejected):
            if event.type is None or event.type in projection.events:
                found[projection.name] = event.reason
            continue
        key = key_of(projection, event)
        if key is None or isinstance(projection, SessionIndex):
            continue
        found[projection.name] = None
        if store is not None:
            view = _current_view(store, projection, event, key)
            for rejected in fold(projection, {key: view}, [event]).quarantined:
                found[projection.name] = rejected.reason
    return found


def _current_view(store: Store, projection: Projection, event: Event, key: str) -> Any | None:
    """The view that an event changes: a session's as folded from the log, others as stored."""
    if projection.name == SESSIONS.name:
        return folded(store, event.session_id)
    with suppress(ProjectorError, CorruptRow):  # without its table if it never ran
        if row := store.views.row(projection, key):
            return restore(projection, row)
    return None


def check(database: Database, data: bytes) -> str:
    """Say what a MessagePack or JSON event would do; raises `CheckFailed` if it would not fold."""
    text = as_data(data)
    stated = stated_key(text)
    row = LogRow(0, "checked", stated or PREFIX + _UNSTATED, text, 0)
    known = registry.known()
    has_view = stated is not None and database.exists()
    with database.open() if has_view else nullcontext() as store:
        found = verdicts(store, row, known)
    require_foldable(found, "fix it and check it again")
    if not found:
        return f"would be skipped: {NO_PROJECTION}"
    of = "the session that its row's key names" if stated is None else session_of(stated)
    return f"would fold into {', '.join(found)}: {of}"


def require_foldable(found: Mapping[str, str | None], hint: str) -> None:
    """Raise `CheckFailed` for the first of `verdicts` with a reason."""
    for name, reason in found.items():
        if reason is not None:
            raise CheckFailed(f"would not fold into {name}: {reason}", hint)


NO_PROJECTION: Final = "no projection here folds events of its type"
_UNSTATED: Final = "\x00unstated"


def as_data(data: bytes) -> str | bytes:
    """The value that a writer would bind: TEXT for JSON, BLOB for MessagePack."""
    try:
        return data.decode()  # no MessagePack map begins as UTF-8 does
    except UnicodeDecodeError:
        return data


def stated_key(data: str | bytes) -> str | None:
    """The key that follows from an event's own `sessionId`, None if it has none."""
    try:
        event = msgspec.json.decode(data) if isinstance(data, str) else decode_exact(data)
        stated = event.get("sessionId")
    except (msgspec.MsgspecError, Malformed, AttributeError, UnicodeError, RecursionError):
        return None
    return PREFIX + stated if isinstance(stated, str) and stated else None
