"""`projector doctor`: broken in each way, what it says, and that the command it gives fixes it."""

import asyncio
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support import (
    INSERT,
    PROJECTOR,
    T0,
    Database,
    daemon,
    event,
    extensions,
    forks,
    projector,
    shell,
    users,
)
from support.folding import examine, run_once, target
from support.snippets import snippets

from session_projector.projections import BUILT_IN
from session_projector.worker import linux
from session_projector.worker.doctor import host
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.sqlite.doctor import beside, checks
from session_projector.worker.storage.sqlite.schema import migrate as schema

STRANGER_UID = 60003
OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
SAMPLE = Path(__file__).parents[1] / "support" / "kanbatte-sample.db"
OF_THE_MACHINE = {"sqlite", "filesystem", "space"}
MIB = 1024 * 1024

pytestmark = pytest.mark.sqlite  # its checks are an engine's own
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_shell = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 shell")


def look(database: Database | Path, check: str) -> Check:
    """What a check found, the worst of it."""
    path = database.path if isinstance(database, Database) else database
    levels = ["ok", "warn", "fail"]
    return max(
        (one for one in examine(path) if one.check == check),
        key=lambda one: levels.index(one.level),
    )


def wrong(database: Database | Path) -> set[str]:
    """The checks that are not ok, but for those that depend on the machine alone."""
    path = database.path if isinstance(database, Database) else database
    return {one.check for one in examine(path) if one.level != "ok"} - OF_THE_MACHINE


def fix(found: Check) -> None:
    """Run the commands that a finding gives, one after the other, in a shell."""
    commands = [c for c in re.findall("`([^`]*)`", found.fix) if not c.startswith("projector run")]
    for command in commands:
        paste(command)
    assert commands, found


def paste(commands: str, folder: Path | None = None) -> None:
    done = shell(commands, cwd=folder)
    assert done.returncode == 0, (commands, done)


@pytest.fixture
def folded(database: Database) -> Database:
    """Three sessions, folded, some of their events of no concern, and some dismissed."""
    for number in range(3):
        database.created(f"A-{number}", "one")
        database.appended(f"A-{number}", "two")
    database.insert("A-1", "no event")
    database.insert("A-1", event("session_append", {}))
    database.insert("session:A-2", {"type": "of no concern"})
    asyncio.run(run_once(database.path, BUILT_IN))
    with target(database.path).open(writable=True) as store:
        for seq in database.quarantine():
            store.quarantine.dismiss(seq, "no event")
    return database


@contextmanager
def another(code: str, path: Path) -> Iterator[int]:
    """A process that does something with the database and keeps it so; its number."""
    code = f"import sqlite3, sys, time\npath = sys.argv[1]\n{code}\nprint('ready', flush=True)\n"
    ours, theirs = os.pipe()
    with open(ours, "rb") as said:
        process = forks.Forked([str(path)], 0, theirs, 2, code=code + "time.sleep(60)")
        os.close(theirs)
        try:
            assert said.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()
            process.wait()


OPEN = "db = sqlite3.connect(path, isolation_level=None)\n"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# As it should be


def test_all_is_ok_of_a_healthy_database_with_a_daemon_and_one_standing_by(
    folded: Database,
) -> None:
    with daemon(folded.path) as running:
        running.wait_for("started")
        with daemon(folded.path) as waiting:
            waiting.wait_for("standing_by")
            before = folded.path.read_bytes()
            done = projector("doctor", "-d", folded.path)
            said = projector("doctor", "--json", "-d", folded.path)
            assert folded.path.read_bytes() == before

    found = {one["check"]: one for one in json.loads(said.stdout)}
    assert {name for name, one in found.items() if one["level"] != "ok"} <= OF_THE_MACHINE
    assert len(found) == 22
    assert f"alive, process {running.process.pid}: sessions, session_index" in done.stdout
    assert f"standing by: {waiting.process.pid} (" in found["daemon"]["found"]
    assert f"open in: {running.process.pid} (" in found["wal"]["found"]
    assert "none seen in the newest 3 session rows" in found["old writers"]["found"]


def test_the_text_has_a_line_for_each_finding_and_its_command_below(database: Database) -> None:
    lines = projector("doctor", "-d", database.path).stdout.splitlines()

    at = next(at for at, line in enumerate(lines) if "none is alive" in line)
    levels = [line[:4] for line in lines if line[:4].strip()]
    assert lines[at].startswith("warn  daemon        none is alive")
    assert levels == sorted(levels, reverse=True)  # warn, then ok
    assert [line for line in lines if line.startswith(f"ok    database      {database.path}")]
    assert lines[at + 1] == f"{'':20}`projector run -d {database.path}`"


def test_an_adopted_database_is_no_false_alarm_before_and_after_its_first_run(
    tmp_path: Path,
) -> None:
    path = tmp_path / "kanbatte.db"
    shutil.copy(SAMPLE, path)
    path.chmod(0o644)
    not_yet = look(path, "schema")
    fix(not_yet)

    assert not_yet.level == "fail"
    assert "Kanbatte" in not_yet.found
    assert wrong(path) == {"daemon"}
    assert "nothing was folded yet" in look(path, "old writers").found
    projector("run", "--once", "-d", path)
    assert wrong(path) == {"daemon"}
    assert "none seen" in look(path, "old writers").found


# No database, or none that is known


@pytest.mark.parametrize(
    ("make", "check", "words", "command"),
    [
        (lambda _: None, "database", "there is no database", "projector db setup"),
        (lambda p: p.write_bytes(b""), "schema", "no tables yet", "projector db setup"),
        (lambda p: p.write_bytes(b"x" * 9000), "database", "not a SQLite database", ".recover"),
        (lambda p: p.mkdir(), "database", "is not a file", "path of a SQLite file"),
    ],
)
def test_what_is_no_database_is_said_and_the_rest_is_looked_at(
    tmp_path: Path, make: Callable[[Path], object], check: str, words: str, command: str
) -> None:
    path = tmp_path / "local.db"
    make(path)

    found = look(path, check)

    assert found.level == "fail"
    assert words in found.found
    assert command in found.fix
    assert "are free for a database" in look(path, "space").found


