"""`projector run` as its own process, beside writers that know nothing of it."""

import itertools
import json
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from support import INSERT, PROJECTOR, T0, Database, daemon, event, fill, oracle, projector

SHELL = shutil.which("sqlite3")


def test_a_raw_insert_becomes_a_view_and_a_stop_is_clean(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        database.created("A-1", "one")
        running.wait_until_at(1)
        database.appended("A-1", "two")
        running.wait_until_at(2)

        assert database.contents("A-1") == ["one", "two"]
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.sqlite
@pytest.mark.skipif(SHELL is None, reason="needs the sqlite3 shell")
def test_an_insert_from_the_sqlite3_shell_shows_up_within_a_second(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        subprocess.run(
            [
                str(SHELL),
                "-cmd",
                ".timeout 5000",
                database.path,
                "INSERT INTO event_log (id, key, data, created_at) VALUES ('sh-1', 'session:A-1',"
                " json_object('type', 'session_created', 'data', json_object('project', 'A')),"
                " unixepoch())",
            ],
            check=True,
        )
        written = time.time()
        running.wait_until_at(1)

        assert time.time() - written < 1
        assert database.view("A-1")["project"] == "A"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_catching_up_ends_after_the_batch_in_hand(
    database: Database, number: int
) -> None:
    fill(database, sessions=50, events=12_000)
    with daemon(database.url) as running:
        running.wait_for("batch_committed")

        assert running.stop(number) == 0
        assert database.position() > 0

    projector("run", "--once", "-d", database.url)
    assert database.views() == oracle.fold(database.log()).views


def test_killed_again_and_again_under_writers_it_loses_and_doubles_nothing(
    database: Database,
) -> None:
    writers: list[subprocess.Popen[bytes]] = []

    def is_written() -> bool:
        return any(writer.poll() is None for writer in writers)

    for numbers in ("01", "23"):
        writers = [database.writer(number) for number in numbers]
        try:
            while is_written():
                before = database.position()
                with daemon(database.url) as running:
                    while database.position() == before and is_written():
                        time.sleep(0.001)
                    running.stop(signal.SIGKILL)
        finally:
            for writer in writers:
                writer.wait()
    projector("run", "--once", "-d", database.url)

    assert database.sql("SELECT count(*) FROM event_log") == [(4 * 300,)]
    assert database.views() == oracle.fold(database.log()).views
    assert not database.quarantine()


def test_an_absent_database_is_refused_and_not_made(tmp_path: Path) -> None:
    refused = projector("run", "-d", tmp_path / "typo.db", check=4)

    assert f"projector db setup -d {tmp_path}/typo.db" in refused.stderr
    assert not any(tmp_path.iterdir())


def test_create_makes_an_absent_database(tmp_path: Path) -> None:
    projector("run", "--once", "--create", "-d", tmp_path / "new.db")

    assert Database(tmp_path / "new.db").position() == 0


def test_a_second_daemon_stands_by_and_takes_over(database: Database) -> None:
    with daemon(database.url) as first:
        first.wait_for("started")
        with daemon(database.url) as second:
            second.wait_for("standing_by", daemon_pid=first.process.pid)
            assert all(line["event"] != "lock_held" for line in second.lines)  # it is seen by whom
            first.stop(signal.SIGKILL)
            second.wait_for("started")
            database.created("A-1")
            second.wait_until_at(1)

            assert second.stop(signal.SIGTERM) == 0


def test_a_daemon_standing_by_stops_when_told(database: Database) -> None:
    with daemon(database.url) as first:
        first.wait_for("started")
        with daemon(database.url) as second:
            second.wait_for("standing_by")

            assert second.stop(signal.SIGTERM) == 0


def test_run_once_beside_a_daemon_keeps_every_view_exact(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        for number in range(8):
            database.created(f"A-{number}", "one")
            projector("run", "--once", "-d", database.url)
        running.stop(signal.SIGTERM)

    assert database.position() == 8
    assert database.views() == oracle.fold(database.log()).views


@pytest.mark.sqlite
def test_two_daemons_without_the_lock_keep_every_view_exact(database: Database) -> None:
    lock = database.path.with_name("local.db-projector.lock")
    with daemon(database.url) as first:
        first.wait_for("started")
        first.suspend()  # so that it does not take the lock again first
        lock.unlink()
        with daemon(database.url) as second:
            second.wait_for("started")
            first.process.send_signal(signal.SIGCONT)
            for number in range(200):
                if number < 5:
                    database.created(f"A-{number}")
                else:
                    database.appended(f"A-{number % 5}", str(number))
            projector("run", "--once", "-d", database.url)
            first.wait_for("leadership_lost")
            first.wait_for("standing_by", daemon_pid=second.process.pid)
            assert first.stop(signal.SIGTERM) == second.stop(signal.SIGTERM) == 0

    assert database.views() == oracle.fold(database.log()).views
    assert database.position() == 200


def test_a_lock_held_by_others_is_waited_out(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        database.created("A-1")
        running.wait_until_at(1)
        # Halted, so that it does not commit between the two transactions.
        running.suspend()
        database.insert("A-1", event("session_append", {"messages": [{"role": "user"}]}))
        with database.locked():
            running.process.send_signal(signal.SIGCONT)
            running.wait_for("database_unavailable")
        running.wait_for("database_available_again")

        assert len(database.view("A-1")["messages"]) == 1
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.sqlite
def test_a_replaced_file_with_nothing_left_of_it_ends_it_with_exit_3(
    database: Database, tmp_path: Path
) -> None:
    projector("db", "setup", "-d", tmp_path / "new.db")
    with daemon(database.url) as running:
        database.created("A-1")
        running.wait_for("batch_committed")  # before that it writes its checkpoints
        while database.sql("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
            pass  # it reads
        os.replace(tmp_path / "new.db", database.path)

        _, said = running.process.communicate(timeout=10)
        assert running.process.returncode == 3
        assert "was replaced or deleted" in said


@pytest.mark.sqlite
def test_a_deleted_file_ends_a_busy_daemon_and_one_standing_by_with_exit_4(
    database: Database,
) -> None:
    with daemon(database.url) as first:
        first.wait_for("started")
        with daemon(database.url) as second:
            second.wait_for("standing_by")
            with closing(sqlite3.connect(database.path, isolation_level=None)) as writer:
                for number in itertools.count():  # the dead file goes on growing
                    writer.execute(INSERT, (f"d{number}", "A-1", b"\xc0", T0))
                    if number == 0:
                        database.path.unlink()
                    if first.process.poll() is not None:
                        break

            assert first.process.returncode == 4
            assert second.process.wait(timeout=10) == 4


def test_verify_every_says_what_it_finds_in_the_background(database: Database) -> None:
    fill(database, sessions=20, events=40)
    projector("run", "--once", "-d", database.url)
    database.sql("UPDATE view SET data = x'80' WHERE key = 'session:F-7'")
    with daemon(database.url, options=["--verify-every", "0.01"]) as running:
        found = running.wait_for("difference_found", kind="damaged", key="session:F-7")
        again = running.wait_for("views_differ", projection=found["projection"])
        database.created("A-1")
        running.wait_until_at(41)
        assert running.stop(signal.SIGTERM) == 0

    assert (again["level"], again["found"]) == ("warning", 1)
    assert database.sql("SELECT data FROM view WHERE key = 'session:F-7'") == [(b"\x80",)]


def test_verify_every_tells_a_row_once_and_when_it_agrees_again(database: Database) -> None:
    fill(database, sessions=20, events=40)
    projector("run", "--once", "-d", database.url)
    ((data,),) = database.sql("SELECT data FROM view WHERE key = 'session:F-7'")
    database.sql("UPDATE view SET data = x'80' WHERE key = 'session:F-7'")
    options = ["--verify-every", "0.01", "--log-level", "debug"]
    with daemon(database.url, options=options) as running:
        said = [running.wait_for("views_differ")["level"] for _ in range(3)]
        database.sql("UPDATE view SET data = ? WHERE key = 'session:F-7'", data)
        running.wait_for("views_agree_again", projection="sessions")
        database.sql("UPDATE view SET data = x'80' WHERE key = 'session:F-7'")
        running.wait_for("difference_found", key="session:F-7")

    assert said == ["warning", "debug", "debug"]
    assert [line["event"] for line in running.lines].count("difference_found") == 2


def test_verify_every_says_once_that_it_is_put_off(database: Database) -> None:
    fill(database, sessions=20, events=40)
    projector("run", "--once", "-d", database.url)
    options = ["--verify-every", "0.01", "--log-level", "debug"]
    with daemon(database.url, options=options) as running:
        running.wait_until_at(database.created("A-1"))  # a table gone at the start is created again
        running.wait_for("verified")
        database.sql("ALTER TABLE session_index RENAME TO hidden")
        said = [running.wait_for("verify_put_off", projection="session_index") for _ in range(2)]
        database.sql("ALTER TABLE hidden RENAME TO session_index")
        over = running.wait_for("verify_resumed", projection="session_index")

    assert [line["level"] for line in said] == ["warning", "debug"]
    assert said[0]["why"]
    assert over["failures"] >= 2


@pytest.mark.once
@pytest.mark.parametrize("odd", ["inf", "nan"])
def test_verify_every_wants_a_number_of_seconds(database: Database, odd: str) -> None:
    said = projector("run", "--verify-every", odd, "-d", database.url, check=2).stderr

    assert "--verify-every" in said


def test_logs_are_json_without_a_terminal_and_never_hold_contents(database: Database) -> None:
    database.created("A-1", "a secret")
    database.insert("A-1", {"type": "session_append", "data": "another secret"})

    said = projector("run", "--once", "-d", database.url).stderr

    assert '"event": "batch_committed"' in said
    assert "secret" not in said


@pytest.mark.once
def test_log_level_and_format(database: Database) -> None:
    database.created("A-1")
    quiet = projector("run", "--once", "-d", database.url, "--log-level", "error").stderr
    database.created("A-2")
    readable = projector("run", "--once", "-d", database.url, "--log-format", "console").stderr

    assert quiet == ""
    assert "batch_committed" in readable
    assert not readable.startswith("{")


def test_the_first_line_says_what_runs_where(database: Database) -> None:
    with daemon(database.url) as running:
        said = running.wait_for("started")

    assert (said["pid"], said["host"]) == (running.process.pid, socket.gethostname())
    assert said["version"] == version("session-projector")
    (engine,) = {"sqlite", "postgresql"} & said.keys()
    assert said[engine][0].isdigit()


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "code", "why", "hint"),
    [
        (["--bogus"], 2, "No such option: --bogus", "`projector run --help"),
        (["--verify-every", "nan"], 2, "--verify-every nan is not", "give one, such as 1"),
        (["-d", "/no/such.db"], 4, "there is no database at /no/such.db", "projector db setup -d"),
        (["--once", "-d", "/no/such.db"], 4, "there is no database at", "projector db setup -d"),
    ],
)
def test_what_ends_it_is_a_line_of_its_log(
    database: Database, arguments: list[str], code: int, why: str, hint: str
) -> None:
    environment = {**os.environ, "PROJECTOR_DATABASE": database.url}
    done = projector("run", *arguments, env=environment, check=code)
    command = [*PROJECTOR, "run", *arguments]
    leader, follower = os.openpty()
    subprocess.run(command, stderr=follower, env=environment, check=False)
    os.close(follower)
    shown = os.read(leader, 4096).decode()
    os.close(leader)

    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["event"], line["level"], line["exit_code"]) == ("run_failed", "critical", code)
    assert why in line["why"]
    assert hint in line["hint"]
    assert why in shown
    assert "{" not in shown


@pytest.mark.once
def test_what_a_retry_may_cure_is_no_critical_line(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = projector("run", "--http", address, "-d", database.url, check=3)

    line = json.loads(done.stderr.splitlines()[-1])
    assert (line["event"], line["level"], line["exit_code"]) == ("run_failed", "error", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stop_during_the_first_walk_over_an_adopted_log_leaves_it_to_the_next(
    database: Database, number: int
) -> None:
    fill(database, sessions=3000, events=6000)
    database.sql("INSERT INTO view VALUES ('x', 'session:F-0', x'80', 'x', 1, 1)")
    with daemon(database.url) as running:
        running.wait_for("started")
        while not len(database.views()) > 100:
            time.sleep(0.01)
        assert running.stop(number) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        assert database.position() == 0

    projector("run", "--once", "-d", database.url)
    assert database.views() == oracle.fold(database.log()).views
    assert database.quarantine() == {}


def test_a_stop_is_obeyed_while_the_walk_finds_nothing_to_change(database: Database) -> None:
    fill(database, sessions=3000, events=3000)
    projector("run", "--once", "-d", database.url)
    database.sql("UPDATE checkpoint SET position = 0, digest = '', skipped = 0")
    with daemon(database.url) as running:
        running.wait_for("started")
        assert running.stop(signal.SIGTERM) == 0
        assert not [line for line in running.lines if line["event"] == "batch_committed"]


def test_run_once_beside_a_busy_daemon_takes_its_progress_for_its_own(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        writer = database.writer("0")
        while writer.poll() is None:
            projector("run", "--once", "-d", database.url)
        running.stop(signal.SIGTERM)
    projector("run", "--once", "-d", database.url)

    assert database.views() == oracle.fold(database.log()).views


@pytest.mark.once
def test_logs_that_cannot_be_written_stop_nothing(database: Database) -> None:
    with open("/dev/full", "w") as full:
        for number in range(2):
            database.created(f"A-{number}")
            done = subprocess.run(
                [*PROJECTOR, "run", "--once", "-d", database.url], stderr=full, check=False
            )
            assert done.returncode == 0

    assert database.position() == 2


def memory_of(pid: int, what: str) -> int:
    """In KiB: `VmRSS` is what a process has now, `VmHWM` the most that it ever had."""
    status = Path(f"/proc/{pid}/status").read_text().split()
    return int(status[status.index(f"{what}:") + 1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is asked of glibc")
def test_the_memory_that_large_batches_took_is_given_back_when_nothing_comes(
    database: Database,
) -> None:
    with daemon(database.url) as running:
        running.wait_until_at(database.created("A-1"))
        pid = running.process.pid
        before = memory_of(pid, "VmRSS")
        running.wait_until_at(database.created("B-1", *["x" * 1024 * 1024] * 12))
        running.wait_until_at(database.created("B-2", *["x" * 1024 * 1024] * 12))
        most = memory_of(pid, "VmHWM")
        while memory_of(pid, "VmRSS") > (before + most) / 2:
            time.sleep(0.05)

    assert most > before + 50 * 1024


def test_a_projection_that_is_new_catches_up_alone_and_joins(database: Database) -> None:
    fill(database, sessions=20, events=2000)
    projector("run", "--once", "-d", database.url)
    projector("projection", "drop", "session_index", "--yes", "-d", database.url)
    with daemon(database.url) as running:
        running.wait_for("started")
        database.created("A-1")
        running.wait_for("caught_up", projection="session_index")
        seq = database.created("A-2")
        while running.wait_for("batch_committed")["position"] < seq:
            pass
        together = running.lines[-1]
        running.stop(signal.SIGTERM)

    assert together["views"].keys() == {"sessions", "session_index"}
    assert database.sql("SELECT count(DISTINCT position), count(*) FROM checkpoint") == [(1, 2)]
    assert database.sql("SELECT count(*) FROM session_index") == [(22,)]
