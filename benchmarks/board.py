"""Benchmark of how soon a committed event is in the page of a board that is open in a browser, and
of what a board with many streams costs.

What notes it in the page looks only at the text of nodes that are added. Its clock and that of the
writer, this process, are the machine's. It needs Chromium and Playwright (the extra `dev`).
"""

import multiprocessing
import os
import selectors
import socket
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import workload
from latency import ping_pong
from measure import PROJECTOR, Daemon, Figure, Options, cpu_s, daemon, memory_mib, quantile
from playwright.sync_api import sync_playwright
from throughput import filled
from workload import INSERT, Log

CHROMIUM: Final = os.environ.get("PROJECTOR_TEST_CHROMIUM", "/usr/bin/chromium")
SESSIONS: Final = Log(1000, 1000, "interleaved")
MESSAGES: Final = 10_000
CLIENTS: Final = 50
EVERY_S: Final = 0.05
P50_MS: Final = 10.0
P99_MS: Final = 40.0
_WATCH: Final = """() => {
  window.seen = {};
  new MutationObserver((changes) => {
    const at = performance.timeOrigin + performance.now();
    for (const { addedNodes } of changes)
      for (const node of addedNodes)
        for (const [mark] of node.textContent.matchAll(/mark-\\d+/g)) window.seen[mark] ??= at;
  }).observe(document.body, { childList: true, subtree: true });
}"""


def shown(options: Options) -> Iterator[Figure]:
    """Measure 20 events/s: a new session on the board, and a message in an open session."""
    messages = MESSAGES // (100 if options.quick else 1)
    pages = {
        f"the board of {SESSIONS.sessions:,} sessions": "/",
        f"an open session of {messages:,} messages": "/session?id=S-0",
    }
    for name, address in pages.items():
        runs = [_delays_ms(address, messages, options) for _ in range(options.runs)]
        p99 = [quantile(run, 0.99) for run in runs]
        yield Figure(f"commit → {name}: p50", "ms", [*map(statistics.median, runs)], P50_MS)
        yield Figure(f"commit → {name}: p99", "ms", p99, P99_MS)
    yield from streamed(options)


def streamed(options: Options) -> Iterator[Figure]:
    """Measure what 20 events/s cost a board with 50 streams, and the daemon beside it."""
    count = 20 if options.quick else 400
    shares, memory, alone, beside = [], [], [], []
    for _ in range(options.runs):
        path = workload.copied(filled(SESSIONS, options), options.folder / "run.db")
        with daemon(path) as running:
            running.caught_up(SESSIONS.events)
            alone.append(statistics.median(ping_pong(path, count, "a", EVERY_S)))
            with _board(path) as (url, pid), _clients(url, CLIENTS):
                ping_pong(path, 20, "b", EVERY_S)
                before, at = cpu_s(pid), time.monotonic()
                beside.append(statistics.median(ping_pong(path, count, "c", EVERY_S)))
                shares.append((cpu_s(pid) - before) / (time.monotonic() - at) * 100)
                memory.append(memory_mib(pid, "VmHWM"))
    yield Figure(f"a board with {CLIENTS} streams: processor", "%", shares, 10)
    yield Figure(f"a board with {CLIENTS} streams: peak memory", "MiB", memory, 80)
    worse = [with_it - without for with_it, without in zip(beside, alone, strict=True)]
    yield Figure("commit → visible at 20/s, no board: p50", "ms", alone)
    yield Figure(f"commit → visible, later beside {CLIENTS} streams by", "ms", worse, 0.5)


@contextmanager
def _clients(url: str, count: int) -> Iterator[None]:
    """Streams that a process of its own reads."""
    reading = multiprocessing.get_context("fork").Process(target=_read_streams, args=(url, count))
    reading.start()
    try:
        yield
        if not reading.is_alive():
            raise ConnectionError("the streams were not read to the end")
    finally:
        reading.terminate()
        reading.join()


def _read_streams(url: str, count: int) -> None:
    where = urlsplit(url)
    request = f"GET /api/v1/changes HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode()
    with selectors.DefaultSelector() as open_ones:
        for _ in range(count):
            stream = socket.create_connection((where.hostname, where.port))
            stream.sendall(request)
            open_ones.register(stream, selectors.EVENT_READ, stream)
        while True:
            for key, _ in open_ones.select():
                if not key.data.recv(65536):
                    raise ConnectionError("the board ended a stream")


def _delays_ms(address: str, messages: int, options: Options) -> list[float]:
    """How long each of some events took from its commit into the page."""
    path = workload.copied(filled(SESSIONS, options), options.folder / "run.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for number in range(messages):
            made = workload.event(0, 950, number, created=False)
            _insert(connection, f"m{number}", "S-0", made)
        connection.execute("COMMIT")
        position = SESSIONS.events + messages
        with daemon(path) as running, _board(path) as (url, _), _page(url + address) as page:
            running.caught_up(position)
            page.reload()
            page.wait_for_selector(".card, .message")
            page.evaluate(_WATCH)
            count = 10 if options.quick else 300
            commits = [*_commits(connection, count, to_session=address != "/")]
            seen = _seen(page, running, position + count, count)
    workload.check(path, index=False)
    late = commits[count // 10 :]  # not those that come while the page is still being drawn
    return [max(seen[mark] - at, 0.0) for mark, at in late]


def _commits(
    connection: sqlite3.Connection, count: int, *, to_session: bool
) -> Iterator[tuple[str, float]]:
    """Write events, one every `EVERY_S`; yields what is to be seen of each, and when it was
    committed, in milliseconds since the epoch."""
    for number in range(count):
        mark = f"mark-{number}"
        said = {"messages": [{"role": "user", "content": mark}]}
        session, kind = ("S-0", "session_append") if to_session else (mark, "session_created")
        made = {"type": kind, "data": said if to_session else {"project": "bench", **said}}
        _insert(connection, mark, session, made)
        yield mark, time.time() * 1000
        time.sleep(EVERY_S)


def _insert(connection: sqlite3.Connection, name: str, session: str, made: dict[str, Any]) -> None:
    now = int(time.time() * 1000)
    connection.execute(INSERT, (name, f"session:{session}", msgspec.msgpack.encode(made), now))


def _seen(page: Any, running: Daemon, position: int, count: int) -> dict[str, float]:
    """When each event was seen, once all were."""
    running.caught_up(position)
    give_up = time.monotonic() + 10
    while len(seen := page.evaluate("window.seen")) < count:
        if time.monotonic() > give_up:
            raise TimeoutError(f"{count - len(seen)} events were not seen")
        time.sleep(0.1)
    return dict(seen)


@contextmanager
def _board(path: Path) -> Iterator[tuple[str, int]]:
    """The address of a board on a database, and its process."""
    command = [*PROJECTOR, "board", "-d", str(path), "--listen", "127.0.0.1:0", "--no-token"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running.stdout.readline().split()[0], running.pid
        finally:
            running.terminate()


@contextmanager
def _page(url: str) -> Iterator[Any]:
    """A page in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        yield page
        browser.close()