def test_a_missing_folder_is_made_by_the_command(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "local.db"

    found = look(path, "rights")
    fix(found)

    assert found.level == "fail"
    assert f"there is no folder {path.parent}" in found.found
    assert wrong(path) == {"daemon"}


@pytest.mark.parametrize("path", [Path("/"), Path("/dev/null")])
def test_what_can_be_no_database_is_given_no_rights(path: Path) -> None:
    found = {one.check: one for one in examine(path)}

    assert found["database"].found == f"{path} is not a file"
    assert "rights" not in found


def test_an_unknown_layout_and_a_newer_schema_are_told(tmp_path: Path, database: Database) -> None:
    other = Database(tmp_path / "other.db")
    other.sql("CREATE TABLE event_log (id, partition, type, payload)")
    database.sql("INSERT INTO umzug_meta (name) VALUES ('0099-projector-later')")

    unknown, newer = look(other, "schema"), look(database, "schema")

    assert (unknown.level, newer.level) == ("fail", "fail")
    assert "partition, type, payload" in unknown.found
    assert "newer schema" in newer.found
    assert "-m pip install .` in a newer clone" in newer.fix
    assert wrong(database) == {"schema"}


def test_an_older_schema_is_upgraded_by_the_command(database: Database) -> None:
    database.sql("DELETE FROM umzug_meta WHERE name LIKE '0005%'")
    database.sql("DROP TABLE projection_state")

    found = look(database, "schema")
    fix(found)

    assert "lacks 0005" in found.found
    assert wrong(database) == {"daemon"}


def test_a_damaged_page_fails_what_reads_it_and_the_others_go_on(folded: Database) -> None:
    folded.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ((page,),) = folded.sql("SELECT rootpage FROM sqlite_master WHERE name = 'event_log'")
    with folded.path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)

    found = {one.check: one for one in examine(folded.path)}

    assert found["clock"].level == found["checkpoint"].level == "fail"
    assert "is damaged" in found["clock"].found
    assert ".recover" in found["clock"].fix
    assert found["triggers"].level == found["wal"].level == "ok"


def test_a_locked_database_is_told_within_a_moment(database: Database) -> None:
    database.sql("PRAGMA journal_mode = DELETE")
    with another(OPEN + "db.execute('BEGIN EXCLUSIVE')", database.path) as pid:
        start = time.monotonic()
        found = look(database, "database")
        took = time.monotonic() - start

    assert found.level == "fail"
    assert "is locked by another process" in found.found
    assert f"`kill {pid}`" in found.fix
    assert took < 2.5


# The schema and what keeps it


@pytest.mark.parametrize(
    ("how", "instead"),
    [("gone", ""), ("changed", "CREATE TRIGGER {} BEFORE UPDATE ON event_log BEGIN SELECT 1; END")],
)
def test_each_trigger_of_the_log_that_is_gone_or_changed_is_put_back(
    folded: Database, how: str, instead: str
) -> None:
    for name in ("no_update", "no_delete", "known_id", "next_seq"):
        trigger = f"event_log_{name}"
        folded.sql(f"DROP TRIGGER {trigger}")
        if instead:
            folded.sql(instead.format(trigger))

        found = look(folded, "triggers")
        done = schema.setup(folded.path)

        assert found.level == "fail"
        assert f"{trigger} is {how}" in found.found
        assert found.fix == f"`projector db setup -d {folded.path}`"
        assert done.restored == [trigger]
        assert look(folded, "triggers").level == "ok"


def test_what_others_called_by_one_of_our_names_is_left_alone(folded: Database) -> None:
    folded.sql("DROP INDEX idx_view_session_key")
    folded.sql("CREATE TABLE other (x)")
    folded.sql("CREATE INDEX IDX_view_session_key ON other (x)")

    said = projector("db", "setup", "-d", folded.path, check=4).stderr

    assert "is index of other: another program took the name" in said
    assert folded.sql("SELECT tbl_name FROM sqlite_master WHERE name LIKE 'idx_view_s%'") == [
        ("other",)
    ]


def test_a_log_with_its_triggers_back_refuses_to_be_rewritten(folded: Database) -> None:
    folded.sql("DROP TRIGGER event_log_no_update")
    fix(look(folded, "triggers"))

    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        folded.sql("UPDATE event_log SET key = 'x'")


def test_doubled_session_keys_are_found_and_fixed(folded: Database) -> None:
    folded.sql("DROP INDEX idx_view_session_key")
    without = look(folded, "session keys")
    folded.sql(
        "INSERT INTO view SELECT 'other', key, data, last_offset_id, created_at, updated_at + 1"
        " FROM view WHERE key = 'session:A-1'"
    )

    found = look(folded, "session keys")
    fix(found)

    assert without.level == found.level == "fail"
    assert "idx_view_session_key is gone" in without.found
    assert "1 do: session:A-1" in found.found
    assert wrong(folded) == {"daemon"}
    assert folded.views()["session:A-1"][0] == "session:A-1"


@needs_shell
def test_a_seq_that_is_no_autoincrement_is_copied_into_a_log_that_is(folded: Database) -> None:
    columns = "seq INTEGER PRIMARY KEY, id TEXT UNIQUE, key TEXT, data BLOB, created_at INTEGER"
    folded.sql("INSERT INTO view VALUES ('p', 'project:p', 'x', 'y', 1, 2)")
    log, views = folded.log(), folded.views()
    folded.sql(f"CREATE TABLE remade ({columns})")
    folded.sql("INSERT INTO remade SELECT * FROM event_log")
    folded.sql("DROP TABLE event_log")
    folded.sql("ALTER TABLE remade RENAME TO event_log")
    folded.sql("CREATE INDEX idx_event_log_key ON event_log (key)")

    found = look(folded, "seq")
    (title,) = re.findall('docs/operating.md tells under "(.*)"', found.fix)
    section = OPERATING.read_text().split(f"### {title}\n")[1]
    paste(snippets(section)["log"][1], folded.path.parent)
    new = Database(folded.path.with_name("new.db"))

    assert found.level == "fail"
    assert "not INTEGER PRIMARY KEY AUTOINCREMENT" in found.found
    assert new.log() == log
    assert new.views() == views
    assert new.sql("SELECT id FROM view WHERE key = 'project:p'") == [("p",)]
    assert wrong(new) == {"daemon", "quarantine"}  # its notes are not copied


def test_a_journal_that_is_no_wal_is_made_one(database: Database) -> None:
    database.sql("PRAGMA journal_mode = DELETE")

    found = look(database, "journal mode")
    schema.setup(database.path)

    assert found.level == "warn"
    assert "delete, not WAL" in found.found
    assert f"`projector db setup -d {database.path}`" in found.fix
    assert look(database, "journal mode").level == "ok"


# What was folded


def test_a_checkpoint_that_does_not_fit_the_log_is_fixed(folded: Database) -> None:
    folded.sql("UPDATE checkpoint SET digest = 'x' WHERE name = 'sessions'")

    found, writers = look(folded, "checkpoint"), look(folded, "old writers")
    fix(found)

    assert found.level == "fail"
    assert (
        "event_log was truncated or replaced: checkpoint sessions@9 does not match" in found.found
    )
    assert "does not fit" in writers.found
    assert wrong(folded) == {"daemon"}


def test_a_log_that_was_rewound_is_said_first_and_once(folded: Database) -> None:
    folded.sql("DROP TRIGGER event_log_no_delete")
    folded.sql("DELETE FROM event_log WHERE seq > 8")

    found = [one for one in examine(folded.path) if one.level != "ok"]
    status = projector("status", "-d", folded.path).stdout

    assert "checkpoints session_index@9, sessions@9 do not match" in found[0].found
    assert [one.check for one in found].count("checkpoint") == 1
    assert "triggers" in [one.check for one in found[1:]]
    assert [one for one in found if "projector run" in one.fix] == []
    assert status.count("none: it is ahead of the log") == 2


def test_views_of_a_newer_version_are_told(folded: Database) -> None:
    folded.sql("UPDATE checkpoint SET version = 99 WHERE name = 'session_index'")

    found = look(folded, "checkpoint")

    assert found.level == "fail"
    assert "session_index are of version 99" in found.found
    assert "upgrade projector" in found.fix


