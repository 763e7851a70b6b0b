"""The answers about sessions: the list, one session's messages, its events and its past."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request

from session_projector.projections.session_index import Entry
from session_projector.worker.board import query
from session_projector.worker.board.values import exact, short, shown, whole
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import CheckFailed
from session_projector.worker.sessions import overview, window
from session_projector.worker.sessions.read import INDEX, entry_of
from session_projector.worker.storage.port import Store

MOST_MESSAGES: Final = 100
PAGE_BYTES: Final = 1024 * 1024
MOST_SESSIONS: Final = 200
MOST_NAMES: Final = 1000
"""Of projects, and of statuses."""
_PLACES: Final = {"changed": tuple[int], "created": tuple[int, str]}


def cursor(store: Store) -> str:
    """Where the views of sessions stand: `/changes` goes on from there."""
    return f"{generation(store)}-{seq(store)}"


def generation(store: Store) -> int:
    checkpoint = store.checkpoints.get(INDEX.name)
    return checkpoint.generation if checkpoint else 0


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
    project = query.text(request, "project")
    words = (query.text(request, "q") or "").split()
    now = now_ms()
    with store.snapshot():
        found = overview.latest(
            store,
            project=project,
            words=words,
            statuses=statuses.split(",") if statuses else None,
            waiting_at=now if waiting else None,
            order=order,  # type: ignore[arg-type]
            below=below,
            limit=limit + 1,
        )
        return {
            "cursor": cursor(store),
            **counts(store, project, words, now),
            "projects": [short(one) for one in overview.projects(store)[:MOST_NAMES]],
            "sessions": [summary(entry, now) for entry in found[:limit]],
            "next": query.token(overview.place(found[limit - 1], order))  # type: ignore[arg-type]
            if len(found) > limit
            else None,
        }


def counts(store: Store, project: str | None, words: Sequence[str], now: int) -> dict[str, Any]:
    found = overview.counts(store, project=project, words=words, now_ms=now)
    most = sorted(found.counts.items(), key=lambda one: -one[1])[:MOST_NAMES]
    return {"counts": {short(one): count for one, count in most}, "waiting": found.waiting}


def session(store: Store, request: Request) -> dict[str, Any]:
    session_id = query.required(request, "id")
    with store.snapshot():
        at, view = cursor(store), window.stored(store, session_id)
        row = store.views.row(INDEX, session_id)
    entry = entry_of(store, row) if row else None
    return {"cursor": at, **_opened(store, view, entry, _wanted(request, view))}


def messages(store: Store, request: Request) -> dict[str, Any]:
    view = window.stored(store, query.required(request, "id"))
    return page(store, view, *_wanted(request, view))


def message(store: Store, request: Request) -> dict[str, Any]:
    view = window.stored(store, query.required(request, "id"))
    number = query.number(request, "n", low=1)
    if number > len(view.messages):
        raise CheckFailed(f"the session has {len(view.messages)} messages", "give one of those")
    found = window.message(store, view.id, view.messages[number - 1])
    return {"n": number, "message": whole(found)}


def page(store: Store, view: window.View, first: int, last: int | None) -> dict[str, Any]:
    """Some messages: from a first one on, up to a last one or as many as a page has; with no last
    one the newest of those."""
    total, from_end = len(view.messages), last is None
    first, last = max(first, 1), min(total if last is None else last, total)
    wanted = (
        range(max(first, last - MOST_MESSAGES + 1), last + 1)[::-1]
        if from_end
        else range(first, min(last, first + MOST_MESSAGES - 1) + 1)
    )
    found: list[dict[str, Any]] = []
    left = PAGE_BYTES
    for number in wanted:
        data = shown(window.message(store, view.id, view.messages[number - 1]))
        left -= len(data)
        if left < 0 and found:
            break
        found.append({"n": number, "message": msgspec.Raw(data)})
    found.sort(key=lambda one: one["n"])
    return {
        "total": total,
        "first": found[0]["n"] if found else 0,
        "last": found[-1]["n"] if found else 0,
        "messages": found,
    }


def _opened(
    store: Store, view: window.View, entry: Entry | None, wanted: tuple[int, int | None]
) -> dict[str, Any]:
    fields = {
        name: exact(short(v) if name != "id" and isinstance(v, str) else v)
        for name, v in view.fields.items()
    }
    return {
        "session": entry and summary(entry, now_ms()),
        "fields": fields,
        **page(store, view, *wanted),
    }


def _wanted(request: Request, view: window.View) -> tuple[int, int | None]:
    """The messages that are asked for; with neither end given, the newest."""
    if not query.text(request, "first") and not query.text(request, "last"):
        return 1, None
    last = query.number(request, "last", len(view.messages))
    return query.number(request, "first", max(last - MOST_MESSAGES + 1, 1)), last
