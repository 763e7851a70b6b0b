"""Who is answered: by the name in the address, the site that asks, and the token."""

import hmac
import ipaddress
import re
import socket
from contextlib import suppress
from typing import Final
from urllib.parse import parse_qs

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from session_projector.worker.board.address import Address
from session_projector.worker.board.answers import refused
from session_projector.worker.board.token import derived, is_ticket

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Frame-Options": "DENY",
}
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^][:/@]+)(?::([0-9]{1,5}))?")
_OPEN: Final = ("/login", "/static/")
"""What is answered without the token: there is nothing of the database in it."""
_FORM_BYTES: Final = 4096
_FORM_WITHIN_S: Final = 10
_MOST_LOGINS: Final = 20
STREAM: Final = "/api/v1/changes"


class Guard:
    """Wraps the application: nothing of it is reached by a request that may not be answered."""

    def __init__(self, app: ASGIApp, address: Address, token: str | None, login_page: str) -> None:
        self._app = app
        self._address = address
        self._token = token
        self._cookie = f"projector_board_{address.port}"
        self._value = derived(token, self._cookie) if token else ""
        self._key = derived(token, f"page {self._cookie}") if token else ""
        self._used: set[str] = set()
        self._logins = 0
        self._login_page = login_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                kept = request.url.path.startswith("/static/")  # asked for again, not sent
                headers.setdefault("Cache-Control", "no-cache" if kept else "no-store")
            await send(message)

        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:  # in the middle of a form
            return
        with suppress(Exception):  # it is logged already, without what a traceback tells
            await (self._app if answer is None else answer)(scope, receive, guarded)

    async def _answer(self, request: Request) -> Response | None:
        """What is said instead of the application's answer."""
        headers, path = request.headers, request.url.path
        if not is_ours(headers.get("host", ""), self._address):
            return refused(
                421,
                "this server does not go by that name",
                "ask for the address that `projector board` printed",
            )
        if wrong := self._other_site(request):
            return refused(403, wrong, "open the address that `projector board` printed")
        if path == "/login" and self._token is not None:
            return await self._login(request)
        if self._token is None or path.startswith(_OPEN) or self._is_known(request):
            return None
        if request.method == "GET" and "text/html" in headers.get("accept", ""):
            return self._asks()
        return refused(
            401,
            "a token is needed",
            "open the address that `projector board` printed,"
            " or send the token of its file as `Authorization: Bearer TOKEN`",
        )

    def _is_known(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._token is not None:
            return same(given.strip(), self._token)
        if not same(request.cookies.get(self._cookie, ""), self._value):
            return False
        if not request.url.path.startswith("/api/"):
            return True  # there is nothing of the database in a page
        # A browser shows cookies to every port of this machine, and so to its other users.
        key = request.headers.get("projector-key", "")
        if request.url.path == STREAM:  # whose headers a page cannot choose
            key = key or request.query_params.get("key", "")
        return same(key, self._key)

    def _other_site(self, request: Request) -> str:
        """Why a request is not answered that a page of another site, or of another port, makes."""
        headers, reads = request.headers, request.method in ("GET", "HEAD")
        site = headers.get("sec-fetch-site")
        followed = headers.get("sec-fetch-mode") == "navigate" and headers.get(
            "sec-fetch-dest"
        ) in (None, "document")
        if site not in (None, "none", "same-origin") and not (reads and followed):
            return "pages of other sites are not answered"
        origin, said = headers.get("origin"), site == "same-origin"
        if origin is not None and not said:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or host != headers.get("host"):
                return "pages of other sites are not answered"
        told = said or origin is not None or "authorization" in headers
        if not (reads or told or request.url.path == "/login"):
            return "a browser that does not say which page asks is not answered"
        return ""

    def _asks(self, said: str = "", status: int = 401) -> Response:
        return HTMLResponse(self._login_page.replace("{said}", said), status)

    async def _login(self, request: Request) -> Response | None:
        """Set the cookie for a token that is right."""
        assert self._token is not None
        once = request.query_params.get("once", "")
        token = request.query_params.get("token", "")
        if request.method == "POST":
            if self._logins >= _MOST_LOGINS:
                return refused(503, "too many log in at the same time", "try again")
            self._logins += 1
            try:
                with anyio.fail_after(_FORM_WITHIN_S):
                    form = await body(request, _FORM_BYTES)
            except TimeoutError:
                return refused(408, "the form did not come", "try again")
            finally:
                self._logins -= 1
            if form is None:
                return too_large()
            token = parse_qs(form.decode(errors="replace")).get("token", [""])[0]
        elif not token and not once:
            return self._asks(status=200)
        is_new = once not in self._used and is_ticket(once, self._token)
        if not is_new and not same(token.strip(), self._token):
            return self._asks("That is not the token of this board.")
        self._used.add(once)
        response = RedirectResponse(f"/#key={self._key}", 303)
        response.set_cookie(
            self._cookie, self._value, max_age=365 * 86400, httponly=True, samesite="strict"
        )
        return response


def same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


async def body(request: Request, most: int) -> bytes | None:
    """The body of a request, None where it is larger than it may be."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            return None
    return bytes(data)


def too_large() -> Response:
    return refused(413, "the request is too large")


def is_ours(asked: str, address: Address) -> bool:
    """Whether a client asks for this server, by an address or by a name that is this machine's: a
    name of somebody else's may lead a browser here (DNS rebinding)."""
    match = _HOST.fullmatch(asked)
    if match is None:
        return False
    name = match[1].lower().rstrip(".")
    if address.path is not None:
        return name == "localhost"
    if int(match[2] or 80) != address.port:
        return False
    if name in ("localhost", address.host.lower(), f"[{address.host.lower()}]"):
        return True
    with suppress(ValueError):
        ip = ipaddress.ip_address(name.strip("[]"))
        return ip.is_loopback if address.is_loopback else True
    machine = socket.gethostname().lower()
    return not address.is_loopback and name in (machine, machine.partition(".")[0])