def test_a_row_that_an_old_writer_updated_is_found_and_fixed(folded: Database) -> None:
    for change, words in (
        ("last_offset_id = 'e1'", "last_offset_id is not the id of its newest event, e4"),
        ("updated_at = updated_at + 60000", "its columns disagree with its data"),
        ("data = x'80'", "data is not a session"),
        ("id = 'V1StGXR8'", "its columns disagree with its data"),
    ):
        before = folded.views()["session:A-1"]
        folded.sql(f"UPDATE view SET {change} WHERE key = 'session:A-1'")

        found = look(folded, "old writers")

        assert found.level == "fail"
        assert "1 of the newest 3 session rows of view were written by another" in found.found
        assert f"session:A-1: {words}" in found.found
        folded.sql("DELETE FROM view WHERE key = 'session:A-1'")
        folded.sql("INSERT INTO view VALUES (?, ?, ?, ?, ?, ?)", *before)
    folded.sql("UPDATE view SET last_offset_id = 'e1' WHERE key = 'session:A-1'")
    assert found.fix.startswith("stop the old writers for good, then `projector replay -d")
    fix(found)
    assert wrong(folded) == {"daemon"}


def test_a_row_of_a_session_that_the_log_does_not_know_is_found(folded: Database) -> None:
    ((data,),) = folded.sql("SELECT data FROM view WHERE key = 'session:A-1'")
    ghost = data.replace(b"A-1", b"B-9")
    key = "session:B-9"
    folded.sql("INSERT INTO view VALUES (?, ?, ?, 'e1', ?, ?)", key, key, ghost, T0, T0)

    found = look(folded, "old writers")

    assert f"{key}: the log has no event of it" in found.found


def test_what_a_row_says_cannot_move_a_terminal(folded: Database) -> None:
    folded.sql("UPDATE view SET key = 'session:\x1b[31m\nx' WHERE key = 'session:A-1'")

    done = projector("doctor", "-d", folded.path, check=1)

    assert "session:\\u001b[31m x" in done.stdout


# The daemon


def test_without_a_daemon_the_command_that_starts_one_is_given(folded: Database) -> None:
    found = look(folded, "daemon")

    assert found.level == "warn"
    assert found.fix == f"`projector run -d {folded.path}`"


def test_a_stopped_daemon_goes_on_by_the_command(folded: Database) -> None:
    with daemon(folded.path) as running:
        running.wait_for("started")
        running.process.send_signal(signal.SIGSTOP)
        until(lambda: look(folded, "daemon").level == "fail")
        found = look(folded, "daemon")
        fix(found)

        assert "is suspended (SIGSTOP)" in found.found
        until(lambda: look(folded, "daemon").level == "ok")


HOLD_LOCK = """
from pathlib import Path
from typing import Any
from session_projector.worker.storage.sqlite.lock import DaemonLock
assert DaemonLock(Path(path), {"sessions": 1, "session_index": 1}).acquire()
"""


def test_a_projection_that_the_daemon_does_not_run_does_not_make_it_stuck(folded: Database) -> None:
    folded.sql("UPDATE checkpoint SET position = 0, digest = '' WHERE name = 'session_index'")
    with another(HOLD_LOCK.replace(', "session_index": 1', ""), folded.path):
        found = look(folded, "daemon")

    assert found.level == "ok"


GOING_ON = """
import threading
def go_on():
    db = sqlite3.connect(path, isolation_level=None)
    while True:
        db.execute("UPDATE checkpoint SET generation = generation + 1")
        time.sleep(0.1)
threading.Thread(target=go_on, daemon=True).start()
"""


def test_a_stuck_daemon_is_told_from_a_busy_one_and_ended_by_the_command(
    folded: Database,
) -> None:
    with another(HOLD_LOCK, folded.path) as pid:
        idle = look(folded, "daemon")
        folded.appended("A-1", "three")
        with another(OPEN + GOING_ON, folded.path):
            busy = look(folded, "daemon")
        found = look(folded, "daemon")
        fix(found)
    projector("run", "--once", "-d", folded.path)

    assert idle.level == busy.level == "ok"
    assert found.level == "fail"
    assert f"process {pid}, 1 event waits, and none was folded in 2 s: it is stuck" in found.found
    assert f"then `projector run -d {folded.path}`" in found.fix
    assert wrong(folded) == {"daemon"}


def test_who_holds_the_lock_of_a_daemon_that_was_killed_is_not_taken_for_it(
    folded: Database,
) -> None:
    """The number in the lock file may be another process's by then, or a container's."""
    lock = folded.path.with_name("local.db-projector.lock")
    with another(HOLD_LOCK, folded.path) as killed:
        os.kill(killed, signal.SIGKILL)
    folded.appended("A-1", "three")
    foreign = (
        "import fcntl; file = open(path + '-projector.lock'); fcntl.flock(file, fcntl.LOCK_EX)"
    )
    with another(foreign, folded.path):
        for named in (str(killed), str(os.getpid()), "1"):
            lock.write_text(f"{named}\nsessions=1")
            found = look(folded, "daemon")
            well = projector("health", "-d", folded.path, check=1)

            assert found.level == "fail"
            assert "a process that cannot be seen from here, 1 event waits" in found.found
            assert "kill" not in found.fix
            assert "a process that cannot be seen from here" in well.stdout


def given_away(lock: Callable[[], object]) -> subprocess.Popen[bytes]:
    """A child locks and ends, and its number goes to another process, which is returned.

    We have the descriptor that it locked, so that the lock holds.
    """
    for _ in range(20):  # others may be given the number first
        if not (child := os.fork()):
            lock()
            os._exit(0)
        os.waitpid(child, 0)
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(child - 1))
        except OSError as error:
            pytest.skip(f"may not choose the number of a process: {error}")
        stranger = subprocess.Popen(["sleep", "60"])
        if stranger.pid == child:
            return stranger
        stranger.kill()
        stranger.wait()
    pytest.skip("no process got the number that was chosen for it")


@needs_root
def test_a_stranger_with_the_number_of_who_locked_the_lock_is_not_taken_for_the_daemon(
    folded: Database,
) -> None:
    folded.appended("A-1", "three")
    with open(f"{folded.path}-projector.lock", "w") as file:

        def lock() -> None:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file.fileno(), b"%d" % os.getpid())

        with given_away(lock) as stranger:
            found = look(folded, "daemon")
            health = projector("health", "-d", folded.path, check=1).stdout
            stranger.kill()

    assert "a process that cannot be seen from here" in found.found
    assert "kill" not in found.fix
    assert "a process that cannot be seen from here" in health


@needs_root
def test_a_daemon_of_another_user_is_looked_at_before_it_is_ended(stranger: Database) -> None:
    """Its open files cannot be seen: the number may be a stranger's."""
    stranger.path.chmod(0o664)
    stranger.path.parent.chmod(0o2775)
    stranger.insert("A-1", event("session_status_update", {"status": "x"}), id="later")
    code = f"{users.PROJECTOR}\nbecome({STRANGER_UID})\n{HOLD_LOCK}"
    with another(code, stranger.path) as pid:
        found = by_another("doctor", stranger)
        os.kill(pid, signal.SIGSTOP)
        while not linux.is_stopped(pid):
            time.sleep(0.005)
        suspended = [by_another(name, stranger) for name in ("doctor", "health", "status")]

    assert f"process {pid}, 1 event waits" in found
    for said in (found, *suspended):
        assert f"look at process {pid} with `ps -fp {pid}`" in said
        assert "kill" not in said
    for said in suspended:
        assert "suspended (SIGSTOP)" in said


