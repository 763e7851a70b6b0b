"""What a board shows of all sessions: the latest of them, how many there are, which ones wait."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from session_projector.projections.session_index import Entry
from session_projector.worker.sessions.read import INDEX, entry_of
from session_projector.worker.storage.port import Among, Store

STILL_MS: Final = 60_000
"""So long has a session been still that waits for a person since the agent spoke last."""
_HANDED_OVER: Final = ("ready", "review")
_ENDED: Final = "done"
_ORDERS: Final = {"changed": ("last_seq",), "created": ("created_at", "session_id")}
_TEXTS: Final = ("title", "session_id", "project")

Order = Literal["changed", "created"]


class Counts(msgspec.Struct, frozen=True):
    """How many sessions have each status, and how many wait for a person."""

    counts: dict[str, int]
    waiting: int


def waits(entry: Entry, now_ms: int) -> bool:
    """Whether a session waits for a person."""
    return entry.status in _HANDED_OVER or (
        may_wait(entry) and entry.updated_at <= now_ms - STILL_MS
    )


def may_wait(entry: Entry) -> bool:
    """Whether it will wait for a person, once it has been still for long enough."""
    return entry.last_role == "assistant" and entry.status not in (*_HANDED_OVER, _ENDED)


def latest(
    store: Store,
    *,
    project: str | None = None,
    words: Sequence[str] = (),
    statuses: Sequence[str] | None = None,
    without: Sequence[str] = (),
    waiting_at: int | None = None,
    order: Order = "changed",
    below: Sequence[Any] | None = None,
    limit: int,
) -> list[Entry]:
    """The sessions that changed last, or were created last, the latest first; with `waiting_at`
    only those that wait for a person at that time, and none with a status in `without`. `below` is
    the `place` of the one before."""
    among = _among(project, words)
    parts = [among] if waiting_at is None else _waiting(among, waiting_at)
    found: list[Entry] = []
    for part in parts:
        if statuses is not None:
            given = part.having.get("status", statuses)
            having = {**part.having, "status": [one for one in statuses if one in given]}
            part = msgspec.structs.replace(part, having=having)
        if without:
            lacking = {**part.lacking, "status": [*part.lacking.get("status", ()), *without]}
            part = msgspec.structs.replace(part, lacking=lacking)
        rows = store.views.latest(INDEX, part, order=_ORDERS[order], below=below, limit=limit)
        found += [entry_of(store, row) for row in rows]
    return sorted(found, key=lambda entry: place(entry, order), reverse=True)[:limit]


def place(entry: Entry, order: Order) -> tuple[Any, ...]:
    """Where a session is in an order."""
    return tuple(getattr(entry, column) for column in _ORDERS[order])


def counts(
    store: Store, *, project: str | None = None, words: Sequence[str] = (), now_ms: int
) -> Counts:
    among = _among(project, words)
    waiting = (
        count
        for part in _waiting(among, now_ms)
        for count in store.views.tally(INDEX, part, "status").values()
    )
    return Counts(store.views.tally(INDEX, among, "status"), sum(waiting))


def projects(store: Store) -> dict[str, int]:
    """How many sessions each project has."""
    return store.views.tally(INDEX, Among(), "project")


def _among(project: str | None, words: Sequence[str]) -> Among:
    having = {} if project is None else {"project": [project]}
    return Among(having=having, words=words, texts=_TEXTS)


def _waiting(among: Among, now_ms: int) -> list[Among]:
    """Those that wait for a person, in two parts that share none."""
    replace = msgspec.structs.replace
    return [
        replace(among, having={**among.having, "status": _HANDED_OVER}),
        replace(
            among,
            having={**among.having, "last_role": ["assistant"]},
            lacking={"status": (*_HANDED_OVER, _ENDED)},
            at_most={"updated_at": now_ms - STILL_MS},
        ),
    ]
