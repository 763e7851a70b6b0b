"""What systemd is told, over a real socket; and `projector health`."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROJECTOR, Database, daemon, fill, projector
from support.folding import target


class Listener:
    """systemd's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.program = ["/usr/bin/env", f"NOTIFY_SOCKET={path}", "WATCHDOG_USEC=400000", *PROJECTOR]
        self.lines: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)

    def wait_for(self, start: str) -> str:
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            self.lines += lines
            for line in lines:
                if line.startswith(start):
                    return line


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "notify")
    yield listener
    listener.socket.close()


def test_ready_is_said_once_it_has_caught_up_and_then_every_turn_feeds_the_watchdog(
    database: Database, systemd: Listener
) -> None:
    fill(database, sessions=100, events=3000)
    with daemon(database.url, program=systemd.program) as running:
        systemd.wait_for("READY=1")
        ready = [*systemd.lines]
        for _ in range(4):  # idle
            systemd.wait_for("WATCHDOG=1")
        newest = database.created("A-1")
        systemd.wait_for(f"STATUS=position {newest}, lag 0 events")
        running.process.send_signal(signal.SIGTERM)
        systemd.wait_for("STOPPING=1")

    assert ready[0].startswith("STATUS=position ")
    assert ready[1].startswith("EXTEND_TIMEOUT_USEC=")
    assert systemd.lines.count("READY=1") == 1


def test_ready_is_said_no_earlier_where_the_catch_up_is_a_walk(
    database: Database, systemd: Listener
) -> None:
    fill(database, sessions=6500, events=13_000)
    with daemon(database.url, program=systemd.program):
        systemd.wait_for("READY=1")
        positions = database.sql("SELECT position FROM checkpoint")

    assert any("is being rebuilt" in line for line in systemd.lines)
    assert positions == [(13_000,), (13_000,)]


def test_one_that_stands_by_is_ready_and_says_so(database: Database, systemd: Listener) -> None:
    with daemon(database.url) as first:
        first.wait_for("started")
        with daemon(database.url, program=systemd.program):
            systemd.wait_for("STATUS=standing by")
            systemd.wait_for("WATCHDOG=1")
            first.process.send_signal(signal.SIGSTOP)
            fill(database, sessions=100, events=5000)
            first.stop(signal.SIGKILL)
            systemd.wait_for("STATUS=position 5000, lag 0 events")

    assert systemd.lines.count("READY=1") == 1
    assert not any(line.startswith("EXTEND_TIMEOUT_USEC") for line in systemd.lines)


def test_waiting_for_a_lock_feeds_the_watchdog(database: Database, systemd: Listener) -> None:
    with daemon(database.url, program=systemd.program) as running:
        systemd.wait_for("READY=1")
        running.process.send_signal(signal.SIGSTOP)
        database.created("A-1")
        with database.locked():
            running.process.send_signal(signal.SIGCONT)
            database_is_locked = running.wait_for("database_unavailable")
            for _ in range(2):
                systemd.wait_for("WATCHDOG=1")
        running.wait_for("database_available_again")

    assert database_is_locked


@pytest.mark.once
def test_a_frozen_loop_feeds_nothing(database: Database, systemd: Listener) -> None:
    with daemon(database.url, program=systemd.program) as running:
        systemd.wait_for("WATCHDOG=1")
        running.process.send_signal(signal.SIGSTOP)
        systemd.socket.setblocking(False)
        try:
            while True:
                systemd.socket.recv(4096)
        except BlockingIOError:
            pass
        systemd.socket.settimeout(2)
        with pytest.raises(TimeoutError):
            systemd.socket.recv(4096)


def test_health_is_a_line_and_an_exit_code(database: Database) -> None:
    absent = projector("health", "-d", database.url, check=1).stdout
    database.created("A-1")
    with daemon(database.url) as running:
        running.wait_for("batch_committed")
        well = projector("health", "-d", database.url).stdout
        running.process.send_signal(signal.SIGSTOP)
        database.created("A-2")
        stuck = projector("health", "-d", database.url, check=1).stdout
        running.process.send_signal(signal.SIGCONT)

    assert absent == f"no daemon is alive: start one: `projector run -d {database.named}`\n"
    assert well == f"process {running.process.pid}, position 1, newest event 1\n"
    pid = running.process.pid
    resume = f"resume it, as no other takes over from it: `kill -CONT {pid}`\n"
    assert stuck == f"the daemon (process {pid}) is suspended (SIGSTOP): {resume}"


def test_health_says_what_is_wrong_with_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"no database at all" * 100)
    said = [
        projector("health", "-d", tmp_path / name, check=1).stdout
        for name in ("absent.db", "", "junk.db")
    ]

    assert [line.count("\n") for line in said] == [1, 1, 1]
    assert f"there is no database at {tmp_path}/absent.db: create it with `projector db " in said[0]
    assert f"{tmp_path} is not a file: give the path of a SQLite file" in said[1]
    assert f"{tmp_path}/junk.db is damaged or not a SQLite database" in said[2]


@pytest.mark.parametrize(
    ("state", "minutes_ago", "said"),
    [
        ("failed", 0, "a projection is failing: sessions: it is odd: "),
        ("rebuilding", 6, "the rebuild of sessions made no progress for 36"),
        ("rebuilding", 0, "all views are being rebuilt"),
    ],
)
def test_health_tells_a_rebuild_from_one_that_fails_or_stays(
    database: Database, state: str, minutes_ago: float, said: str
) -> None:
    database.created("A-1")
    projector("run", "--once", "-d", database.url)
    database.sql("UPDATE checkpoint SET version = -1")
    at_ms = int(time.time() - 60 * minutes_ago) * 1000
    why = "sessions: it is odd"
    row = ("sessions", state, 1, why, 0, 1, at_ms, at_ms)
    database.sql(f"INSERT INTO projection_state VALUES ({', '.join('?' * len(row))})", *row)
    leadership = target(database.url).leadership({"sessions": 1, "session_index": 1})
    assert leadership.acquire()

    found = projector("health", "-d", database.url, check=int(said.startswith(("a p", "the r"))))

    leadership.release()
    assert said in found.stdout


def test_health_tells_of_a_projection_that_fails(database: Database) -> None:
    database.created("A-1")
    options = ["--projection", "support.extensions:Broken"]
    with daemon(database.url, options=options) as running:
        running.wait_for("projection_failed")
        projector("wait", "--projection", "sessions", "-d", database.url)
        said = projector("health", "-d", database.url, check=1).stdout

    assert "a projection is failing: per_project: ZeroDivisionError" in said