@needs_root
def test_a_writer_of_another_user_with_removed_files_is_looked_at_before_it_is_ended(
    stranger: Database,
) -> None:
    read = f"{OPEN}db.execute('SELECT * FROM view').fetchall()"
    with another(f"{users.PROJECTOR}\nbecome({STRANGER_UID})\n{read}", stranger.path) as pid:
        os.remove(f"{stranger.path}-shm")
        found = by_another("doctor", stranger)

    assert f"-wal and -shm files than stand beside it, in: {pid} (python" in found
    assert f"look at process {pid} with `ps -fp {pid}`" in found
    assert "kill" not in found


def by_another(command: str, database: Database) -> str:
    """What a command prints for another member of the group."""
    code = AS_STRANGER.replace(f"become({STRANGER_UID})", f"become(60004, {STRANGER_UID})")
    return projector(command, "-d", database.path, code=code, check=None).stdout


@needs_root
def test_a_daemon_in_a_container_is_called_by_its_number_here(folded: Database) -> None:
    code = f"import sys\npath = sys.argv[1]\n{HOLD_LOCK}\nprint('1', flush=True); input()"
    inside = [sys.executable, "-c", code, folded.path]
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", *inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as unshared:
        assert unshared.stdin is not None
        assert unshared.stdout is not None
        if not unshared.stdout.readline():
            pytest.skip("may not make a PID namespace")
        (pid,) = Path(f"/proc/{unshared.pid}/task/{unshared.pid}/children").read_text().split()
        found = look(folded, "daemon")
        unshared.stdin.close()

    assert folded.path.with_name("local.db-projector.lock").read_text().split()[0] == "1"
    assert found.level == "ok"
    assert f"alive, process {pid}: " in found.found


@pytest.mark.parametrize("command", [["doctor"], ["health"], ["status"], ["run", "--once"]])
def test_a_fifo_in_the_place_of_the_lock_holds_nobody_up(
    folded: Database, command: list[str]
) -> None:
    lock = folded.path.with_name("local.db-projector.lock")
    lock.unlink()
    os.mkfifo(lock)

    projector(*command, "-d", folded.path, check=None, timeout=30)


def test_who_holds_the_write_lock_before_a_daemon_is_named(folded: Database) -> None:
    with daemon(folded.path) as running:
        running.wait_for("started")
        with another(OPEN + "db.execute('BEGIN IMMEDIATE')", folded.path) as pid:
            running.process.send_signal(signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
            folded.appended("A-1", "three")
        with another(OPEN + "db.execute('BEGIN IMMEDIATE')", folded.path) as pid:
            running.process.send_signal(signal.SIGCONT)
            stuck = projector("health", "-d", folded.path, check=1).stdout
            late = projector("wait", "--timeout", "0.1", "-d", folded.path, check=1).stderr
            found = look(folded, "daemon")
            fix(found)
        running.wait_until_at(10)

        assert "is stuck at" in stuck
        for said in (stuck, late):
            assert f"see why: `projector doctor -d {folded.path}`" in said
        assert found.level == "fail"
        assert f"{pid} (python" in found.found
        assert re.search("holds (it|the write lock)", found.found)
        until(lambda: look(folded, "daemon").level == "ok")


def test_a_lock_that_a_daemon_waits_for_is_said_first_and_once(folded: Database) -> None:
    with daemon(folded.path) as running:
        running.wait_for("started")
        running.suspend()
        folded.appended("A-1", "three")
        with another(OPEN + "db.execute('BEGIN IMMEDIATE')", folded.path) as pid:
            running.process.send_signal(signal.SIGCONT)
            told = running.wait_for("database_unavailable")
            until(lambda: "waits for a lock" in projector("status", "-d", folded.path).stdout)
            status = projector("status", "-d", folded.path).stdout
            health = projector("health", "-d", folded.path, check=1).stdout
            found = [one for one in examine(folded.path) if one.check not in OF_THE_MACHINE]
            fix(found[0])
        running.wait_until_at(10)

    who = f"{pid} (python"
    assert who in told["why"]
    assert f"`kill {pid}`" in told["hint"]
    assert status.splitlines()[1].split()[:5] == ["trouble", "waits", "for", "a", "lock,"]
    assert f"process {running.process.pid}) waits for a lock" in health
    assert found[0].check == "daemon"
    assert "waits for a lock, for " in found[0].found
    assert who in found[0].found
    assert f"`kill {pid}`" in found[0].fix
    assert [one for one in found[1:] if one.level != "ok"] == []


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_write_lock_that_nobody_waits_for_yet_is_told(folded: Database, mode: str) -> None:
    folded.sql(f"PRAGMA journal_mode = {mode}")
    with another(OPEN + "db.execute('BEGIN IMMEDIATE')", folded.path) as pid:
        found = look(folded, "write lock")
    after = look(folded, "write lock")

    assert found.level == "warn"
    assert f"{pid} (python" in found.found
    assert f"`kill {pid}`" in found.fix
    assert after.level == "ok"


def test_a_write_lock_that_an_idle_daemon_does_not_wait_for_is_no_health(folded: Database) -> None:
    with daemon(folded.path) as running:
        running.wait_until_at(folded.created("A-9", "one"))
        with another(OPEN + "db.execute('BEGIN IMMEDIATE')", folded.path) as pid:
            ill = projector("health", "-d", folded.path, check=1).stdout
        projector("health", "-d", folded.path)

    assert f"{pid} (python" in ill
    assert "has held the write lock for some time: nobody else can write" in ill
    assert f"`kill {pid}`" in ill


OFD_LOCK = """
import fcntl, struct
shm = open(path + "-shm", "r+b")
fcntl.fcntl(shm, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", {}, 0, 120, 1, 0))
"""
POSIX_LOCK = """
import fcntl
shm = open(path + "-shm", "rb")
fcntl.lockf(shm, fcntl.LOCK_SH, 1, 120)
"""


@pytest.mark.parametrize(
    ("code", "words", "command"),
    [
        (OFD_LOCK.format("fcntl.F_WRLCK"), "write lock, which another process holds", "fuser -v "),
        (OFD_LOCK.format("fcntl.F_RDLCK"), "write lock, which another process holds", "fuser -v "),
        (POSIX_LOCK, "holds the write lock", "kill "),
    ],
)
def test_a_daemon_that_waits_for_a_lock_which_is_not_sqlites_is_not_called_stuck(
    folded: Database, code: str, words: str, command: str
) -> None:
    with daemon(folded.path) as running:
        running.wait_for("started")
        folded.appended("A-1", "three")
        running.wait_until_at(10)
        running.process.send_signal(signal.SIGSTOP)
        folded.appended("A-1", "four")
        with another(code, folded.path) as pid:
            running.process.send_signal(signal.SIGCONT)
            found = look(folded, "daemon")
        running.wait_until_at(11)

    assert f"process {running.process.pid}, 1 event waits" in found.found
    assert words in found.found
    assert command in found.fix
    assert str(running.process.pid) not in found.fix
    if "kill" in command:
        assert f"`kill {pid}`" in found.fix
    else:
        assert f"{folded.path} {folded.path}-shm`" in found.fix


@needs_root
def test_a_user_who_may_only_read_is_told_of_the_lock_too(stranger: Database) -> None:
    stranger.path.chmod(0o664)
    stranger.path.parent.chmod(0o2775)
    stranger.insert("A-1", event("session_status_update", {"status": "x"}), id="later")
    code = OPEN + "db.execute('SELECT * FROM view').fetchall()" + OFD_LOCK.format("fcntl.F_WRLCK")
    asking = AS_STRANGER.replace(f"become({STRANGER_UID})", "become(60004)")
    holding = f"{users.PROJECTOR}\nbecome({STRANGER_UID})\n{HOLD_LOCK}"
    with another(holding, stranger.path), another(code, stranger.path):
        done = projector("doctor", "-d", stranger.path, code=asking, check=None)

    assert "it waits for the write lock, which another process holds" in done.stdout
    assert "kill" not in done.stdout


@needs_root
def test_a_daemon_on_a_full_disk_is_not_called_stuck(folded: Database, tmp_path: Path) -> None:
    folded.appended("A-1", "three")
    path = tmp_path / "disk" / "local.db"
    path.parent.mkdir()
    code = f"path = {str(path)!r}\n{HOLD_LOCK}\nprint(flush=True)\ninput()"
    script = (
        f"mount -t tmpfs -o size=4m,mode=755 tmpfs {path.parent} || exit 77\n"
        f"sqlite3 {folded.path} \"VACUUM INTO '{path}'\" || exit 77\n"
        f"coproc {{ {shlex.join([sys.executable, '-c', code])}; }}\n"
        "read -u ${COPROC[0]}\n"
        f"{shlex.join(PROJECTOR)} doctor --json -d {path}\n"
        "echo >&${COPROC[1]}"
    )
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"may not mount a tmpfs, or there is no sqlite3: {done.stderr}")

    (found,) = [one for one in json.loads(done.stdout) if one["check"] == "daemon"]
    assert "1 event waits" in found["found"]
    assert "the disk has no room" in found["found"]
    assert f"df {path.parent}" in found["mend"]
    assert "kill" not in found["mend"]


