import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
from support import Database, event, projector, shell, started

from session_projector import migrations
from session_projector.worker.errors import InterventionRequired
from session_projector.worker.storage.sqlite.schema import migrate as schema

SAMPLE = Path(__file__).parents[2] / "support" / "kanbatte-sample.db"
NAMES = [
    "0001-initial-schema",
    "0002-add-view-table",
    "0003-projector-sessions",
    "0004-projector-dismissed",
    "0005-projector-projection-state",
    "0006-projector-deferred",
]


@pytest.fixture
def kanbatte(tmp_path: Path) -> Database:
    """A database that Kanbatte's own program wrote."""
    path = tmp_path / "kanbatte.db"
    shutil.copy(SAMPLE, path)
    path.chmod(0o644)
    return Database(path)


def kanbatte_views(database: Database) -> dict[str, dict[str, object]]:
    rows = database.sql("SELECT key, data FROM view WHERE key LIKE 'session:%'")
    return {key: msgpack.unpackb(data) for key, data in rows}


def test_a_fresh_file_gets_every_table_and_the_history(tmp_path: Path) -> None:
    done = schema.setup(tmp_path / "new.db")

    database = Database(tmp_path / "new.db")
    assert done.applied == NAMES
    assert [name for (name,) in database.sql("SELECT name FROM umzug_meta")] == NAMES
    assert {"event_log", "view", "checkpoint", "quarantine", "umzug_meta"} <= {
        name for (name,) in database.sql("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    assert database.sql("PRAGMA journal_mode") == [("wal",)]


def test_running_it_again_does_nothing_and_says_so(database: Database) -> None:
    before = database.sql("SELECT * FROM sqlite_master")

    said = projector("db", "setup", "-d", database.path).stdout

    assert "nothing to do" in said
    assert database.sql("SELECT * FROM sqlite_master") == before


def test_db_status_lists_the_files_and_which_are_applied(kanbatte: Database) -> None:
    before = projector("db", "status", "-d", kanbatte.path).stdout
    projector("db", "setup", "-d", kanbatte.path)
    after = projector("db", "status", "-d", kanbatte.path).stdout

    assert before.splitlines()[1:] == [
        f"applied  {NAMES[1]}",
        *(f"pending  {name}" for name in NAMES[2:]),
    ]
    assert after.splitlines() == [f"applied  {name}" for name in NAMES]


def test_a_kanbatte_database_is_adopted_with_every_event_in_order(kanbatte: Database) -> None:
    events = kanbatte.sql("SELECT id, key, data, created_at FROM event_log ORDER BY rowid")

    said = projector("db", "setup", "-d", kanbatte.path).stdout

    assert kanbatte.sql("SELECT id, key, data, created_at FROM event_log ORDER BY seq") == events
    assert [seq for seq, *_ in kanbatte.log()] == list(range(1, len(events) + 1))
    assert "copied the original database to" in said


def test_the_views_of_an_adopted_database_equal_kanbattes_own(kanbatte: Database) -> None:
    theirs = kanbatte_views(kanbatte)
    others = kanbatte.sql("SELECT * FROM view WHERE key NOT LIKE 'session:%'")
    projector("db", "setup", "-d", kanbatte.path)

    projector("run", "--once", "-d", kanbatte.path)

    names = ("project", "messages", "status", "createdAt", "updatedAt")
    ours = kanbatte_views(kanbatte)
    assert ours.keys() == theirs.keys()
    assert {key: [ours[key][name] for name in names] for key in ours} == {
        key: [theirs[key][name] for name in names] for key in theirs
    }
    assert kanbatte.sql("SELECT * FROM view WHERE key NOT LIKE 'session:%'") == others


def test_the_copy_made_before_an_adoption_is_the_database_as_it_was(kanbatte: Database) -> None:
    with closing(sqlite3.connect(kanbatte.path)) as original:
        before = "\n".join(original.iterdump())

    done = schema.setup(kanbatte.path)

    assert done.backup is not None
    with closing(sqlite3.connect(done.backup)) as copy:
        assert "\n".join(copy.iterdump()) == before


def test_adoption_works_while_others_have_the_file_open(kanbatte: Database) -> None:
    with closing(sqlite3.connect(kanbatte.path)) as other:
        other.execute("SELECT * FROM event_log").fetchone()
        projector("db", "setup", "-d", kanbatte.path)

        assert other.execute("SELECT max(seq) FROM event_log").fetchone() == (43,)


def test_a_database_with_kanbattes_first_migration_alone_is_adopted(tmp_path: Path) -> None:
    database = Database(tmp_path / "old.db")
    database.sql(
        "CREATE TABLE event_log (id TEXT PRIMARY KEY, key TEXT NOT NULL, data BLOB NOT NULL,"
        " created_at INTEGER NOT NULL)"
    )
    database.insert("A-1", {"type": "session_created", "data": {"project": "A"}})

    done = schema.setup(database.path)

    assert done.applied == NAMES[1:]
    projector("run", "--once", "-d", database.path)
    assert database.view("A-1")["project"] == "A"


@pytest.mark.parametrize("history", ["umzug_meta", "none", "odd names", "odd columns"])
def test_the_layout_counts_whatever_the_history_says(kanbatte: Database, history: str) -> None:
    kanbatte.sql("DROP TABLE schema_migrations")
    if history != "none":
        more = ", at INTEGER NOT NULL, by TEXT NOT NULL" if history == "odd columns" else ""
        kanbatte.sql(f"CREATE TABLE umzug_meta (name TEXT PRIMARY KEY{more})")
    if history in ("umzug_meta", "odd names"):
        kanbatte.sql("INSERT INTO umzug_meta VALUES ('0001-initial-schema')")
    if history == "odd names":
        kanbatte.sql("INSERT INTO umzug_meta VALUES ('0003-add-tasks'), ('9999-later')")

    projector("db", "setup", "-d", kanbatte.path)
    projector("run", "--once", "-d", kanbatte.path)

    assert len(kanbatte.views()) == 5


def test_the_newest_of_doubled_session_rows_is_kept_and_said(kanbatte: Database) -> None:
    kanbatte.sql(
        "INSERT INTO view SELECT 'twin', key, data, last_offset_id, created_at, updated_at + 1"
        " FROM view WHERE key = 'session:AA-1'"
    )
    kanbatte.sql(
        "INSERT INTO view SELECT 'other', key, data, last_offset_id, created_at, updated_at"
        " FROM view WHERE key = 'project:AA'"
    )

    said = projector("db", "setup", "-d", kanbatte.path).stdout

    assert "session:AA-1" in said
    assert kanbatte.sql("SELECT id FROM view WHERE key = 'session:AA-1'") == [("twin",)]
    assert kanbatte.sql("SELECT count(*) FROM view WHERE key = 'project:AA'") == [(2,)]


def test_other_peoples_views_indexes_and_triggers_survive(kanbatte: Database) -> None:
    foreign = [
        "CREATE VIEW board AS SELECT key, updated_at FROM view",
        "CREATE VIEW tape AS SELECT id, key FROM event_log",
        "CREATE INDEX my_index ON view (created_at)",
        "CREATE INDEX idx_event_log_mine ON event_log (created_at, id)",
        "CREATE TABLE seen (key TEXT)",
        "CREATE TRIGGER my_trigger AFTER UPDATE ON view"
        " BEGIN INSERT INTO seen VALUES (NEW.key); END",
        "CREATE TRIGGER event_log_audit AFTER INSERT ON event_log"
        " BEGIN INSERT INTO seen VALUES (NEW.key); END",
    ]
    for statement in foreign:
        kanbatte.sql(statement)

    projector("db", "setup", "-d", kanbatte.path)
    projector("run", "--once", "-d", kanbatte.path)
    kanbatte.insert("AA-1", {"type": "task_created"})

    kept = {sql for (sql,) in kanbatte.sql("SELECT sql FROM sqlite_master")}
    assert kept >= set(foreign)
    assert kanbatte.sql("SELECT count(*) FROM tape") == [(44,)]
    assert kanbatte.sql("SELECT count(*) FROM board") == [(7,)]
    assert ("session:AA-2",) in kanbatte.sql("SELECT key FROM seen")
    assert ("AA-1",) in kanbatte.sql("SELECT key FROM seen")


@pytest.mark.parametrize(
    "layout",
    [
        "CREATE TABLE event_log (id TEXT PRIMARY KEY, partition TEXT, type TEXT, payload BLOB)",
        "CREATE TABLE event_log (id TEXT PRIMARY KEY)",
        "CREATE TABLE view (a TEXT)",
    ],
)
def test_any_other_layout_is_refused_untouched_in_one_sentence(tmp_path: Path, layout: str) -> None:
    database = Database(tmp_path / "other.db")
    database.sql(layout)
    before = database.path.read_bytes()

    refused = projector("db", "setup", "-d", database.path, check=4)

    assert "layout that is not known" in refused.stderr
    assert database.path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize(
    "tables", ["users (id)", "old (id)", "umzug_meta (name); CREATE TABLE u(a)"]
)
def test_a_database_of_another_program_is_refused_untouched(tmp_path: Path, tables: str) -> None:
    database = Database(tmp_path / "other.db")
    for statement in f"CREATE TABLE {tables}".split(";"):
        database.sql(statement)
    before = database.path.read_bytes()

    refused = projector("db", "setup", "-d", database.path, check=4)

    assert "is the database of another program" in refused.stderr
    assert database.path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize("name", ["umzug_meta", "schema_migrations"])
def test_a_history_alone_is_no_other_program(tmp_path: Path, name: str) -> None:
    database = Database(tmp_path / "new.db")
    database.sql(f"CREATE TABLE {name} (name TEXT PRIMARY KEY)")

    assert schema.setup(database.path).applied == NAMES


def test_a_folder_is_not_made_silently(tmp_path: Path) -> None:
    said = projector("db", "setup", "-d", tmp_path / "data" / "a.db").stdout

    assert said.startswith(f"created the folder {tmp_path / 'data'}\n")
    assert "created" not in projector("db", "setup", "-d", tmp_path / "data" / "b.db").stdout
    ran = projector("run", "--once", "--create", "-d", tmp_path / "other" / "a.db").stderr
    assert '"event": "folder_created"' in ran


def test_more_than_one_folder_is_not_made_at_all(tmp_path: Path) -> None:
    refused = projector("db", "setup", "-d", tmp_path / "a" / "b" / "x.db", check=4).stderr

    assert f"there is no folder {tmp_path / 'a' / 'b'}\n" in refused
    (fix,) = re.findall("`(.*)`", refused)
    assert shell(fix).returncode == 0
    assert (tmp_path / "a" / "b" / "x.db").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (":memory:", "is seen by one process alone"),
        ("file:a.db?mode=rw", "is a URI of SQLite's"),
        ("file:///a.db", "is a URI of SQLite's"),
    ],
)
def test_a_name_that_only_sqlite_understands_is_refused(
    tmp_path: Path, name: str, why: str
) -> None:
    assert why in projector("db", "setup", "-d", name, cwd=tmp_path, check=2).stderr
    assert [*tmp_path.iterdir()] == []


