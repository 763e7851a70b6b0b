"""The answers about sessions: the list, one session's messages, its events and its past."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request

from session_projector.projections.event import keys_of
from session_projector.projections.session_index import Entry
from session_projector.worker.board import query
from session_projector.worker.board.values import exact, short, shown, whole
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed, argument
from session_projector.worker.sessions import overview, window
from session_projector.worker.sessions.read import INDEX, entry_of
from session_projector.worker.sessions.timeline import SESSIONS, no_session
from session_projector.worker.storage.port import Store

MOST_MESSAGES: Final = 100
PAGE_BYTES: Final = 1024 * 1024
MOST_SESSIONS: Final = 200
MOST_QUARANTINED: Final = 100
"""Of a session, the first ones; those that are dismissed among them are left out."""
MOST_PROJECTS: Final = 200
MOST_STATUSES: Final = 30
"""That are counted by themselves; a column for each of thousands would be no board."""
KNOWN_STATUSES: Final = ("ready", "in-progress", "review", "done")
"""Those that are counted by themselves however few sessions have them."""
_PLACES: Final = {"changed": tuple[int], "created": tuple[int, str]}


def cursor(store: Store) -> str:
    """Where the views of sessions stand: `/changes` goes on from there."""
    return f"{generation(store)}-{seq(store)}"


def generation(store: Store) -> int:
    """Another number once rows may be others than the events since then have made. Rows of the
    index are never written late."""
    index, views = (store.checkpoints.get(one.name) for one in (INDEX, SESSIONS))
    return (index.generation if index else 0) + (views.replays if views else 0)


def seq(store: Store) -> int:
    return store.views.highest(INDEX, "last_seq")


def summary(entry: Entry, now: int) -> dict[str, Any]:
    """A session as the list has it."""
    return {
        "id": entry.session_id,
        "project": short(entry.project),
        "status": short(entry.status),
        "title": entry.title,
        "messages": entry.message_count,
        "last_role": entry.last_role and short(entry.last_role),
        "created_at": exact(entry.created_at),
        "updated_at": exact(entry.updated_at),
        "last_seq": exact(entry.last_seq),
        "waiting": overview.waits(entry, now),
    }


def sessions(store: Store, request: Request) -> dict[str, Any]:
    order = query.chosen(request, "order", "changed", "created")
    limit = query.number(request, "limit", 50, low=1, high=MOST_SESSIONS)
    waiting = query.chosen(request, "waiting", "0", "1") == "1"
    below = query.page(request, "page", _PLACES[order])
    statuses = query.text(request, "status")
    without = query.text(request, "not")
    project = query.text(request, "project")
    words = (query.text(request, "q") or "").split()
    now = now_ms()
    with store.snapshot():
        found = overview.latest(
            store,
            project=project,
            words=words,
            statuses=statuses.split(",") if statuses else None,
            without=without.split(",") if without else (),
            waiting_at=now if waiting else None,
            order=order,  # type: ignore[arg-type]
            below=below,
            limit=limit + 1,
        )
        return {
            "cursor": cursor(store),
            **counts(store, project, words, now),
            **projects(store),
            "sessions": [summary(entry, now) for entry in found[:limit]],
            "next": query.token(overview.place(found[limit - 1], order))  # type: ignore[arg-type]
            if len(found) > limit
            else None,
        }


def counts(store: Store, project: str | None, words: Sequence[str], now: int) -> dict[str, Any]:
    """How many sessions have each status, and the `other` ones beyond `MOST_STATUSES`."""
    found = overview.counts(store, project=project, words=words, now_ms=now)
    every = sorted(
        found.counts, key=lambda one: (one not in KNOWN_STATUSES, -found.counts[one], one)
    )
    return {
        "counts": {short(one): found.counts[one] for one in every[:MOST_STATUSES]},
        "other": sum(found.counts[one] for one in every[MOST_STATUSES:]),
        "waiting": found.waiting,
    }


def projects(store: Store) -> dict[str, Any]:
    """The projects by name, those with most sessions where there are very many, and how many."""
    found = overview.projects(store)
    most = sorted(found, key=lambda one: (-found[one], one))[:MOST_PROJECTS]
    return {"projects": [*map(short, sorted(most))], "project_count": len(found)}


def session(store: Store, request: Request) -> dict[str, Any]:
    session_id = query.required(request, "id")
    with store.snapshot():
        at, (view, until) = cursor(store), window.stored(store, session_id)
        row = store.views.row(INDEX, session_id)
        entry = entry_of(store, row) if row else None
        return {
            "cursor": at,
            "quarantined": quarantined(store, session_id),
            **opened(store, request, view, until, entry),
        }


def quarantined(store: Store, session_id: str) -> list[Any]:
    """The positions of a session's events that are in quarantine and not dismissed."""
    found = store.quarantine.page(
        after=0, limit=MOST_QUARANTINED, projection=SESSIONS.name, keys=keys_of(session_id)
    )
    return [exact(one.seq) for one in found if one.dismissed is None]


