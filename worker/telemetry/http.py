"""The HTTP server of `projector run --http`: metrics and two health checks, in its own threads."""

import errno
import ipaddress
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import TCPServer
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from session_projector.worker.errors import TransientError, UsageError, no_thread
from session_projector.worker.telemetry.probes import health, held_back, readiness
from session_projector.worker.telemetry.state import DaemonState

_ADDRESS: Final = re.compile(r"(?:\[([^][/]+)\]|([^][/]+)):([0-9]{1,5})")
_CLIENTS: Final = 32
"""Clients served at the same time; another one waits `_PATIENCE_S`, then it is disconnected."""
_PATIENCE_S: Final = 1.0
_READ_WITHIN_S: Final = 2.0
"""The time that a client has to send its request, however it spreads it."""
_ANSWERED_WITHIN_S: Final = 10.0
"""The time that it then has to take the answer."""
_INERT: Final = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    ("Cache-Control", "no-store"),
]
"""A page of another site can neither run an answer nor tell by its loading which one it got: a
browser names the page only where it trusts the address, which it does not on the network."""
_HOST: Final = re.compile(r"(\[[^]]*\]|[^:]*)(?::[0-9]*)?")
_NO_DESCRIPTOR_S: Final = 0.1
"""Pause before accepting a client again after the process had no file descriptor for it."""
_TRANSIENT: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, socket.EAI_AGAIN}

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
Respond = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[dict[str, Any], Respond], Iterable[bytes]]


@contextmanager
def served(
    address: str, state: DaemonState, newest: Callable[[], int], metrics: Collector
) -> Iterator[None]:
    """Serve on `host:port` until the block ends; raises `UsageError` and `TransientError`.

    `newest` reads the newest position from the database, for the health checks.
    """
    parsed = _ADDRESS.fullmatch(address)
    if not parsed or int(parsed[3]) > 65535:
        raise UsageError(
            f"--http {address} is not an address", "give host:port, such as 127.0.0.1:9187"
        )
    host = parsed[1] or parsed[2]
    try:
        app = _guarded(_app(state, newest, metrics), host)
        server = make_server(host, int(parsed[3]), app, _Server, _Handler)
    except OSError as error:
        what = f"cannot listen on --http {address} ({error.strerror})"
        if error.errno in _TRANSIENT:
            hint = "another process may use the port: give another port, or stop that process"
            raise TransientError(what, hint) from None
        hint = "give an address of this machine, such as 127.0.0.1:9187, or a port above 1023"
        raise UsageError(what, hint) from None
    with no_thread():
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    named = f"[{host}]" if ":" in host else host
    log.info("serving_http", address=f"{named}:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingWSGIServer):
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._slots = threading.BoundedSemaphore(_CLIENTS)
        self._lock = threading.Lock()
        self._deadlines: dict[Any, float] = {}
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # The client is still waiting: without a pause this would spin.
            time.sleep(_NO_DESCRIPTOR_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        self.service_actions()
        if not self._slots.acquire(timeout=_PATIENCE_S):
            self.shutdown_request(request)
            return
        self.give_time(request, _READ_WITHIN_S)
        try:
            super().process_request(request, client_address)
        except BaseException as error:
            self._end(request)
            log.warning("http_refused", why=str(error))
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(request)

    def give_time(self, request: Any, seconds: float) -> None:
        """Cut a connection off if it is not done by then."""
        with self._lock:
            self._deadlines[request] = time.monotonic() + seconds

    def service_actions(self) -> None:
        """Called between clients, and every half second: cut off those whose time is up."""
        now = time.monotonic()
        with self._lock:
            overdue = [request for request, until in self._deadlines.items() if now > until]
        for request in overdue:
            with suppress(OSError):  # it is done meanwhile
                request.shutdown(socket.SHUT_RDWR)

    def _end(self, request: Any) -> None:
        with self._lock:
            del self._deadlines[request]
        self._slots.release()

    def handle_error(self, *_: object) -> None:
        """A client that disconnected or sent nothing is not worth more than a debug line."""
        log.debug("http_failed", why=str(sys.exc_info()[1]))

    def server_bind(self) -> None:
        """Bind without a DNS lookup of the machine's own name, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    server: _Server
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.give_time(self.connection, _ANSWERED_WITHIN_S)
        return parsed

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("http_request", request=format % args)


def _guarded(app: App, host: str) -> App:
    """An application that answers nothing to web pages, and without a traceback if it fails."""

    def guarded(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        if "HTTP_ORIGIN" in environ or site not in ("none", "same-origin"):
            return _text(respond, "403 Forbidden", "pages of other sites are not answered")
        if not _is_ours(environ.get("HTTP_HOST", "localhost"), host):
            text = "ask by an address, by the name of this machine, or by the name in --http"
            return _text(respond, "403 Forbidden", text)
        try:
            return app(environ, respond)
        except Exception as error:
            log.warning("http_refused", why=f"{type(error).__name__}: {error}")
            return _text(respond, "500 Internal Server Error", type(error).__name__)

    return guarded


def _is_ours(asked: str, host: str) -> bool:
    """Whether a client asks for this server: by an address, which no other site has for a name, or
    by a name of ours. A name of somebody else's may lead a browser here (DNS rebinding)."""
    match = _HOST.fullmatch(asked)
    name = match[1].lower().rstrip(".") if match else ""
    with suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    machine = socket.gethostname().lower()
    ours = {"localhost", host.lower().rstrip("."), machine, machine.partition(".")[0]}
    return name in ours or name.endswith(".localhost")


def _app(state: DaemonState, newest: Callable[[], int], metrics: Collector) -> App:
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)

    def app(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "HEAD":
            page(environ | {"REQUEST_METHOD": "GET"}, respond)
            return []
        return page(environ, respond)

    def page(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        well = ["ok"]
        match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
            case "GET", "/metrics":
                found = generate_latest(registry)  # or fail, before anything is answered
                respond("200 OK", [("Content-Type", CONTENT_TYPE_LATEST), *_INERT])
                return [found]
            case "GET", "/healthz":
                wrong = health(newest, state)
            case "GET", "/readyz":
                wrong = health(newest, state) or readiness(newest, state)
                well += held_back(state)
            case "GET", _:
                return _text(respond, "404 Not Found", "there are /metrics, /healthz and /readyz")
            case _:
                allowed = ("Allow", "GET, HEAD")
                text = "GET and HEAD are allowed"
                return _text(respond, "405 Method Not Allowed", text, allowed)
        if wrong:
            return _text(respond, "503 Service Unavailable", wrong)
        return _text(respond, "200 OK", ", ".join(well))

    return app


def _text(respond: Respond, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    respond(status, [("Content-Type", "text/plain"), *_INERT, *headers])
    return [f"{text}\n".encode()]
