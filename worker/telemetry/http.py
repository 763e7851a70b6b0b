"""The HTTP server of `projector run --http`: metrics and two health checks, in its own threads."""

import errno
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from session_projector.worker.errors import TransientError, UsageError
from session_projector.worker.telemetry.probes import health, readiness
from session_projector.worker.telemetry.state import DaemonState

_ADDRESS: Final = re.compile(r"(?:\[([^][/]+)\]|([^][/]+)):([0-9]{1,5})")
_CLIENTS: Final = 32
"""Clients served at the same time; another one waits `_PATIENCE_S`, then it is disconnected."""
_PATIENCE_S: Final = 1.0
_NO_DESCRIPTOR_S: Final = 0.1
"""Pause before accepting a client again after the process had no file descriptor for it."""
_TRANSIENT: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, socket.EAI_AGAIN}

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
Respond = Callable[[str, list[tuple[str, str]]], Any]


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
        server = make_server(host, int(parsed[3]), _app(state, newest, metrics), _Server, _Handler)
    except OSError as error:
        what = f"cannot listen on --http {address} ({error.strerror})"
        if error.errno in _TRANSIENT:
            hint = "another process may use the port: give another port, or stop that process"
            raise TransientError(what, hint) from None
        hint = "give an address of this machine, such as 127.0.0.1:9187, or a port above 1023"
        raise UsageError(what, hint) from None
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
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(
                _NO_DESCRIPTOR_S
            )  # the client is still waiting: without a pause this would spin
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(timeout=_PATIENCE_S):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
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
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("http_request", request=format % args)


def _app(
    state: DaemonState, newest: Callable[[], int], metrics: Collector
) -> Callable[[dict[str, Any], Respond], Iterable[bytes]]:
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    exposition: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def app(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "HEAD":
            page(environ | {"REQUEST_METHOD": "GET"}, respond)
            return []
        return page(environ, respond)

    def page(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
            case "GET", "/metrics":
                return exposition(environ, respond)
            case "GET", "/healthz":
                wrong = health(newest, state)
            case "GET", "/readyz":
                wrong = health(newest, state) or readiness(newest, state)
            case "GET", _:
                return _text(respond, "404 Not Found", "there are /metrics, /healthz and /readyz")
            case _:
                allowed = ("Allow", "GET, HEAD")
                text = "GET and HEAD are allowed"
                return _text(respond, "405 Method Not Allowed", text, allowed)
        return _text(respond, "503 Service Unavailable" if wrong else "200 OK", wrong or "ok")

    return app


def _text(respond: Respond, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    respond(status, [("Content-Type", "text/plain"), *headers])
    return [f"{text}\n".encode()]
