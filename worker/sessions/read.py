"""Reading sessions: the list, one view, and changes as they happen."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from session_projector.projections.event import PREFIX, is_utf8, keys_of
from session_projector.projections.messagepack import decode_exact
from session_projector.projections.projection import CorruptRow
from session_projector.projections.rows import restore
from session_projector.projections.scanner import Malformed
from session_projector.projections.session_index import Entry, SessionIndex
from session_projector.worker.errors import CheckFailed, InterventionRequired, quoted
from session_projector.worker.sessions.timeline import SESSIONS, no_session
from session_projector.worker.storage.port import Store

INDEX: Final = SessionIndex()
SHORTEST_PREFIX: Final = 4
"""Characters of an id from which on its beginning is enough."""
MOST_NAMED: Final = 5
WATCH_POLL_S: Final = 0.02


def sessions(
    store: Store,
    *,
    project: str | None = None,
    statuses: Sequence[str] | None = None,
    after: int | None = None,
) -> Iterator[Entry]:
    """The sessions of a project and with one of some statuses, oldest first.

    With `after`: only those that an event after that position changed, in the order of the changes.
    """
    where: dict[str, Sequence[str]] = {}
    if project is not None:
        where["project"] = [project]
    if statuses is not None:
        where["status"] = statuses
    above = None if after is None else ("last_seq", after)
    order = ("created_at", "session_id") if after is None else ("last_seq",)
    for row in store.views.select(INDEX, where=where, above=above, order=order):
        yield entry_of(store, row)


def entry_of(store: Store, row: tuple[Any, ...]) -> Entry:
    """The entry that a row of the index is."""
    try:
        entry: Entry = restore(INDEX, row)
        return entry
    except CorruptRow:
        raise InterventionRequired(
            f"an entry of session_index in {store.name} was not written by projector",
            f"fix it: `projector replay --projection {INDEX.name}`",
        ) from None


def watch(store: Store, project: str | None) -> Iterator[Entry]:
    """Yield each change of a session as it becomes visible, without end."""
    seen = store.views.highest(INDEX, "last_seq")
    while True:
        # After a restore the log may have fewer events, and anybody may write any entry.
        seen = min(seen, store.views.highest(INDEX, "last_seq"), store.log.newest())
        for entry in sessions(store, after=seen):
            seen = entry.last_seq
            if project in (None, entry.project):
                yield entry
        time.sleep(WATCH_POLL_S)


def session(store: Store, session_id: str) -> dict[str, Any]:
    """The stored view of a session; raises `CheckFailed` if there is none."""
    row = store.views.row(SESSIONS, PREFIX + session_id)
    if row is None:
        raise no_session(store, session_id)
    try:
        restore(SESSIONS, row)
        view: dict[str, Any] = decode_exact(row[2])
    except (CorruptRow, Malformed):
        view = {"messages": [None]}
    if not all(isinstance(message, dict) for message in view["messages"]):
        raise not_ours(store, session_id)
    return view


def not_ours(store: Store, session_id: str) -> InterventionRequired:
    """The error of a view that another program wrote, or changed."""
    adopted = not any(s.checkpoint.position for s in store.checkpoints.all().values())
    return InterventionRequired(
        f"the view of session {session_id} in {store.name} was not written by projector",
        "fold it from the log: `projector run`"
        if adopted
        else f"fix it: `projector replay --session={quoted(session_id)}`",
    )


def resolved(store: Store, given: str) -> str:
    """The id of the session that is meant: the one that is given, or the only one in the index that
    begins with it, but for its subagents (`ID.…`); raises `CheckFailed` if several do."""
    if len(given) < SHORTEST_PREFIX or not is_utf8(given) or _is_known(store, given):
        return given
    begun = [id_ for id_ in store.views.keys(INDEX, after=given) if id_.startswith(given)]
    found = [id_ for id_ in begun if not id_.startswith(f"{begun[0]}.")]
    if len(found) > 1:
        named = ", ".join(found[:MOST_NAMED]) + ", …" * (len(found) > MOST_NAMED)
        raise CheckFailed(
            f"several sessions begin with {given}: {named}",
            "write more of the id; list the sessions: `projector session list`",
        )
    return found[0] if found else given


def require_known(store: Store, session_id: str) -> None:
    """Raise `CheckFailed` if neither the log nor a view has the session."""
    if not (is_utf8(session_id) and _is_known(store, session_id)):
        raise no_session(store, session_id)


def _is_known(store: Store, session_id: str) -> bool:
    return bool(
        store.log.present(keys_of(session_id))
        or store.views.row(SESSIONS, PREFIX + session_id)
        or store.views.row(INDEX, session_id)
    )
