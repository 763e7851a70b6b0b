"""The answers about what was said, across sessions."""

from typing import Any, Final, cast

import msgspec
from starlette.requests import Request

from session_projector.worker.board import query
from session_projector.worker.board.answers import Conflict
from session_projector.worker.board.values import whole
from session_projector.worker.errors import CheckFailed, InterventionRequired, UsageError
from session_projector.worker.sessions import search as messages
from session_projector.worker.sessions.time_travel import point
from session_projector.worker.storage.port import Store

MOST: Final = 200


def search(store: Store, request: Request) -> dict[str, Any]:
    since, role = query.text(request, "since"), query.text(request, "role")
    if role not in (None, *messages.ROLES):
        raise UsageError(f"role is none of {', '.join(messages.ROLES)}", "correct role=")
    try:
        found = messages.search(
            store,
            query.required(request, "q"),
            project=query.text(request, "project"),
            role=cast(Any, role),
            since_ms=None if since is None else point(since).value,
            order=cast(Any, query.chosen(request, "order", "newest", "best")),
            limit=query.number(request, "limit", messages.LIMIT, low=1, high=MOST),
        )
    except (CheckFailed, InterventionRequired) as error:  # switched off, or still being built
        raise Conflict(str(error), error.hint) from None
    results: dict[str, Any] = whole(msgspec.to_builtins(found))
    return results
