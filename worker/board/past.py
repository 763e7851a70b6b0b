"""The answers about a session's past: its events, its state at a point, what changed, and why."""

from typing import Any, Final

from starlette.requests import Request

from session_projector.projections.event import keys_of
from session_projector.worker.board import query, sessions
from session_projector.worker.board.values import exact, short
from session_projector.worker.sessions import time_travel, timeline, window
from session_projector.worker.storage.port import Store

MOST_EVENTS: Final = 1000
MOST_CHANGED: Final = 100
"""Messages of each kind that a difference shows; it says how many there are."""


def events(store: Store, request: Request) -> dict[str, Any]:
    limit = query.number(request, "limit", 200, low=1, high=MOST_EVENTS)
    found, more = timeline.page(
        store, query.required(request, "id"), after=query.number(request, "after", 0), limit=limit
    )
    notes = {}
    if any(one.reason is not None for one in found):
        after, keys = found[0].seq - 1, keys_of(query.required(request, "id"))
        entries = store.quarantine.page(after=after, limit=len(found), keys=keys)
        notes = {one.seq: one.dismissed for one in entries}
    return {
        "events": [
            {
                "seq": exact(one.seq),
                "time": exact(one.time),
                "type": one.type and short(one.type),
                "bytes": one.size_bytes,
                "reason": one.reason,
                "note": notes.get(one.seq),
                "says": one.says,
            }
            for one in found
        ],
        "next": exact(found[-1].seq) if more else None,
    }


def at(store: Store, request: Request) -> dict[str, Any]:
    session_id = query.required(request, "id")
    point = time_travel.point(query.required(request, "at"))
    (moment,) = time_travel.moments_at(store, session_id, [point])
    assert moment is not None
    found = window.opened(time_travel.data_of(moment)), moment.event.seq
    return {"cursor": sessions.cursor(store), **sessions.opened(store, request, *found, None)}


def diff(store: Store, request: Request) -> dict[str, Any]:
    session_id = query.required(request, "id")
    points = [time_travel.point(query.required(request, name)) for name in ("from", "to")]
    before, after = (
        None if moment is None else window.opened(time_travel.data_of(moment))
        for moment in time_travel.moments_at(store, session_id, points)
    )
    one, other = ({} if v is None else sessions.fields(v) for v in (before, after))
    olds, news = ([] if v is None else v.messages for v in (before, after))
    common = min(len(olds), len(news))
    changed = [n for n in range(common) if bytes(olds[n]) != bytes(news[n])]
    budget = sessions.Budget(store, session_id)
    found: dict[str, list[dict[str, Any]]] = {"changed": []}
    for n in changed[:MOST_CHANGED]:
        pair = budget.take(olds[n]), budget.take(news[n])
        if pair[0] is None or pair[1] is None:
            break
        found["changed"].append({"n": n + 1, "from": pair[0], "to": pair[1]})
    for kind, some in (("added", news), ("removed", olds)):
        found[kind] = budget.numbered(some, range(common, len(some))[:MOST_CHANGED])
    return {
        "fields": {
            name: {"from": one.get(name), "to": other.get(name)}
            for name in one | other
            if one.get(name) != other.get(name)
        },
        "messages": found,
        "totals": {
            "added": len(news) - common,
            "removed": len(olds) - common,
            "changed": len(changed),
        },
    }


def why(store: Store, request: Request) -> dict[str, Any]:
    found = time_travel.why(store, query.required(request, "id"))
    return {
        "fields": {
            name: {"seq": exact(origin.seq), "time": exact(origin.time), "type": origin.type}
            for name, _, origin in found.fields
        }
    }
