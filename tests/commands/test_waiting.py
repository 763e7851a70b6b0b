"""`projector wait` and `--wait`: reading one's own write."""

import fcntl
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from support import PROJECTOR, Database, daemon, projector
from support.folding import catch_up, run_once

from session_projector.projections import BUILT_IN
from session_projector.worker.storage import open as storage


def test_it_returns_once_the_position_is_reached(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        for number in range(5):
            newest = database.created(f"A-{number}")
            said = projector("wait", newest, "-d", database.url).stdout
            assert database.view(f"A-{number}")["id"] == f"A-{number}"
            assert int(said) >= newest


def test_without_a_position_it_waits_for_the_newest_event(database: Database) -> None:
    assert projector("wait", "-d", database.url).stdout == "0\n"
    newest = database.created("A-1")
    waiting = subprocess.Popen([*PROJECTOR, "wait", "-d", database.url], stdout=subprocess.PIPE)
    catch_up(database)

    said, _ = waiting.communicate()

    assert (waiting.returncode, said) == (0, f"{newest}\n".encode())


def test_it_says_how_far_it_is_and_whether_a_daemon_is_alive(database: Database) -> None:
    database.created("A-1")
    options = ("--timeout", "0.1", "-d", database.url)

    without = projector("wait", *options, check=1).stderr
    with daemon(database.url) as running:
        running.wait_for("batch_committed")
        beyond = projector("wait", "7", *options, check=1).stderr

    assert without == (
        "projector: position 1 was not reached within 0.1 s: sessions is at 0, session_index is at"
        f" 0; no daemon is alive\n  start one: `projector run -d {database.named}`\n"
    )
    assert "there is no event 7 in" in beyond
    assert "yet, after 0.1 s: the newest is 1\n" in beyond


def test_it_waits_for_the_named_projection_alone(database: Database) -> None:
    database.created("A-1")
    catch_up(database)
    database.created("A-2")
    anyio.run(run_once, database.url, BUILT_IN[:1])
    options = ("--timeout", "0", "-d", database.url)

    projector("wait", "--projection", "sessions", "2", *options)
    projector("wait", "--projection", "session_index", "2", *options, check=1)
    unknown = projector("wait", "--projection", "x", *options, check=2).stderr

    assert unknown == ("projector: there is no projection x\n  there are sessions, session_index\n")


def test_a_position_of_another_log_does_not_count(database: Database) -> None:
    database.created("A-1")
    catch_up(database)
    other = database.another()
    other.created("B-1")
    for row in database.sql("SELECT * FROM checkpoint"):
        marks = ", ".join("?" * len(row))
        other.sql(f"INSERT INTO checkpoint VALUES ({marks})", *row)

    for position in ("1", "5"):
        said = projector("wait", position, "--timeout", "0", "-d", other.url, check=4).stderr
        assert "truncated or replaced: checkpoint" in said


def test_an_event_too_large_to_fold_is_known_again(database: Database) -> None:
    database.created("A-1")
    newest = database.insert("A-1", b"\0" * (16 * 1024 * 1024 + 5))
    catch_up(database)

    assert projector("wait", "-d", database.url).stdout == f"{newest}\n"
    status = json.loads(projector("status", "--json", "-d", database.url).stdout)
    assert all(progress["fits_log"] for progress in status["projections"])


@pytest.mark.sqlite
def test_a_database_that_is_replaced_meanwhile_ends_it(database: Database, tmp_path: Path) -> None:
    database.created("A-1")
    projector("db", "setup", "-d", tmp_path / "new.db")
    waiting = subprocess.Popen([*PROJECTOR, "wait", "-d", database.url], stderr=subprocess.PIPE)
    while waiting.poll() is None and not _has_open(waiting.pid, database.path):
        pass
    os.replace(tmp_path / "new.db", database.path)

    _, said = waiting.communicate()
    assert waiting.returncode == 3
    assert b"replaced or deleted" in said


def _has_open(pid: int, path: Path) -> bool:
    found: set[str] = set()
    with suppress(OSError):  # one that is closed meanwhile
        found.update(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return str(path) in found


@pytest.mark.once
@pytest.mark.parametrize("arguments", [("-1",), ("x",), ("--timeout", "-1"), (str(2**63),)])
def test_what_is_no_position_is_refused(database: Database, arguments: tuple[str, ...]) -> None:
    words = arguments if arguments[0].startswith("--") else ("--", *arguments)
    projector("wait", "-d", database.url, *words, check=2)


def test_session_commands_wait_for_their_own_event(database: Database) -> None:
    at = ("-d", database.url)
    said = json.dumps([{"role": "assistant", "content": "Done."}])
    with daemon(database.url) as running:
        running.wait_for("started")
        name = projector("session", "queue", "-p", "P", "Fix it", "--wait", *at).stdout.strip()
        queued = database.contents(name)
        projector("session", "append", name, "-m", said, "--stop", "--wait", *at)
        appended = database.contents(name)
        projector("session", "status", name, "done", "--wait", *at)
        read = projector("session", "status", name, "--wait", *at).stdout
        running.stop(signal.SIGTERM)
    late = projector("session", "status", name, "review", *at)

    assert (queued, appended, read) == (["Fix it"], ["Fix it", "Done."], "done\n")
    assert late.stdout == "5\n"


def test_a_session_command_waits_for_no_daemon_that_does_not_live(database: Database) -> None:
    at = ("--wait", "-d", database.url)

    queued = projector("session", "queue", "-p", "P", "x", *at, check=1)
    read = projector("session", "status", "P-1", *at, check=1)

    assert queued.stdout == "P-1\n"
    assert queued.stderr == (
        "projector: event 1 is written, but no daemon is alive to fold up to position 1\n"
        f"  start one: `projector run -d {database.named}`\n"
    )
    assert "no daemon is alive" in read.stderr
    projector("run", "--once", "-d", database.url)
    assert projector("session", "status", "P-1", *at).stdout == "ready\n"


@pytest.mark.sqlite
def test_a_session_command_whose_event_is_written_never_ends_as_if_a_retry_were_due(
    database: Database, tmp_path: Path
) -> None:
    leadership = storage.database(database.url).leadership()
    assert leadership.acquire()  # a daemon that does not fold
    waiting = subprocess.Popen(
        [*PROJECTOR, "session", "queue", "-p", "P", "x", "--wait", "-d", database.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    projector("db", "setup", "-d", tmp_path / "new.db")
    os.replace(tmp_path / "new.db", database.path)

    _, said = waiting.communicate()
    leadership.release()

    assert waiting.returncode == 4  # 3 would be tried again; the old -wal lies there
    assert said.startswith("projector: event 1 is written, but ")


@pytest.mark.sqlite
@pytest.mark.parametrize("said", ["²", "9" * 5000, "\xff\xfe \x00", ""])
def test_a_lock_file_that_says_odd_things_is_a_daemon_without_a_number(
    database: Database, said: str
) -> None:
    database.created("A-1")
    lock = database.path.with_name("local.db-projector.lock")
    lock.write_text(said)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        late = projector("wait", "1", "--timeout", "0", "-d", database.url, check=1).stderr

    assert "session_index is at 0; a daemon is alive" in late
    assert "alive, a process that cannot be seen from here" in late


def test_a_session_is_looked_for_outside_the_write_lock(database: Database) -> None:
    with database.locked():
        for words in (("append", "A-1", "-m", '[{"role":"u","content":"x"}]'),
                      ("status", "A-1", "done")):  # fmt: skip
            said = projector("session", *words, "-d", database.url, check=1).stderr
            assert "there is no session A-1" in said