@pytest.mark.parametrize(
    ("state", "words", "command"),
    [
        ("failed", "sessions failed: a fault", "fix that"),
        ("rebuilding", "a rebuild of sessions as version 2 was cut off", "projector run"),
    ],
)
def test_a_projection_that_does_not_tail_is_told_with_the_reason(
    folded: Database, state: str, words: str, command: str
) -> None:
    folded.sql(
        "INSERT INTO projection_state VALUES ('sessions', ?, 2, 'a fault', 1, 9, 0, 0)", state
    )

    found = look(folded, "projections")

    assert found.level == ("fail" if state == "failed" else "warn")
    assert words in found.found
    assert command in found.fix


def test_a_projections_table_that_was_dropped_is_told_and_made_by_the_command(
    folded: Database,
) -> None:
    with daemon(folded.path) as running:
        running.wait_until_at(folded.created("A-9", "one"))
        before = folded.everything()
        folded.sql("DROP TABLE session_index")  # the daemon has nothing to do, and looks at none
        found = look(folded, "projections")
        ill = projector("health", "-d", folded.path, check=1).stdout
        fix(found)
        projector("health", "-d", folded.path)
        running.stop(signal.SIGTERM)

    assert "the table session_index of session_index is gone: somebody dropped it" in ill
    assert found.level == "fail"
    assert "the table session_index of session_index is gone, though its checkpoint is at 10" in (
        found.found
    )
    assert folded.everything() == before
    assert look(folded, "projections").level == "ok"


def test_a_projection_that_was_installed_since_the_daemon_started_is_told(
    folded: Database, tmp_path: Path
) -> None:
    package = tmp_path / "later-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1\n")
    entry = "[projector.projections]\nx = support.extensions:PerProject\n"
    (package / "entry_points.txt").write_text(entry)
    found = os.environ.get("PYTHONPATH", "")
    path = f"{tmp_path}:{extensions.TESTS}:{extensions.TESTS.parent}:{found}"
    environment = {**os.environ, "PYTHONPATH": path}
    with daemon(folded.path) as running:
        running.wait_for("started")
        done = projector("doctor", "-d", folded.path, env=environment, check=None)
    with daemon(
        folded.path, program=["/usr/bin/env", f"PYTHONPATH={path}", *PROJECTOR]
    ) as restarted:
        restarted.wait_for("started")
        after = projector("doctor", "-d", folded.path, env=environment, check=None)

    pid = running.process.pid
    said = f"per_project is installed here, and the daemon (process {pid}) does not run it"
    assert said in done.stdout
    assert f"restart it: `kill {pid}`, then `projector run -d {folded.path}`" in done.stdout
    assert "does not run it" not in after.stdout


def test_a_daemon_that_goes_on_with_code_that_was_changed_since_is_told(
    folded: Database, tmp_path: Path
) -> None:
    module = tmp_path / "changing.py"
    module.write_text("from support.extensions import PerProject\nclass Ours(PerProject): pass\n")
    os.utime(module, (T0 / 1000, T0 / 1000))
    package = tmp_path / "changing-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[projector.projections]\nx = changing:Ours\n")
    path = f"{tmp_path}:{extensions.TESTS}:{extensions.TESTS.parent}"
    ours = {"env": {**os.environ, "PYTHONPATH": path}}
    program = ["/usr/bin/env", f"PYTHONPATH={path}", *PROJECTOR]
    of_it = ("--projection", "per_project", "-d", folded.path)
    with daemon(folded.path, program=program) as running:
        running.wait_for("caught_up", projection="per_project")
        before = projector("verify", *of_it, **ours).stderr
        healthy = projector("doctor", "-d", folded.path, **ours, check=None).stdout
        os.utime(module)
        found = projector("doctor", "-d", folded.path, **ours, check=None).stdout
        logged = [projector(command, *of_it, **ours).stderr for command in ("verify", "replay")]

    pid = running.process.pid
    said = f"the daemon (process {pid}) started before the code of per_project was changed"
    assert f"warn  projections   {said}" in found
    assert f"restart it: `kill {pid}`, then `projector run -d {folded.path}`" in found
    assert said not in before + healthy
    assert all(said in one for one in logged)


# Around it


