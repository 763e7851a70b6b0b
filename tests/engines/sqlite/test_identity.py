"""Files that are removed or replaced under a connection: it ends, and what others write is kept.

What has them open is another process: SQLite shares what it knows of a file within one.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from support import Database, daemon, projector
from support.laws import elsewhere, said, tell

from session_projector.worker.storage.sqlite.schema import migrate

STORE = """
from session_projector.worker.errors import TransientError
try:
    with database.open(writable=True) as store:
        append(store, "before")
        say("opened")
        exec(input())
except TransientError as error:
    say(str(error))
"""


def remove(database: Database, *suffixes: str) -> None:
    for suffix in suffixes:
        os.remove(f"{database.path}{suffix}")


def keys(database: Database) -> list[str]:
    return [key for _, _, key, *_ in database.log()]


@pytest.mark.parametrize("suffixes", [["-shm"], ["-wal"], ["-wal", "-shm"]])
def test_a_daemon_ends_when_they_are_removed_and_nothing_written_later_is_lost(
    database: Database, suffixes: list[str]
) -> None:
    with daemon(database.path) as running:
        database.created("A-1")
        running.wait_until_at(1)
        database.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        remove(database, *suffixes)
        for number in range(20):
            database.appended("A-1", f"{number}")
        _, rest = running.process.communicate(timeout=20)

    assert running.process.returncode == 3
    assert f"{suffixes[0]} was removed or replaced while it was open" in rest
    assert keys(database) == ["session:A-1"] * 21
    assert database.sql("PRAGMA integrity_check") == [("ok",)]
    projector("run", "--once", "-d", database.path)
    projector("verify", "-d", database.path)


def test_a_stop_before_it_is_noticed_keeps_what_others_wrote(database: Database) -> None:
    with daemon(database.path) as running:
        running.wait_for("started")
        running.process.send_signal(signal.SIGSTOP)
        remove(database, "-wal", "-shm")
        database.created("A-1")
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        running.process.communicate(timeout=20)

    assert running.process.returncode == 3
    assert keys(database) == ["session:A-1"]


def test_an_event_written_into_removed_files_is_not_said_to_be_kept(database: Database) -> None:
    with elsewhere(str(database.path), STORE) as process:
        assert said(process) == "opened"
        database.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        remove(database, "-wal", "-shm")
        tell(process, "append(store, 'after'); say('kept')")
        assert said(process).startswith(f"{database.path}-wal was removed or replaced")
        process.communicate()

    assert [row[1] for row in database.log()] == ["before"]


@pytest.mark.parametrize("ends", ["", "exit()", "raise ValueError"])
def test_whatever_a_command_ends_by_it_touches_no_file_that_others_use_by_then(
    database: Database, ends: str
) -> None:
    with elsewhere(str(database.path), STORE) as process:
        assert said(process) == "opened"
        database.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        remove(database, "-wal", "-shm")
        with closing(sqlite3.connect(database.path)) as writer:
            database.created("A-1")
            tell(process, ends)
            assert said(process).startswith(f"{database.path}-wal was removed or replaced")
            process.communicate()
            assert os.path.exists(f"{database.path}-wal")
            assert writer.execute("SELECT count(*) FROM event_log").fetchone() == (2,)

    assert keys(database) == ["session:A", "session:A-1"]


def test_what_stands_beside_a_file_put_in_its_place_is_not_deleted(
    database: Database, tmp_path: Path
) -> None:
    new = Database(tmp_path / "new.db")
    migrate.setup(new.path)
    with elsewhere(str(database.path), STORE) as process:
        assert said(process) == "opened"
        remove(database, "", "-wal", "-shm")
        new.path.rename(database.path)
        database.created("A-1")
        with closing(sqlite3.connect(database.path)) as writer:
            writer.execute("SELECT count(*) FROM event_log").fetchone()
            database.created("A-2")
            tell(process)
            assert said(process) == f"{database.path} was replaced or deleted while it was open"
            process.communicate()
            assert os.path.exists(f"{database.path}-wal")
            assert writer.execute("SELECT count(*) FROM event_log").fetchone() == (2,)

    assert keys(database) == ["session:A-1", "session:A-2"]


def test_a_file_put_in_its_place_beside_its_write_ahead_log_needs_an_operator(
    database: Database, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    migrate.setup(backup)
    content = backup.read_bytes()
    with daemon(database.path) as running:
        running.wait_for("started")
        database.created("A-1")
        backup.rename(database.path)
        _, rest = running.process.communicate(timeout=20)

    assert running.process.returncode == 4
    assert "its -wal is there still" in rest
    assert database.path.read_bytes() == content
    hint = json.loads(rest.splitlines()[-1])["hint"]
    for command in re.findall("`(mv [^`]+)`", hint):
        subprocess.run(command, shell=True, check=True)
    assert database.sql("PRAGMA integrity_check") == [("ok",)]
    assert keys(database) == []
    assert os.path.getsize(f"{database.path}-wal.aside")


def test_a_deleted_file_can_be_had_back_and_nothing_is_made_in_its_place(
    database: Database,
) -> None:
    with elsewhere(str(database.path), STORE) as process:
        assert said(process) == "opened"
        database.path.unlink()
        for command in (["db", "setup"], ["run", "--once", "--create"], ["status"]):
            refused = projector(*command, "-d", database.path, check=4)
            assert "its last commits are in its -wal" in refused.stderr
        assert not database.path.exists()

        (rescue,) = re.findall("`(kill -STOP [^`]+)`", refused.stderr)
        subprocess.run(rescue, shell=True, check=True)
        process.kill()
        process.communicate()
    rescued = Database(Path(f"{database.path}.rescued"))
    assert keys(rescued) == ["session:A"]


def test_a_write_ahead_log_that_a_writer_alone_has_is_put_back(database: Database) -> None:
    with elsewhere(str(database.path), STORE) as process:
        assert said(process) == "opened"
        remove(database, "-wal")
        refused = projector("status", "-d", database.path, check=3)
        assert f"local.db-wal was removed, and {process.pid} (" in refused.stderr
        assert "make room" not in refused.stderr

        (back,) = re.findall("`(kill -STOP [^`]+)`", refused.stderr)
        subprocess.run(back, shell=True, check=True)
        process.communicate()
    assert keys(database) == ["session:A"]


def test_a_link_that_leads_to_another_database_ends_the_daemon(
    database: Database, tmp_path: Path
) -> None:
    link, new = tmp_path / "link.db", tmp_path / "new.db"
    migrate.setup(new)
    link.symlink_to(database.path)
    with daemon(link) as running:
        running.wait_for("started")
        link.unlink()
        link.symlink_to(new)
        _, rest = running.process.communicate(timeout=20)

    assert running.process.returncode == 3
    assert f"{link} led to {database.path}, and now leads elsewhere" in rest
