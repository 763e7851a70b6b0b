"""The answers about what was said, across sessions."""

from importlib import import_module
from typing import Any, Final

import msgspec
from starlette.requests import Request

from session_projector.worker.board import query
from session_projector.worker.board.answers import Conflict
from session_projector.worker.board.values import whole
from session_projector.worker.errors import CheckFailed, InterventionRequired
from session_projector.worker.sessions.time_travel import point
from session_projector.worker.storage.port import Store

MOST: Final = 100
_MODULE: Final = "session_projector.worker.sessions.search"


def search(store: Store, request: Request) -> dict[str, Any]:
    limit = query.number(request, "limit", 50, low=1, high=MOST)
    role, project = query.text(request, "role"), query.text(request, "project")
    order = query.chosen(request, "order", "newest", "best")
    words, since = query.required(request, "q"), query.text(request, "since")
    since_ms = None if since is None else point(since).value
    try:
        found = import_module(_MODULE).search(
            store,
            words,
            project=project,
            role=role,
            since_ms=since_ms,
            order=order,
            limit=limit + 1,
        )
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise
        raise Conflict("this version of projector has no search", "install a newer one") from None
    except (CheckFailed, InterventionRequired) as error:  # switched off, or still being built
        raise Conflict(str(error), error.hint) from None
    results = whole(msgspec.to_builtins(found))
    return {"results": results[:limit], "more": len(results) > limit}
