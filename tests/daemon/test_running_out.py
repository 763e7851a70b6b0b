"""What runs out or is cut off: the daemon goes on, waits and says so, or ends as documented."""

import fcntl
import http.client
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support import INSERT, PROJECTOR, T0, Daemon, Database, daemon, event, oracle, projector
from support.extensions import PROGRAM, Escaping
from support.served import HTTP, address, get

pytestmark = pytest.mark.once
MIB = 1024 * 1024
LARGE_STACKS = ["bash", "-c", f'ulimit -Ss {256 * 1024}; exec "$@"', "-"]
"""Each thread takes 256 MiB of addresses, so that a limit on these is one on threads."""


# Logs


@contextmanager
def unread(arguments: list[Any]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that writes to a pipe of a page, and the end of it that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    pipes = {"stdin": subprocess.PIPE, "stdout": writer, "stderr": writer}
    with subprocess.Popen(arguments, **pipes) as process:
        os.close(writer)
        try:
            yield process, reader
        finally:
            process.kill()
            os.close(reader)


def test_a_log_that_nobody_reads_holds_up_nothing(database: Database) -> None:
    with unread([*PROJECTOR, "run", "-d", database.url]) as (process, _):
        for number in range(60):  # a batch and a line of some 200 bytes each: 4096 hold a third
            seq = database.created(f"A-{number}")
            while database.position() < seq:
                assert process.poll() is None
                time.sleep(0.005)
        process.send_signal(signal.SIGTERM)

        assert process.wait(30) == 0


CHATTY = """
import pathlib, sys
from session_projector.worker.cli import logging
logging.configure("info", "json", queued=True)
for number in range(5000):
    print("line", number, file=sys.stderr if number % 2 else sys.stdout)
pathlib.Path(sys.argv[1]).touch()
sys.stdin.read()
"""


def test_lines_that_find_no_room_are_counted_and_said(tmp_path: Path) -> None:
    written = tmp_path / "written"
    with unread([sys.executable, "-c", CHATTY, written]) as (process, reader):
        while not written.exists():
            assert process.poll() is None
            time.sleep(0.005)
        assert process.stdin
        process.stdin.close()
        with os.fdopen(reader, closefd=False) as lines:
            found = [*lines]

    kept = [line for line in found if re.fullmatch(r"line \d+\n", line)]
    said = [json.loads(line) for line in found if line not in kept]
    assert {(line["event"], line["level"]) for line in said} == {("log_lines_dropped", "warning")}
    assert len(kept) + sum(line["lines"] for line in said) == 5000
    assert len(kept) < 2500


REPETITIVE = """
import structlog
from session_projector.worker.cli import logging
logging.configure("info", "json", queued=True)
log = structlog.get_logger()
for number in range(5000):
    log.info("repeated", number=number)
log.info("another")
"""


def test_of_what_is_said_over_and_over_some_lines_are_left_out_and_counted() -> None:
    done = subprocess.run([sys.executable, "-c", REPETITIVE], stderr=subprocess.PIPE, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    repeated = [line for line in lines if line["event"] == "repeated"]

    assert [line["number"] for line in repeated[:100]] == [*range(100)]
    assert repeated[-1]["number"] == 4999  # how it ended is said in any case
    assert len(repeated) + sum(line.get("left_out", 0) for line in repeated) == 5000
    assert len(repeated) < 1000
    assert [line["event"] for line in lines].count("another") == 1


# Signals


def test_a_hangup_is_ignored(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        running.process.send_signal(signal.SIGHUP)
        database.created("A-1")
        running.wait_until_at(1)

        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    "module",
    ["session_projector.worker.cli", "typer.main", "structlog", "sqlite3", "anyio", "aiosqlite"],
)
def test_an_interrupt_while_it_starts_is_no_traceback(database: Database, module: str) -> None:
    with subprocess.Popen(
        [*PROJECTOR, "run", "-d", database.url],
        env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.endswith(f" {module}\n"):
                process.send_signal(signal.SIGINT)
                break
        said = [line for line in process.stderr if not line.startswith("import time:")]

    assert process.returncode in (130, 0)  # 0: it had started by then
    assert not [line for line in said if not line.startswith("{")]


# Threads, descriptors, memory


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (f"ulimit -Ss {256 * 1024}; ulimit -v {300 * 1024}", "no thread can be started"),
        ("ulimit -n 9", "no file descriptor is left"),
    ],
)
def test_what_cannot_start_for_want_of_something_may_be_started_again(
    database: Database, limit: str, said: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", f'{limit}; exec "$@"', "-", *PROJECTOR, "run", "-d", database.url],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert done.returncode == 3
    assert json.loads(done.stderr)["why"].startswith(said)


def no_more_threads(pid: int) -> tuple[int, int]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    return resource.RLIMIT_AS, used + 200 * MIB


def no_more_descriptors(pid: int) -> tuple[int, int]:
    return resource.RLIMIT_NOFILE, 1 + max(map(int, os.listdir(f"/proc/{pid}/fd")))


@contextmanager
def limited(running: Daemon, limit: Callable[[int], tuple[int, int]]) -> Iterator[None]:
    pid = running.process.pid
    kind, value = limit(pid)
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        (no_more_threads, "no thread can be started"),
        (no_more_descriptors, "no file descriptor is left"),
    ],
)
def test_what_has_run_out_while_it_runs_is_waited_for_where_it_is_needed(
    database: Database, limit: Callable[[int], tuple[int, int]], why: str
) -> None:
    options = [*HTTP, "--projection", "support.extensions:PerProject"]
    projector("run", "--once", *options[2:], "-d", database.url)
    database.refuse("per_project", "no more")
    with daemon(database.url, program=[*LARGE_STACKS, *PROGRAM], options=options) as running:
        url = address(running)
        running.wait_for("started")
        # Before any thread has ended: what it leaves would be enough for another.
        with limited(running, limit), ExitStack() as clients:
            database.created("A-1")
            said = running.wait_for("database_unavailable", projection="per_project")
            database.created("A-2", "x" * 2 * MIB)  # whose write-ahead log a thread would copy
            projector("wait", "--projection", "sessions", "-d", database.url)
            host, port = url.removeprefix("http://").split(":")
            for _ in range(40):  # more than there are slots, and none of them may be lost
                client = socket.create_connection((host, int(port)))
                clients.enter_context(closing(client))
                client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
                if limit is no_more_threads:
                    assert client.recv(1) == b""
        database.admit("per_project")
        running.wait_for("database_available_again")
        projector("wait", "-d", database.url)
        healthy = get(f"{url}/healthz")
        ended = running.stop(signal.SIGTERM)

    assert why in said["why"]
    assert healthy == (200, "ok\n")
    assert database.sql("SELECT sessions FROM per_project") == [(2,)]
    assert len(database.views()) == 2
    assert ended == 0


