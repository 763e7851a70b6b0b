"""`projector run --http`: Prometheus' metrics and two health checks, in a thread of their own.

What `/metrics` shows is in memory, so that a scrape neither waits for the database nor slows the
tail.
"""

import errno
import platform
import re
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from session_projector.worker.errors import BadUsage, RetryLater
from session_projector.worker.telemetry.probes import health, readiness
from session_projector.worker.telemetry.state import DaemonState, Histogram

_ADDRESS: Final = re.compile(r"(?:\[([^][/]+)\]|([^][/]+)):([0-9]{1,5})")
_CLIENTS: Final = 32
"""Served at once; one more waits for `_PATIENCE_S`, and is then let go."""
_PATIENCE_S: Final = 1.0
_FULL_S: Final = 0.1
"""Between two attempts to take a client in where there is no file descriptor for it."""
_MAY_PASS: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
Respond = Callable[[str, list[tuple[str, str]]], Any]


@contextmanager
def served(address: str, path: Path, state: DaemonState) -> Iterator[None]:
    """Serve on `host:port` for as long as the block lasts; raises `BadUsage`, `RetryLater`."""
    host, port = _parsed(address)
    kind = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, _app(path, state), kind, _Quiet)
    except OSError as error:
        said = f"--http {address} cannot be listened on ({error.strerror})"
        if error.errno in _MAY_PASS or error.errno == socket.EAI_AGAIN:
            hint = "is another process there? give another port, or stop it"
            raise RetryLater(said, hint) from None
        raise BadUsage(
            said, "give an address of this machine, such as 127.0.0.1:9187, or a port above 1023"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    named = f"[{host}]" if ":" in host else host
    log.info("serving_http", address=f"{named}:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(_CLIENTS)
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(_FULL_S)  # the client is still there: without a pause this would spin
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(timeout=_PATIENCE_S):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: object) -> None:
        """A client that went away or said nothing is no event of the daemon's."""
        log.debug("http_failed", why=str(sys.exc_info()[1]))

    def server_bind(self) -> None:
        """Without looking its own host up in DNS, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("http_request", request=format % args)


def _parsed(address: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(address)
    if not found or int(found[3]) > 65535:
        raise BadUsage(f"--http {address} is no address", "give host:port, such as 127.0.0.1:9187")
    return found[1] or found[2], int(found[3])


def _app(path: Path, state: DaemonState) -> Callable[[dict[str, Any], Respond], Iterable[bytes]]:
    registry = CollectorRegistry()
    registry.register(_StateCollector(path, state))
    ProcessCollector(registry=registry)
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            allowed = [("Allow", "GET, HEAD"), ("Content-Type", "text/plain")]
            respond("405 Method Not Allowed", allowed)
            return [b"GET and HEAD are allowed\n"]
        body = page(environ | {"REQUEST_METHOD": "GET"}, respond)
        return body if environ["REQUEST_METHOD"] == "GET" else []

    def page(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                body: Iterable[bytes] = metrics(environ, respond)
                return body
            case "/healthz":
                found = health(path, state)
            case "/readyz":
                found = health(path, state) or readiness(path, state)
            case _:
                respond("404 Not Found", [("Content-Type", "text/plain")])
                return [b"there are /metrics, /healthz and /readyz\n"]
        respond("503 Service Unavailable" if found else "200 OK", [("Content-Type", "text/plain")])
        return [f"{found or 'ok'}\n".encode()]

    return app


class _StateCollector(Collector):
    """A daemon's state as Prometheus' metrics."""

    def __init__(self, path: Path, state: DaemonState) -> None:
        self._wal = path.with_name(path.name + "-wal")
        self._state = state
        self._build = {
            "version": version("session-projector"),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        }

    def collect(self) -> Iterator[Metric]:
        now = self._state.snapshot()
        yield InfoMetricFamily(
            "projector_build", "The version of projector, and of what it runs on.", self._build
        )
        yield from _about_projections(now)
        yield from _about_events(now)
        yield from _about_batches(now)
        yield _gauge(
            "newest_event",
            "The seq of the newest event of the log; it is not there until the log was looked at.",
            now.newest if now.looks else None,
        )
        yield _counter(
            "busy_waits",
            "Turns put off because the database was locked for too long, or had no room.",
            now.unavailable,
        )
        yield _gauge(
            "last_turn_timestamp_seconds",
            "When the tail last looked at the log; it does once a second when idle.",
            now.last_turn_at,
        )
        yield _gauge(
            "standing_by", "1 while another daemon tails, and this one waits.", int(now.standing_by)
        )
        try:
            size = self._wal.stat().st_size
        except OSError:
            size = 0
        yield _gauge("wal_bytes", "The size of the write-ahead log file.", size)


def _about_projections(now: DaemonState) -> Iterator[Metric]:
    """Where they stand is not known to one that stands by."""
    there = [] if now.standing_by else sorted(now.standings)
    yield _by_projection(
        "position",
        "The seq of the last event that a projection has folded, skipped or quarantined.",
        {name: now.standings[name].position for name in there},
    )
    yield _by_projection(
        "lag_events",
        "How far a projection's position is behind the newest event.",
        {name: now.lag_events_of(name) for name in there},
    )
    yield _by_projection(
        "lag_seconds",
        "How old what a projection shows may be; 0 when it has caught up.",
        {name: now.lag_s_of(name) for name in there},
    )
    yield _by_projection(
        "projection_failing",
        "1 while a projection is set aside because its code fails.",
        {name: int(name in now.failing) for name in now.projections},
    )
    yield _by_projection(
        "rebuild_progress_ratio",
        "How far the rebuild of a projection's views is; 1 while there is none.",
        {name: _progress(now.rebuilds.get(name)) for name in now.projections},
    )


def _progress(rebuild: tuple[int, int] | None) -> float:
    if rebuild is None:
        return 1.0
    done, total = rebuild
    return min(done / max(total, 1), 1.0)


def _about_events(now: DaemonState) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "projector_events",
        "Events by what became of them: folded, skipped or quarantined.",
        labels=["projection", "type", "outcome"],
    )
    for labels, count in now.outcomes.items():
        events.add_metric(labels, count)
    yield events
    findings = CounterMetricFamily(
        "projector_verify_findings",
        "Rows that differ from the log, counted whenever --verify-every comes upon them.",
        labels=["projection", "kind"],
    )
    for pair, count in now.findings.items():
        findings.add_metric(pair, count)
    yield findings
    yield _by_projection(
        "verify_last_round_timestamp_seconds",
        "When --verify-every was last through with all views; not there before the first time.",
        now.rounds,
    )


def _about_batches(now: DaemonState) -> Iterator[Metric]:
    yield _histogram("batch_events", "Events in a committed batch.", now.batch_events)
    yield _histogram(
        "batch_duration_seconds", "Time that a batch took, from read to commit.", now.batch_s
    )
    yield _histogram(
        "lock_wait_seconds", "Time that a batch waited for the write lock.", now.lock_wait_s
    )
    yield _histogram("lock_held_seconds", "Time that a batch held the write lock.", now.lock_held_s)
    yield _histogram(
        "wakeup_to_commit_seconds",
        "Time from noticing new events in a quiet log to the commit of their first batch.",
        now.wakeup_s,
    )


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"projector_{name}", text, value=value)


def _by_projection(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(f"projector_{name}", text, labels=["projection"])
    for projection, value in values.items():
        gauge.add_metric([projection], value)
    return gauge


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"projector_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    return HistogramMetricFamily(
        f"projector_{name}", text, buckets=buckets, sum_value=histogram.sum
    )