def test_a_url_names_the_file_of_its_path(tmp_path: Path) -> None:
    projector("db", "setup", "-d", f"sqlite://{tmp_path}/a.db")

    assert (tmp_path / "a.db").is_file()


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_database_in_utf_16_is_refused_untouched_and_its_copy_as_printed_is_adopted(
    tmp_path: Path, encoding: str
) -> None:
    events = [(1, "é", "session:😀", '{"type": "task_created"}', 1), (2, "b", "b", b"\x80\xff", 2)]
    other = Database(tmp_path / "it's other.db")
    with closing(sqlite3.connect(other.path)) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.executescript("\n".join(migrations.load().values()))
        connection.executemany("INSERT INTO event_log VALUES (?, ?, ?, ?, ?)", events)
        connection.commit()
    before = other.path.read_bytes()

    for command in (["db", "setup"], ["run"], ["status"]):
        refused = projector(*command, "-d", other.path, check=4)
        assert f"keeps its texts as {encoding}; only a database in UTF-8" in refused.stderr
        assert len(refused.stderr.splitlines()) == (1 if command == ["run"] else 2)
    assert other.path.read_bytes() == before

    (fix,) = re.findall("`(.*)`", refused.stderr)
    subprocess.run(["bash", "-c", fix], check=True)
    copy = Database(tmp_path / "it's other-utf8.db")
    projector("db", "setup", "-d", copy.path)
    projector("run", "--once", "-d", copy.path, check=None)
    assert copy.sql("SELECT * FROM event_log") == events


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sqlite_version_info", (3, 31, 1), "is too old: "),
        ("threadsafety", 0, "is built for programs of one thread alone"),
    ],
)
def test_a_sqlite_that_lacks_what_is_needed_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, told: str
) -> None:
    monkeypatch.setattr(sqlite3, name, value)

    with pytest.raises(InterventionRequired, match=f"the SQLite of .*python.* {told}") as refused:
        schema.setup(tmp_path / "new.db")

    assert refused.value.exit_code == 4
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "sqlite3.py").write_text("raise OSError('a module of the working folder')")
    (hint,) = re.findall("`(.*)`", refused.value.hint)
    subprocess.run(["bash", "-c", hint], cwd=tmp_path, check=True)


