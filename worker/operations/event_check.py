"""Whether an event would fold, checked before it is written."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Final

import msgspec

from session_projector.projections.event import PREFIX, Event, LogRow, session_of
from session_projector.projections.explain import detail
from session_projector.projections.fold import Rejected, fold, key_of, read
from session_projector.projections.messagepack import decode_exact
from session_projector.projections.projection import NEVER_CREATED, CorruptRow, Projection
from session_projector.projections.rows import restore
from session_projector.projections.scanner import Malformed
from session_projector.projections.session_index import SessionIndex
from session_projector.worker import registry
from session_projector.worker.errors import CheckFailed, ProjectorError
from session_projector.worker.operations.event_types import meant
from session_projector.worker.sessions.timeline import SESSIONS, folded
from session_projector.worker.sessions.write import creating
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


class Checked(msgspec.Struct, frozen=True):
    """What an event would do: for each projection that it concerns why it would not fold, or None;
    for none it is skipped.

    `session_id` is None if the event does not name it, `detail` says what is wrong with how it is
    encoded, and `did_you_mean` is the type of ours that its own nearly is.
    """

    session_id: str | None
    projections: dict[str, str | None]
    detail: str | None
    did_you_mean: str | None

    def required(self) -> str:
        """What it would do, in words; raises `CheckFailed` if it would not fold, or if its type is
        nearly one of ours."""
        session = self.session_id
        again = f"{creating(session)}, and check it again" if session else _AGAIN
        require_foldable(self.projections, self.detail, _AGAIN, again)
        if self.did_you_mean:
            raise CheckFailed(skipped(self.did_you_mean), _AGAIN)
        if not self.projections:
            return skipped(None)
        of = session or "the session that its row's key names"
        return f"would fold into {', '.join(self.projections)}: {of}"


def check(database: Database, data: bytes) -> Checked:
    """What a MessagePack or JSON event would do."""
    text = as_data(data)
    stated = stated_key(text)
    row = LogRow(0, "checked", stated or PREFIX + _UNSTATED, text, 0)
    known = registry.known()
    has_view = stated is not None and database.exists()
    with database.open() if has_view else nullcontext() as store:
        found = verdicts(store, row, known)
    near = None if found else nearly(row, known)
    return Checked(None if stated is None else session_of(stated), found, detail(text), near)


def nearly(row: LogRow, projections: Iterable[Projection]) -> str | None:
    """The type of ours that the type of an event nearly is."""
    (event,) = read([row], projections)
    return meant(event.type or "", projections)


def require_foldable(
    found: Mapping[str, str | None], more: str | None, hint: str, creating_first: str
) -> None:
    """Raise `CheckFailed` for the first of `verdicts` with a reason; `more` is the event's
    `detail`, and the last hint is for one whose session was never created."""
    for name, reason in found.items():
        if reason is not None:
            said = f"{reason}; {more}" if more else reason
            fix = creating_first if reason.endswith(NEVER_CREATED) else hint
            raise CheckFailed(f"would not fold into {name}: {said}", fix)


def skipped(near: str | None) -> str:
    """That an event would be skipped, and what its type may have been meant to be."""
    said = "would be skipped: no projection here folds events of its type"
    return f"{said}; did you mean {near}?" if near else said


_AGAIN: Final = "fix it and check it again"
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