def messages(store: Store, request: Request) -> dict[str, Any]:
    return page(store, request, *window.stored(store, query.required(request, "id")))


def message(store: Store, request: Request) -> dict[str, Any]:
    """From the log: the view may be of 256 MiB."""
    session_id = query.required(request, "id")
    number = query.number(request, "n", low=1)
    with store.snapshot():
        if (row := store.views.row(INDEX, session_id)) is None:
            raise no_session(store, session_id)
        entry = entry_of(store, row)
        total, until = entry.message_count, entry.last_seq
        if number > total:
            raise CheckFailed(f"the session has {total} messages", "give one of those")
        wanted = range(number, number + 1)
        found = window.brought(store, session_id, wanted, total=total, until=until)
    if not found:
        raise CheckFailed(
            f"message {number} is too far from the end of the session to be shown whole",
            f"`projector session view {argument(session_id)}`",
        )
    (one,) = found
    told = whole(window.message(store, session_id, one.data))
    return {"n": number, "time": exact(one.time), "message": told}


def opened(
    store: Store, request: Request, view: window.View, until: int, entry: Entry | None
) -> dict[str, Any]:
    """A session with some of its messages; `until` is the position of the last event in it."""
    return {
        "session": entry and summary(entry, now_ms()),
        "fields": fields(view),
        **page(store, request, view, until),
    }


def fields(view: window.View) -> dict[str, Any]:
    return {
        name: short(value) if isinstance(value, str) and name != "id" else exact(value)
        for name, value in view.fields.items()
    }


def page(store: Store, request: Request, view: window.View, until: int) -> dict[str, Any]:
    """The messages from `first` on, up to `last`, or as many of these as a page has; with `last`
    alone, or neither, the newest up to there. Each has the time of the event that brought it, which
    is looked for in the log, up to the position of the last event in the view."""
    total, budget = len(view.messages), Budget(store, view.id)
    last = min(query.number(request, "last", total), total)
    if first := query.number(request, "first", 0):
        found = budget.numbered(view.messages, range(first - 1, last)[:MOST_MESSAGES])
    else:
        found = budget.numbered(view.messages, range(last)[-1 : -MOST_MESSAGES - 1 : -1])[::-1]
    first, last = (found[0]["n"], found[-1]["n"]) if found else (0, 0)
    wanted = range(first, last + 1) if found else range(0)
    times = {
        one.n: exact(one.time)
        for one in window.brought(store, view.id, wanted, total=total, until=until)
        if one.data == bytes(view.messages[one.n - 1])  # the view may be another program's
    }
    for entry in found:
        entry["time"] = times.get(entry["n"])
    return {"total": total, "first": first, "last": last, "messages": found}


class Budget:
    """The messages of one answer, which together have no more than `PAGE_BYTES`, but for one."""

    def __init__(self, store: Store, session_id: str) -> None:
        self._store = store
        self._session_id = session_id
        self._left = PAGE_BYTES

    def take(self, encoded: msgspec.Raw) -> msgspec.Raw | None:
        """A message as it is shown, None where the answer is full."""
        data = shown(window.message(self._store, self._session_id, encoded))
        if len(data) > self._left < PAGE_BYTES:
            self._left = 0
            return None
        self._left -= len(data)
        return msgspec.Raw(data)

    def numbered(self, messages: Sequence[msgspec.Raw], wanted: range) -> list[dict[str, Any]]:
        """Some messages, by their index, with their numbers."""
        found: list[dict[str, Any]] = []
        for index in wanted:
            if (data := self.take(messages[index])) is None:
                break
            found.append({"n": index + 1, "message": data})
        return found