EXTENSION = ("--projection", "support.extensions:PerProject")


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_what_an_uninstalled_projection_left_is_named_and_dropped_by_the_command(
    folded: Database, *, has_checkpoint: bool
) -> None:
    with daemon(folded.path, program=extensions.PROGRAM, options=EXTENSION) as running:
        running.wait_for("started")
        projector("wait", "--projection", "per_project", "9", "-d", folded.path)
        while_it_runs = look(folded, "projections")
    if not has_checkpoint:
        folded.sql("DELETE FROM checkpoint WHERE name = 'per_project'")
        folded.sql("DROP TABLE per_project")
    found = look(folded, "projections")
    drop = re.findall("`([^`]*)`", found.fix)[-1]
    paste(f"{drop} <<< y")

    assert while_it_runs.level == "ok"
    assert found.level == "warn"
    assert "per_project has no code here" in found.found
    assert "1 event in quarantine" in found.found
    assert (", 1 row of per_project" in found.found) == has_checkpoint
    assert found.fix.startswith("install its package or name it")
    assert look(folded, "projections").level == "ok"
    assert folded.sql("SELECT * FROM quarantine WHERE projection = 'per_project'") == []
    assert folded.sql("SELECT * FROM sqlite_master WHERE name = 'per_project'") == []


def test_an_uninstalled_projection_without_its_table_is_one_finding(folded: Database) -> None:
    projector("run", "--once", *EXTENSION, "-d", folded.path)
    folded.sql("DROP TABLE per_project")

    one = [check for check in examine(folded.path) if "per_project" in check.found]
    drop = re.findall("`([^`]*)`", one[0].fix)[0]
    paste(f"{drop} <<< y")

    assert [(check.check, check.level) for check in one] == [("projections", "warn")]
    assert "per_project has no code here, and its table per_project is gone" in one[0].found
    assert look(folded, "projections").level == "ok"


def test_a_writers_clock_that_is_ahead_is_told(database: Database) -> None:
    database.insert("A-1", event("session_created", {"project": "P"}), created_at="odd")
    fine = look(database, "clock")
    ahead = int(time.time()) + 3600
    database.insert("A-2", event("session_created", {"project": "P"}), created_at=ahead)

    found = look(database, "clock")

    assert fine.level == "ok"
    assert found.level == "warn"
    assert re.search(r"3,(600|599) s in the future", found.found)
    assert "timedatectl" in found.fix


def test_a_time_in_microseconds_is_told_with_the_event(database: Database) -> None:
    database.created("A-1")
    now_ms = time.time_ns() // 1_000_000
    seq = database.insert("A-1", event("session_append", {}), created_at=now_ms * 1000)

    found = look(database, "clock")

    assert found.found.startswith(f"event {seq} of session A-1 was written with microseconds in ")
    assert "set-ntp" not in found.fix
    assert "append" in shell(re.findall("`([^`]*)`", found.fix)[0]).stdout


@pytest.mark.parametrize("encode", [json.dumps, msgpack.packb])
def test_each_fault_of_the_times_is_told_with_its_newest_event(
    database: Database, encode: Callable[[Any], Any]
) -> None:
    now_ms = time.time_ns() // 1_000_000
    times = [now_ms * 1000, now_ms // 1000, now_ms + 75 * 31_557_600_000, None, float(now_ms)]
    for number, at in enumerate(times):
        said = {"type": "session_created", "data": {"project": "P"}, "timestamp": at}
        database.insert(f"A-{number}", encode(said))
    for _ in range(60):
        database.created("A-9")

    said = [one.found for one in examine(database.path) if one.check == "clock"]

    assert [one.partition(", ")[0] for one in said] == [
        "event 3 of session A-2 was written 75 years in the future",
        "event 2 of session A-1 was written with seconds in timestamp",
        "event 1 of session A-0 was written with microseconds in timestamp",
    ]


def test_a_clock_before_2024_is_told() -> None:
    (found,) = host.clock(1_600_000_000_000)

    assert found.level == "fail"
    assert "timedatectl" in found.fix
    assert [*host.clock(1_800_000_000_000)] == []


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 40, 1), "warn"),
        ((3, 44, 5), "warn"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "warn"),
        ((3, 50, 6), "warn"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "warn"),
        ((3, 51, 3), "ok"),
        ((3, 53, 0), "ok"),
    ],
)
def test_the_versions_of_sqlite_that_may_corrupt_a_wal(
    version: tuple[int, ...], level: str
) -> None:
    (found,) = checks.sqlite_version(version)

    assert found.level == level
    if level == "warn":
        assert "WAL-reset bug" in found.found
        assert "3.51.3" in found.fix


MOUNTS = r"""23 22 0:30 / /srv rw,relatime master:1 - vfat /dev/vdc rw
23 22 0:30 / /srv rw,relatime master:1 - {kind} server:/export rw
24 22 0:31 / /srv/my\040data rw - xfs /dev/vdb rw
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
"""


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        *((kind, "fail", "locks") for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs")),
        *((kind, "fail", "locks") for kind in ("fuse.sshfs", "vboxsf", "prl_fs", "ceph", "lustre")),
        ("overlay", "warn", "gone with the container"),
        ("tmpfs", "warn", "gone at the next restart"),
        ("fuse.unheard-of", "warn", "up to the program"),
        ("ext4", "ok", "ext4 at /srv"),
    ],
)
def test_file_systems_where_sqlite_must_not_live(
    tmp_path: Path, kind: str, level: str, words: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(kind=kind))

    (found,) = host.filesystem(Path("/srv/a/local.db"), mounts)
    (beside,) = host.filesystem(Path("/srv/my data/local.db"), mounts)
    (root,) = host.filesystem(Path("/srvx/local.db"), mounts)
    (unknown,) = host.filesystem(Path("/home/local.db"), tmp_path / "absent")

    assert found.level == level
    assert words in found.found
    assert ("VACUUM INTO" in found.fix) == (level != "ok")
    assert beside.found == "xfs at /srv/my data"
    assert root.found == "ext4 at /"
    assert unknown.level == "ok"


