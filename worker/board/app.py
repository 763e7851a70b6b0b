"""The application: pages, the API, and the stream of changes."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import msgspec
import structlog
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from session_projector.projections.event import MAX_EVENT_BYTES
from session_projector.worker.board import past, quarantine, query, sessions
from session_projector.worker.board.address import Address
from session_projector.worker.board.answers import Conflict, answer, failed, refused
from session_projector.worker.board.live import Client, Hub, Seen, missed
from session_projector.worker.board.search import search
from session_projector.worker.board.security import Guard, body, too_large
from session_projector.worker.errors import CheckFailed, ProjectorError, UsageError, naming
from session_projector.worker.operations.status import status
from session_projector.worker.storage.port import Check, Database, Store

STATIC: Final = Path(__file__).parent / "static"
PAGES: Final = {
    "/": "board.html",
    "/session": "session.html",
    "/session/history": "history.html",
    "/search": "search.html",
    "/health": "health.html",
    "/quarantine": "quarantine.html",
    "/login": "login.html",
}
READERS: Final = 4
"""Requests that read the database at the same time; others wait."""
MOST_STREAMS: Final = 200
MOST_BODY_BYTES: Final = 2 * MAX_EVENT_BYTES

Answer = Callable[[Store, Request], Mapping[str, Any]]
READS: Final[dict[str, Answer]] = {
    "sessions": sessions.sessions,
    "session": sessions.session,
    "session/messages": sessions.messages,
    "session/message": sessions.message,
    "session/events": past.events,
    "session/at": past.at,
    "session/diff": past.diff,
    "session/why": past.why,
    "search": search,
    "quarantine": quarantine.listing,
    "quarantine/event": quarantine.event,
}
"""What is answered from the database, by the path below `/api/v1/`."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Board:
    """What all requests share."""

    def __init__(
        self, database: Database, examine: Callable[[Database], Iterable[Check]], *, actions: bool
    ) -> None:
        self.database = database
        self.actions = actions
        self.hub = Hub(database, self.status)
        self._examine = examine
        self._limiter = CapacityLimiter(READERS)

    async def run(self, work: Callable[[], Any]) -> Any:
        """In a thread; it is waited for where the client has gone."""
        with anyio.CancelScope(shield=True):
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def read(self, work: Callable[[Store], Any], *, writable: bool = False) -> Any:
        """With a store of its own, which holds nothing open between two requests."""

        def opened() -> Any:
            with self.database.open(writable=writable) as store:
                return work(store)

        return await self.run(opened)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(status(self.database))
        return {
            **found,
            "board": {
                "actions": self.actions,
                "search": any(
                    one["name"] == "search" and one["version"] for one in found["projections"]
                ),
                "version": version("session-projector"),
                "database": self.database.name,
            },
        }

    def doctor(self) -> dict[str, Any]:
        found = self._examine(self.database)
        owner = self.database.owner_name
        return {
            "checks": [
                {
                    "name": one.check,
                    "level": one.level,
                    "found": naming(self.database.name, one.found, owner),
                    "fix": naming(self.database.name, one.fix, owner),
                }
                for one in found
            ]
        }


def application(board: Board, address: Address, token: str | None) -> Guard:
    """All of it, behind the guard."""

    def reads(work: Answer) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return answer(await board.read(lambda store: work(store, request)))

        return endpoint

    def runs(work: Callable[[], Any]) -> Callable[[Request], Any]:
        async def endpoint(_: Request) -> Response:
            return answer(await board.run(work))

        return endpoint

    def acts(kind: type[Any], work: Callable[[Store, Any], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if not board.actions:
                hint = naming(board.database.name, "`projector board --allow-actions`")
                return refused(403, "this board only shows", f"start it with {hint}")
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return refused(415, "the request is not JSON", "send application/json")
            if (data := await body(request, MOST_BODY_BYTES)) is None:
                return too_large()
            asked = quarantine.asked_for(kind, data)
            try:
                done = await board.read(lambda store: work(store, asked), writable=True)
            except CheckFailed as error:
                raise Conflict(str(error), error.hint) from None
            return answer(done)

        return endpoint

    async def changes(request: Request) -> Response:
        return await _changes(board, request)

    paths = {
        **{path: reads(work) for path, work in READS.items()},
        "status": runs(board.status),
        "doctor": runs(board.doctor),
        "changes": changes,
    }
    routes = [
        *(Route(path, partial(_page, name)) for path, name in PAGES.items()),
        *(Route(f"/api/v1/{path}", endpoint) for path, endpoint in paths.items()),
        *(
            Route(f"/api/v1/quarantine/{name}", acts(*how), methods=["POST"])
            for name, how in quarantine.ACTIONS.items()
        ),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]

    async def fails(_: Request, error: Exception) -> Response:
        if isinstance(error, ProjectorError):
            return failed(error, board.database.name)
        if isinstance(error, HTTPException):
            return refused(error.status_code, str(error.detail))
        if isinstance(error, ImportError):  # loaded late, from files that were replaced meanwhile
            hint = "restart the board: its program was upgraded or removed while it ran"
            log.error("board_failed", why=f"{type(error).__name__} of {error.name}", hint=hint)
            return refused(500, "the board's program was replaced while it ran", hint)
        log.error("board_failed", why=type(error).__name__)
        return refused(500, f"the board failed: {type(error).__name__}", "see its log")

    errors: dict[Any, Any] = dict.fromkeys((ProjectorError, HTTPException, Exception), fails)
    app = Starlette(routes=routes, exception_handlers=errors)
    return Guard(app, address, token, (STATIC / "login.html").read_text())


async def _page(name: str, _: Request) -> Response:
    return FileResponse(STATIC / name)


async def _changes(board: Board, request: Request) -> Response:
    """The stream of what changes from a cursor on."""
    if len(board.hub) >= MOST_STREAMS:
        return refused(503, "there are too many streams", "close some pages of the board")
    resumed = _cursor(request.headers.get("last-event-id", ""))
    since = resumed or _cursor(request.query_params.get("since", ""))
    sessions = query.numbered(request, "session", "n")
    client = Client(
        query.text(request, "project"), dict.fromkeys(sessions) if resumed else sessions
    )
    try:
        await board.hub.join(client)  # first: what comes meanwhile is told twice, and not missed
        first = await board.read(lambda store: missed(store, client, since))
    except BaseException:
        board.hub.leave(client)
        raise

    async def frames() -> AsyncIterator[bytes]:
        try:
            yield first
            async for frame in client.frames(board.hub.pause_s):
                yield frame
        finally:
            board.hub.leave(client)

    return StreamingResponse(frames(), media_type="text/event-stream")


def _cursor(text: str) -> Seen | None:
    generation, _, seq = text.partition("-")
    with suppress(ValueError):
        if generation.isascii() and seq.isascii() and len(text) < 50:
            return Seen(int(generation), int(seq))
    if text:
        raise UsageError(f"{text[:50]} is not a cursor", "leave since= out")
    return None