def test_a_newer_schema_is_refused_by_set_up_and_by_the_daemon(database: Database) -> None:
    database.sql("INSERT INTO umzug_meta (name) VALUES ('0004-projector-later')")

    for command in (["db", "setup"], ["run", "--once"]):
        refused = projector(*command, "-d", database.path, check=4)
        assert "newer schema" in refused.stderr
        assert "upgrade projector" in refused.stderr


def test_an_older_schema_is_refused_by_the_daemon_with_the_command_that_fixes_it(
    kanbatte: Database,
) -> None:
    refused = projector("run", "--once", "-d", kanbatte.path, check=4)

    assert f"projector db setup -d {kanbatte.path}" in refused.stderr


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at" * 100)

    for command in (["db", "setup"], ["run"], ["status"]):
        refused = projector(*command, "-d", path, check=4)
        assert "not a SQLite database" in refused.stderr


def test_a_set_up_killed_at_any_moment_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    template = Database(tmp_path / "template.db")
    shutil.copy(SAMPLE, template.path)
    template.path.chmod(0o644)
    template.sql(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " INSERT INTO event_log SELECT 'n' || i, 'N-1', zeroblob(400), i FROM n"
    )
    outcomes = set()
    for attempt in range(8):
        database = Database(tmp_path / f"{attempt}.db")
        shutil.copy(template.path, database.path)
        setup = started("db", "setup", "-d", database.path)
        # Killed at the first sign of work, and then ever later.
        while setup.poll() is None and not any(tmp_path.glob(f"{attempt}.db?*")):
            time.sleep(0.001)
        try:
            setup.wait(attempt * 0.04)
        except subprocess.TimeoutExpired:
            setup.send_signal(signal.SIGKILL)
            setup.wait()

        columns = [row[1] for row in database.sql("PRAGMA table_info(event_log)")]
        outcomes.add(columns[0])
        assert columns in (
            ["id", "key", "data", "created_at"],
            ["seq", "id", "key", "data", "created_at"],
        )
        assert database.sql("SELECT count(*) FROM event_log") == [(20043,)]
        projector("db", "setup", "-d", database.path)
        assert database.sql("SELECT max(seq) FROM event_log") == [(20043,)]

    assert "id" in outcomes