@needs_root
def test_a_small_disk_in_memory_is_told_twice(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "local.db"
    path.parent.mkdir()
    script = (
        f"mount -t tmpfs -o size=4m,mode=755 tmpfs {path.parent} || exit 77\n"
        f"{shlex.join(PROJECTOR)} db setup -d {path} >&2\n"
        f"{shlex.join(PROJECTOR)} doctor --json -d {path}"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        pytest.skip(f"may not mount a tmpfs: {done.stderr}")

    found = {one["check"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["filesystem"]["level"] == "warn"
    assert f"tmpfs at {path.parent}" in found["filesystem"]["found"]
    assert found["space"]["level"] == "fail"
    assert f"df {path.parent}" in found["space"]["mend"]


def test_a_folder_with_less_room_than_the_database_is_told(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    path = tmp_path / "local.db"
    with path.open("wb") as file:
        try:
            file.truncate(room.f_bavail * room.f_frsize + 8 * 1024 * MIB)  # a hole
        except OSError:
            pytest.skip("no file may be that large here")

    (found,) = host.space(path)

    assert found.level == "warn"
    assert "too little for a backup" in found.found


@needs_shell
def test_who_pins_the_write_ahead_log_is_named_and_ended(database: Database) -> None:
    read = OPEN + "db.execute('BEGIN'); db.execute('SELECT * FROM event_log').fetchall()"
    with (
        another(read, database.path) as pid,
        another(OPEN + "db.execute('SELECT * FROM view').fetchall()", database.path) as idle,
    ):
        for _ in range(5):
            database.insert("A-1", bytes(15 * MIB))
        found = look(database, "wal")
        status = projector("status", "-d", database.path).stdout
        fix(found)

    assert found.level == "warn"
    assert f"a read is open all the time in process\n{pid}." in status
    assert f"{pid} (python" in found.found
    assert f"{idle} (python" in found.found
    assert re.search(rf"open all the time in: {pid} \(python[^,]*$", found.found.split(". It ")[0])
    assert f"kill {pid}`" in found.fix
    assert look(database, "wal").level == "ok"


@needs_shell
def test_a_large_write_ahead_log_that_nobody_pins_is_told_from_one_that_is(
    database: Database,
) -> None:
    with another(OPEN + "db.execute('SELECT * FROM view').fetchall()", database.path):
        with closing(sqlite3.connect(database.path)) as writer, writer:
            for number in range(5):
                writer.execute(INSERT, (f"e{number}", "A-1", bytes(15 * MIB), T0))
        found = look(database, "wal")
        status = projector("status", "-d", database.path).stdout
        fix(found)

    assert found.level == "warn"
    assert "no read holds it, and 100% of it is copied back" in found.found
    assert "kill" not in found.fix
    assert "the write-ahead log is large, and no read holds it" in status


@pytest.mark.parametrize("removed", [["-shm"], ["-wal", "-shm"]])
def test_a_writer_that_goes_on_with_removed_files_is_named_and_ended(
    folded: Database, removed: list[str]
) -> None:
    with another(OPEN + "db.execute('SELECT * FROM view').fetchall()", folded.path) as pid:
        assert look(folded, "files").level == "ok"
        for end in removed:
            os.remove(f"{folded.path}{end}")
        found = look(folded, "files")
        folded.created("B")
        fix(found)

    assert found.level == "fail"
    assert f"in: {pid} (python" in found.found
    assert "-wal" in found.found
    assert look(folded, "files").level == "ok"
    assert len(folded.log()) == 10


def test_a_process_that_has_it_open_by_another_name_is_told_and_the_name(
    folded: Database, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "second.db"
    os.link(folded.path, other)
    assert "has 2 names" in look(folded, "files").found

    with another(OPEN + "db.execute('SELECT * FROM view').fetchall()", other) as pid:
        levels = [one.level for one in examine(folded.path) if one.check == "files"]
        found = look(folded, "files")

    assert levels == ["fail", "warn"]
    assert f"in: {pid} (python" in found.found


def test_a_database_that_is_mounted_by_itself_is_told(folded: Database, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"36 35 98:0 / / rw - ext4 /dev/x rw\n37 36 98:0 / {folded.path} rw - ext4 x rw"
    )

    (found,) = beside.files(folded.path, mounts)

    assert (found.level, found.fix) == ("fail", "mount its whole folder instead")


def test_litestreams_folder_and_process_are_told(database: Database, tmp_path: Path) -> None:
    none = look(database, "litestream")
    database.path.with_name(".local.db-litestream").mkdir()
    idle = look(database, "litestream")
    program = tmp_path / "bin" / "litestream"
    program.parent.mkdir()
    shutil.copy(str(shutil.which("sleep")), program)
    with subprocess.Popen([program, "60"]) as process:
        until(lambda: "runs" in look(database, "litestream").found)
        found = look(database, "litestream")
        process.kill()

    assert none.found == "not seen here"
    assert idle.level == "ok"
    assert "is not running, its folder is there" in idle.found
    assert f"runs as {process.pid}, its folder is there" in found.found
    assert "wal_autocheckpoint" in found.found


# Rights


def test_a_file_for_its_group_in_a_folder_that_is_not_is_shared_by_the_command(
    database: Database,
) -> None:
    database.path.parent.chmod(0o700)
    database.path.chmod(0o660)

    found = look(database, "rights")
    fix(found)

    assert found.level == "warn"
    assert "is writable by its group" in found.found
    assert "projector db setup --group" in found.fix
    assert wrong(database) == {"daemon"}
    assert database.path.parent.stat().st_mode & 0o7777 == 0o2770


@pytest.mark.parametrize("file_mode", [0o600, 0o644])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o703])
def test_a_folder_that_any_user_can_write_is_told(
    database: Database, mode: int, file_mode: int
) -> None:
    database.path.chmod(file_mode)
    database.path.parent.chmod(mode)

    found = look(database, "rights")

    assert found.level == "warn"
    assert "any user of this host can put files into its folder" in found.found
    assert f"{mode:04o})" in found.found
    assert "VACUUM INTO" in found.fix
    close = f"`chmod o-w {database.path.parent}`"
    assert (close in found.fix) == (not mode & 0o1000)
    if close in found.fix:
        paste(close.strip("`"))
        assert wrong(database) == {"daemon"}


def test_a_folder_above_it_that_any_user_can_write_is_told(tmp_path: Path) -> None:
    above = tmp_path / "above"
    path = above / "between" / "folder" / "local.db"
    path.parent.mkdir(parents=True)
    projector("db", "setup", "-d", path)
    above.chmod(0o777)

    found = look(path, "rights")
    above.chmod(0o1777)
    sticky = look(path, "rights")
    above.chmod(0o777)
    paste(found.fix.split("`")[1])

    assert found.level == "warn"
    assert "any user of this host can put another folder in the place" in found.found
    assert "above (" in found.found
    assert sticky.level == "ok"
    assert wrong(path) == {"daemon"}


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o1755])
def test_a_folder_above_it_of_another_user_is_told(tmp_path: Path, mode: int) -> None:
    above = tmp_path / "above"
    path = above / "folder" / "local.db"
    path.parent.mkdir(parents=True)
    projector("db", "setup", "-d", path)
    os.chown(above, STRANGER_UID, 0)
    above.chmod(mode)

    found = look(path, "rights")

    assert found.level == "warn"
    assert f"user {STRANGER_UID} can put another folder in the place" in found.found
    assert "VACUUM INTO" in found.fix


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_file_beside_it_that_shuts_others_out_is_fixed(database: Database, suffix: str) -> None:
    beside = Path(f"{database.path}{suffix}")
    with closing(sqlite3.connect(database.path)) as other:
        other.execute("SELECT * FROM event_log").fetchall()
        database.created("A-1")  # SQLite itself fixes the mode of an empty one
        beside.chmod(0o600)
        found = look(database, "rights")
        fix(found)

        assert found.level == "warn"
        assert f"local.db{suffix} (" in found.found
        assert "0600) is not as the database is" in found.found
        assert wrong(database) == {"daemon"}


@needs_root
def test_a_file_beside_it_of_another_user_is_given_back(database: Database) -> None:
    lock = Path(f"{database.path}-projector.lock")
    lock.touch(0o644)
    lock.chmod(0o644)
    os.chown(lock, STRANGER_UID, 0)

    found = look(database, "rights")
    fix(found)

    assert found.level == "fail"  # no daemon can start
    assert f"user {STRANGER_UID}:" in found.found
    assert wrong(database) == {"daemon"}


AS_STRANGER = f"{users.PROJECTOR}\nprint('---')\nbecome({STRANGER_UID})\ncli.main()\n"


@needs_root
@pytest.mark.parametrize(
    ("name", "mode", "owner", "command"),
    [
        ("local.db", 0o444, STRANGER_UID, "`chmod u+rw "),
        ("", 0o555, STRANGER_UID, "`chmod u+rwx "),
        ("local.db", 0o600, 0, "as root: `find "),
        ("local.db", 0o600, 60004, "local.db is user 60004's, the folder user 60003's: find out"),
        ("local.db-projector.lock", 0o644, 0, "move it aside, and it is made again: `mv -T "),
        ("local.db-projector.lock", 0o600, 60004, "move it aside, and it is made again: `mv -T "),
        ("", 0o700, 0, "to share it with a group, as root: `projector db setup --group NAME"),
        ("local.db-wal", 0, 60004, "local.db-wal.aside`"),
        ("local.db-shm", 0o600, 60004, "local.db-shm.aside`"),
    ],
)
def test_what_this_user_may_not_read_and_write_is_named(
    name: str, mode: int, owner: int, command: str
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="projector-test-"))
    try:
        path = folder / "local.db"
        schema.setup(path)
        path.with_name("local.db-projector.lock").touch()
        (folder / name).touch()
        for file in (folder, *folder.iterdir()):
            os.chown(file, STRANGER_UID, STRANGER_UID)
        folder.chmod(0o755)
        os.chown(folder / name, owner, -1)
        (folder / name).chmod(mode)

        done = projector("doctor", "-d", path, code=AS_STRANGER, check=None)
    finally:
        shutil.rmtree(folder)

    said = done.stdout.partition("---\n")[2]
    assert done.returncode == 1, done
    assert re.search(r"FAIL  rights +user 60003 cannot read and write", said), said
    assert command in said
    assert "are free for a database" in said
    assert "Traceback" not in done.stderr
    assert "run as" not in said
    assert "chown 0" not in said


@pytest.fixture
def stranger(folded: Database) -> Iterator[Database]:
    """A folder that is all a stranger's, and files beside the database."""
    folder = Path(tempfile.mkdtemp(prefix="projector-test-"))
    shutil.copy(folded.path, folder / "local.db")
    path = folder / "local.db"
    path.chmod(0o660)
    (folder / "local.db-projector.lock").touch()
    (folder / "local.db-projector.lock").chmod(0o660)
    for file in (folder, *folder.iterdir()):
        os.chown(file, STRANGER_UID, STRANGER_UID)
    folder.chmod(0o2770)
    yield Database(path)
    shutil.rmtree(folder)


def owners(database: Database) -> set[tuple[str, int, int, int]]:
    return {
        (file.name, file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777)
        for file in database.path.parent.iterdir()
    }


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o660, 0])
def test_a_database_that_became_roots_is_what_is_fixed_and_not_its_lock(
    stranger: Database, mode: int
) -> None:
    before = owners(stranger)
    os.chown(stranger.path, 0, 0)
    stranger.path.chmod(mode)

    found = [one for one in examine(stranger.path) if one.check == "rights"]
    fix(found[0])

    assert [one.level for one in found if one.level == "fail"] == ["fail"]
    assert f"user {STRANGER_UID}, the owner of the folder, cannot read and write" in found[0].found
    assert not [one for one in found if "lock" in one.fix]
    # Nothing of root's was left beside it by having looked.
    assert owners(stranger) == before