LITTLE_MEMORY = """
import sys
from session_projector.worker.errors import DatabaseUnavailable
from session_projector.worker.storage import open as storage
with storage.database(sys.argv[1]).open() as store:
    store.connection.raw.execute("PRAGMA hard_heap_limit = 500000")
    try:
        store.log.page(start=0, until=9)
    except DatabaseUnavailable as error:
        print(error)
"""


@pytest.mark.sqlite
def test_a_lack_of_memory_in_sqlite_is_one_that_is_waited_for(database: Database) -> None:
    database.created("A-1", "x" * 2 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, database.path], stdout=subprocess.PIPE, check=True
    )

    told = "too little memory to read the events from position 0 on"
    assert done.stdout.decode() == f"{database.path}: {told}\n"


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.sqlite
def test_no_room_for_temporary_files_is_waited_for(
    database: Database, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLITE_TMPDIR", str(small_folder))
    with closing(sqlite3.connect(database.path)) as connection, connection:
        for number in range(4000):  # in turns, and under both spellings of the key
            key = f"{'session:' * (number // 500 % 2)}{number % 500}-{'k' * 1000}"
            kind, data = "session_append", {"messages": [{"role": "user", "content": "x"}]}
            if number < 500:
                kind, data = "session_created", {"project": "P"}
            row = (f"e{number}", key, msgpack.packb(event(kind, data)), T0)
            connection.execute(INSERT, row)
    with daemon(database.url) as running:
        said = running.wait_for("database_unavailable")
        refused = projector("run", "--once", "-d", database.url, check=None)
        subprocess.run(["mount", "-o", "remount,size=64m", small_folder], check=True)
        projector("wait", "-d", database.url)

    assert "disk is full" in said["why"]
    assert "$SQLITE_TMPDIR" in said["hint"]
    assert refused.returncode == 3
    assert database.views() == oracle.fold(database.log()).views


# Projections


def test_whatever_a_projection_raises_is_its_own_failure(database: Database) -> None:
    options = ["--projection", "support.extensions:Escaping"]
    with daemon(database.url, options=options) as running:
        running.wait_for("started")
        for number, project in enumerate(["cancelled", "ended", "closed", "P"]):
            database.created(f"A-{number}", project=project)
        projector("wait", "-d", database.url)
        database.created("B-1", project="interrupted")
        said = running.wait_for("projection_failed")
        projector("wait", "--projection", "sessions", "-d", database.url)
        assert running.stop(signal.SIGTERM) == 0

    assert said["why"].startswith("per_project: KeyboardInterrupt in ")
    line = Escaping.fold.__code__.co_firstlineno + 2
    assert [*database.quarantine().values()] == [
        f"a fault in the code of the projection: {name} in extensions.py, line {line}, fold()"
        for name in ("CancelledError", "SystemExit", "GeneratorExit")
    ]
    assert len(database.views()) == 5


@pytest.mark.parametrize(
    ("project", "name"), [("cancelled", "CancelledError"), ("interrupted", "KeyboardInterrupt")]
)
def test_whatever_it_raises_of_no_event_sets_it_aside(
    database: Database, project: str, name: str
) -> None:
    options = ["--projection", "support.extensions:EscapingLater"]
    database.created("A-1", project=project)
    once = projector("run", "--once", *options, "-d", database.url, check=4)
    with daemon(database.url, options=options) as running:
        said = running.wait_for("projection_failed")
        database.created("A-2")
        projector("wait", "--projection", "sessions", "-d", database.url)
        assert running.stop(signal.SIGTERM) == 0

    assert f'"why": "per_project: {name} in ' in once.stderr
    assert said["why"].startswith(f"per_project: {name} in ")
    assert len(database.views()) == 2


# HTTP


def test_clients_that_send_a_byte_now_and_then_shut_nobody_out(database: Database) -> None:
    def drip() -> None:
        while not ends.wait(0.1):
            for client in clients:
                with suppress(OSError):
                    client.send(b"a")

    with daemon(database.url, options=HTTP) as running, ExitStack() as stack:
        url = address(running)
        host, port = url.removeprefix("http://").split(":")
        clients = [
            stack.enter_context(closing(socket.create_connection((host, int(port)))))
            for _ in range(32)
        ]
        for client in clients:
            client.send(b"GET /healthz HTTP/1.1\r\nX: ")
        ends = threading.Event()
        dripping = threading.Thread(target=drip)
        dripping.start()
        cut_off = {client.recv(1) for client in clients}
        answers = {get(f"{url}/metrics")[0] for _ in range(32)}
        ends.set()
        dripping.join()

    assert cut_off == {b""}
    assert answers == {200}


def asked(url: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    with closing(connection):
        connection.putrequest("GET", "/metrics", skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_no_accept_header_is_an_error(database: Database) -> None:
    odd = ["application/openmetrics-text;version=x", ";;;", "a/b;q=x", "*/*;q=0.1,", "\xff"]
    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        found = [asked(url, Accept=accept) for accept in odd]

    assert {status for status, _ in found} == {200}
    assert all("projector_standing_by 0.0" in page for _, page in found)


def test_a_web_page_cannot_tell_by_its_loading_which_answer_it_got(database: Database) -> None:
    """A browser says which site a page is of only to addresses that it trusts: not on a network."""
    with daemon(database.url, options=HTTP) as running:
        host = address(running).removeprefix("http://")
        for page in ("/metrics", "/healthz", "/absent"):
            with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
                connection.request("GET", page)
                found = connection.getresponse().headers

            assert found["X-Content-Type-Options"] == "nosniff"
            assert found["Cross-Origin-Resource-Policy"] == "same-origin"
            assert found["X-Frame-Options"] == "DENY"


def test_a_web_page_gets_nothing(database: Database) -> None:
    with daemon(database.url, options=["--http", "localhost:0"]) as running:
        url = address(running)
        port = url.rpartition(":")[2]
        ours = ["localhost", "127.0.0.1", "[::1]", "LocalHost.", socket.gethostname()]
        names = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a, b"]
        answered = {asked(url, Host=f"{name}:{port}")[0] for name in ours}
        refused = [asked(url, Host=f"{name}:{port}") for name in names]
        refused += [
            asked(url, Origin="http://evil.example"),
            asked(url, Origin="null"),
            asked(url, Sec_Fetch_Site="cross-site"),
        ]
        by_hand = asked(url, Sec_Fetch_Site="none")[0]

    assert answered == {200}
    assert by_hand == 200
    assert {status for status, _ in refused} == {403}
    assert not any("projector_" in page for _, page in refused)