def test_two_set_ups_at_once_do_no_harm(kanbatte: Database) -> None:
    both = [started("db", "setup", "-d", kanbatte.path) for _ in range(2)]

    assert [process.wait() for process in both] == [0, 0]
    assert kanbatte.sql("SELECT count(*), max(seq) FROM event_log") == [(43, 43)]
    (copy,) = kanbatte.path.parent.glob("kanbatte.db.*")
    columns = Database(copy).sql("SELECT name FROM pragma_table_info('event_log')")
    assert columns == [("id",), ("key",), ("data",), ("created_at",)]


def test_dump_and_reload_keeps_positions_and_the_protection(
    database: Database, tmp_path: Path
) -> None:
    database.created("A-1", "hello")
    projector("run", "--once", "-d", database.path)
    with closing(sqlite3.connect(database.path)) as connection:
        script = "\n".join(connection.iterdump())
    reloaded = Database(tmp_path / "reloaded.db")
    with closing(sqlite3.connect(reloaded.path)) as connection:
        connection.executescript(script)

    reloaded.insert("A-1", {"type": "session_append", "data": {"messages": [{"a": 1}]}}, id="x")
    projector("run", "--once", "-d", reloaded.path)

    assert len(reloaded.view("A-1")["messages"]) == 2
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        reloaded.sql("DELETE FROM event_log")