@needs_root
def test_a_database_that_left_the_group_of_its_folder_goes_back_to_that(
    stranger: Database,
) -> None:
    os.chown(stranger.path, -1, 0)

    found = [one for one in examine(stranger.path) if one.check == "rights"]

    assert f"projector db setup --group {STRANGER_UID} " in found[0].fix
    assert not [one for one in found if "chown" in one.fix]


@needs_root
def test_a_folder_in_the_place_of_the_database_has_nothing_given_to_it(
    stranger: Database,
) -> None:
    stranger.path.unlink()
    stranger.path.mkdir()

    assert "chown" not in "".join(one.fix for one in examine(stranger.path))


@needs_root
def test_the_user_of_the_live_daemon_is_who_must_be_able_to_write(stranger: Database) -> None:
    code = f"{users.PROJECTOR}\nbecome({STRANGER_UID})\n{HOLD_LOCK}"
    with another(code, stranger.path) as pid:
        well = look(stranger, "rights")
        os.chown(stranger.path, 0, 0)
        stranger.path.chmod(0o600)
        os.chown(stranger.path.parent, 0, 0)
        stranger.path.parent.chmod(0o755)
        found = [one for one in examine(stranger.path) if one.check == "rights"]

    assert well.level == "ok"
    told = f"user {STRANGER_UID}, the user of the daemon (process {pid}), cannot"
    assert f"{told} read and write local.db (root:root 0600)" in found[1].found
    assert {one.level for one in found} == {"fail"}
    assert not [one for one in found if "chown" in one.fix]


@needs_root
def test_a_copy_on_a_file_system_that_is_mounted_read_only_can_be_compared(
    folded: Database,
) -> None:
    folded.sql("UPDATE view SET data = x'80' WHERE key = 'session:A-1'")
    program = shlex.join(PROJECTOR)
    copies = {"as it was made": "VACUUM INTO", "in WAL mode": ""}
    for name, statement in copies.items():
        copy = folded.path.parent / name / "local.db"
        copy.parent.mkdir()
        if statement:
            folded.sql(f"{statement} ?", str(copy))
        else:
            shutil.copy(folded.path, copy)
    for name in copies:
        copy = shlex.quote(str(folded.path.parent / name / "local.db"))
        script = (
            f"mount -t tmpfs -o mode=755 tmpfs /mnt && cp {copy} /mnt || exit 77\n"
            "mount -o remount,ro /mnt || exit 77\n"
            f"{program} verify -d /mnt/local.db; echo $?; {program} status -d /mnt/local.db\n"
            f"{program} doctor -d /mnt/local.db; {program} db setup -d /mnt/local.db; echo $?"
        )
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
        if done.returncode == 77:
            pytest.skip(f"may not mount a tmpfs: {done.stderr}")

        assert "sessions: 1 of 3 views differ" in done.stdout
        assert "views          3" in done.stdout
        assert done.stdout.splitlines()[-1] == "4"
        assert "mounted read-only" in done.stderr
        assert "Traceback" not in done.stderr


@needs_root
def test_a_file_system_that_is_mounted_read_only_is_said(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "local.db"
    path.parent.mkdir()
    program = shlex.join(PROJECTOR)
    script = (
        f"mount -t tmpfs -o mode=755 tmpfs {path.parent} || exit 77\n"
        f"{program} db setup -d {path} >&2\n"
        f"mount -o remount,ro {path.parent} || exit 77\n"
        f"{program} run --once -d {path} || echo $? >&2\n"
        f"{program} doctor --json -d {path}"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        pytest.skip(f"may not mount a tmpfs: {done.stderr}")

    (found,) = [one for one in json.loads(done.stdout) if one["check"] == "rights"]
    assert "is on a file system that is mounted read-only" in found["found"]
    assert f"`mount -o remount,rw {path.parent}`" in found["mend"]
    assert "mounted read-only" in done.stderr
    assert "setup --group" not in done.stderr