def test_an_absent_folder_of_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterventionRequired):
        schema.setup(tmp_path / "no" / "such" / "local.db")


def test_odd_text_in_an_adopted_database_is_quarantined_not_fatal(tmp_path: Path) -> None:
    database = Database(tmp_path / "odd.db")
    for name in NAMES[:2]:
        for statement in filter(str.strip, migrations.load()[name].split(";")):
            database.sql(statement)
    database.insert("session:good", event("session_created", {"project": "A"}))
    odd = ["CAST(x'ff' AS TEXT)", "CAST(x'73657373696f6e3aff' AS TEXT)", "x'ff'", "''"]
    for number, key in enumerate(odd):
        database.sql(f"INSERT INTO event_log VALUES ({key} || {number}, {key}, x'c1', 1)")
        database.sql(f"INSERT INTO view VALUES ({key} || {number}, {key}, x'80', 'x', 1, 1)")
    (others,) = database.sql(
        "SELECT count(*) FROM view WHERE key NOT BETWEEN 'session:' AND 'session;'"
    )

    projector("db", "setup", "-d", database.path)
    projector("run", "--once", "-d", database.path, check=None)

    assert database.sql("SELECT hex(key) FROM view WHERE key LIKE 'session:%'") == [
        (b"session:good".hex().upper(),)
    ]
    assert database.sql("SELECT count(*) FROM quarantine WHERE projection = 'sessions'") == [(4,)]
    assert database.sql("SELECT count(*) - 1 FROM view") == [others]


def test_a_wrong_group_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    for group in ("no-such-group", "²", "9" * 30):
        projector("db", "setup", "-d", tmp_path / "x.db", "--group", group, check=2)

    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--writer", "--reader"])
def test_a_role_is_refused_before_anything_is_done(tmp_path: Path, option: str) -> None:
    done = projector("db", "setup", "-d", tmp_path / "x.db", option, "somebody", check=2)

    assert "has no roles" in done.stderr
    assert "projector db setup --group NAME" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_killed_set_up_leaves_its_backup_under_its_name_and_no_other_copies(
    kanbatte: Database,
) -> None:
    left = kanbatte.path.with_name("kanbatte.db.copying-999999999")
    left.write_bytes(b"of a set-up that was killed")
    program = (
        "import os, signal, sys, pathlib\n"
        "from session_projector.worker.storage.sqlite.schema import migrate as schema\n"
        "schema.use_wal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "schema.setup(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-P", "-c", program, str(kanbatte.path)], check=False)
    projector("db", "setup", "-d", kanbatte.path)

    names = sorted(path.name for path in kanbatte.path.parent.glob("kanbatte.db.*"))
    assert len(names) == 1
    assert names[0].startswith("kanbatte.db.before-projector-")
