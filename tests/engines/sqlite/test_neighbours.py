"""SQL that other programs leave in the database: named, survived, and put right if that is safe."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from support import Database, daemon, projector, shell
from support.folding import catch_up

ENDLESS = (
    "SELECT count(*) FROM"
    " (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT n FROM c)"
)
MOST = 2**63 - 1
EDIT = "PRAGMA writable_schema = ON;"
LOCKS_THE_READ_MARKS = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shm:
    fcntl.lockf(shm, fcntl.LOCK_EX, 5, 123)
    print("locked", flush=True)
    sys.stdin.read()
"""


def doctor(database: Database, check: str) -> list[dict[str, Any]]:
    done = projector("doctor", "--json", "-d", database.path, check=None)
    return [one for one in json.loads(done.stdout) if one["check"] == check]


def fix(found: dict[str, Any]) -> None:
    """Paste the first command that a finding gives into a shell."""
    done = shell(re.findall("`([^`]*)`", found["mend"])[0])
    assert done.returncode == 0, done


def goes_on(database: Database) -> None:
    """What is written is folded, and as the log says."""
    database.created("B-1", "more")
    database.insert("B-1", "no event")
    projector("run", "--once", "-d", database.path, check=None)
    projector("verify", "-d", database.path)


@pytest.fixture
def folded(database: Database) -> Database:
    database.created("A-1", "one")
    database.insert("A-1", "no event")
    catch_up(database)
    return database


# Checkpoints


@pytest.mark.parametrize(
    "table", ["event_log", "EVENT_LOG", "view", "quarantine", "theirs", "nope"]
)
@pytest.mark.parametrize("prefix", ["", "session:"])
def test_dropping_a_projection_leaves_every_table_that_is_not_its_own(
    folded: Database, table: str, prefix: str
) -> None:
    folded.sql("CREATE TABLE theirs (key TEXT PRIMARY KEY)")
    folded.sql("INSERT INTO theirs VALUES ('session:x')")
    before = [folded.everything(), folded.sql("SELECT * FROM theirs")]
    row = ("tokens", 1, 0, 0, "", 0, table, "key", prefix)
    folded.sql("INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)

    said = projector("projection", "drop", "tokens", "--yes", "-d", folded.path).stdout

    assert f"{table}{' (session:…)' if prefix else ''} is no table of this projection" in said
    assert [folded.everything(), folded.sql("SELECT * FROM theirs")] == before


def test_a_table_of_two_projections_is_dropped_with_neither(folded: Database) -> None:
    row = ("tokens", 1, 0, 0, "", 0, "session_index", "session", "")
    folded.sql("INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)

    projector("projection", "drop", "tokens", "--yes", "-d", folded.path)

    assert len(folded.index()) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("version", -MOST - 1),
        ("position", MOST),
        ("generation", 1.5),
        ("skipped", MOST),
        ("kept_in", b"x"),
        ("prefix", "\U0010ffff"),
    ],
)
def test_a_checkpoint_that_cannot_be_counted_on_from_is_named_and_put_right(
    folded: Database, column: str, value: Any
) -> None:
    folded.sql(f"UPDATE checkpoint SET {column} = ?", value)
    for command in ("status", "replay", "run --once"):
        projector(*command.split(), "-d", folded.path, check=4)

    (found,) = doctor(folded, "schema")
    assert found["level"] == "fail"
    assert "the checkpoint of sessions, session_index is no position" in found["found"]
    fix(found)
    goes_on(folded)


def test_more_views_behind_than_can_be_are_forgotten_by_the_command(folded: Database) -> None:
    folded.sql(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
        " INSERT INTO deferred SELECT name, 'session:' || i, position, position, 1, 1, 1"
        " FROM n, checkpoint"
    )

    projector("run", "--once", "-d", folded.path, check=4)
    (found,) = doctor(folded, "schema")
    fix(found)

    assert folded.sql("SELECT count(*) FROM deferred") == [(0,)]
    goes_on(folded)


def test_rows_under_names_that_no_projection_has_are_nobodys(folded: Database) -> None:
    odd = (
        "a; rm -rf ~",
        "$(x)",
        "`x`",
        b"\xff",
        "a\nb",
        "",
        "\x1b[2J",
        "--yes",
        "a\0; b",
        "a" * 201,
    )
    for name in odd:
        row = (name, "v", MOST, 0, "", 0, "event_log", "key", "")
        folded.sql("INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
    folded.sql("UPDATE checkpoint SET name = CAST(name AS TEXT) WHERE name = x'ff'")
    done = projector("run", "--once", "-d", folded.path)
    for command in ("status", "projection list", "verify"):
        projector(*command.split(), "-d", folded.path)

    assert "projection drop" not in done.stderr
    (found,) = doctor(folded, "checkpoint")
    assert "10 rows of checkpoint: no projection has such a name" in found["found"]
    fix(found)
    assert folded.sql("SELECT count(*) FROM checkpoint") == [(2,)]


def test_a_projection_that_never_was_is_dropped_by_a_command_that_is_safe_to_paste(
    folded: Database,
) -> None:
    row = ("tokens", 1, 0, 0, "", 0, "event_log", "key", "")
    folded.sql("INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)

    said = projector("run", "--once", "-d", folded.path).stderr
    (line,) = [json.loads(text) for text in said.splitlines() if "without_code" in text]

    fix({"mend": f"{line['hint'][:-1]} --yes -d {folded.path}`"})
    assert folded.sql("SELECT count(*) FROM checkpoint") == [(2,)]


def test_what_others_report_of_projections_is_not_believed(folded: Database) -> None:
    folded.sql(
        "INSERT INTO projection_state VALUES (x'ff', 1, 'x', 2, 'x', 'y', 'z', NULL)".replace(
            "NULL", "0"
        )
    )
    folded.sql("INSERT INTO projection_state VALUES ('sessions', 'failed', 'v', 7, 0, 0, 'x', 0)")
    for command in ("status", "doctor", "health", "projection list"):
        projector(*command.split(), "-d", folded.path, check=None)
    goes_on(folded)


# Tables


@pytest.mark.parametrize(
    "statement",
    [
        'ALTER TABLE event_log ADD COLUMN "a\'; x"',
        "ALTER TABLE view ADD COLUMN extra DEFAULT 7",
        "ALTER TABLE session_index RENAME TO s; CREATE VIEW session_index AS SELECT * FROM s",
        "DROP TABLE view; CREATE VIEW view AS SELECT 1 AS key",
        "DROP TABLE checkpoint; CREATE VIEW checkpoint AS SELECT 1 AS name",
        "DROP TABLE umzug_meta; CREATE VIEW umzug_meta AS SELECT 1 AS name",
        "DROP TABLE umzug_meta; CREATE VIEW UMZUG_meta AS SELECT '0099-projector-later' AS name",
        'ALTER TABLE event_log RENAME TO "a tape";CREATE VIEW event_log AS SELECT * FROM "a tape"',
        "ALTER TABLE event_log RENAME COLUMN seq TO number",
        "ALTER TABLE view RENAME COLUMN last_offset_id TO l; CREATE TABLE view_aside (a)",
        "DROP TABLE umzug_meta; CREATE TABLE umzug_meta (title TEXT)",
        f"DROP TABLE view; {EDIT} INSERT INTO sqlite_master"
        " VALUES ('table', 'view', 'view', 0, 'CREATE VIRTUAL TABLE view USING missing (a)')",
        f"{EDIT} UPDATE sqlite_master SET sql = replace(sql, 'position INTEGER',"
        " 'position INTEGER CHECK (position < 3)') WHERE name = 'checkpoint'",
        f"{EDIT} UPDATE sqlite_master SET sql = replace(sql, 'key TEXT', 'key TEXT COLLATE gone')"
        " WHERE name = 'view'; CREATE TABLE view_aside (a); CREATE VIEW odd AS SELECT * FROM gone",
        f"{EDIT} UPDATE sqlite_master SET sql = replace(sql, 'title TEXT', 'title TEXT,"
        " more AS (abs(-9223372036854775808))') WHERE name = 'session_index'",
        "CREATE TABLE c AS SELECT * FROM checkpoint; DROP TABLE checkpoint;"
        "ALTER TABLE c RENAME TO checkpoint; INSERT INTO checkpoint SELECT * FROM checkpoint",
    ],
)
def test_a_table_that_others_changed_or_replaced_is_put_right_by_what_doctor_says(
    folded: Database, statement: str
) -> None:
    before = folded.log()
    with closing(sqlite3.connect(folded.path)) as connection:
        connection.executescript(statement)

    (found,) = doctor(folded, "schema")
    assert found["level"] == "fail"
    for command in re.findall("`([^`]*)`", found["mend"]):
        fix({"mend": f"`{command}`"})

    goes_on(folded)
    assert [row[1] for row in folded.log()][:2] == [row[1] for row in before]


def test_a_line_of_the_history_that_no_newer_version_wrote_is_removed_by_the_command(
    folded: Database,
) -> None:
    folded.sql("INSERT INTO umzug_meta (name) VALUES ('0099' || char(0) || '-projector-later')")
    folded.sql("INSERT INTO umzug_meta (name) VALUES (CAST('0099-projector-later' AS BLOB))")

    (found,) = doctor(folded, "schema")
    assert "newer schema" in found["found"]
    *_, forget = re.findall("`[^`]*`", found["mend"])
    fix({"mend": forget})

    goes_on(folded)


def test_a_log_whose_columns_are_in_another_order_is_copied(folded: Database) -> None:
    folded.sql("DROP TABLE event_log")
    folded.sql("CREATE TABLE event_log (id, seq INTEGER PRIMARY KEY, key, data, created_at)")

    (found,) = doctor(folded, "schema")

    assert found["mend"].startswith("copy the log")


@pytest.mark.parametrize(
    ("column", "check"),
    [
        ("seq TEXT PRIMARY KEY", "schema"),
        ("seq INTEGER PRIMARY KEY DESC", "schema"),
        ("seq INTEGER PRIMARY KEY AUTOINCREMENT CHECK (seq)", "seq"),
    ],
)
def test_a_log_that_others_made_again_is_never_read_as_positions_that_are_none(
    folded: Database, column: str, check: str
) -> None:
    rows = folded.sql("SELECT seq, id, key, data, created_at FROM event_log")
    folded.sql("DROP TABLE event_log")
    folded.sql(f"CREATE TABLE event_log ({column}, id TEXT, key TEXT, data BLOB, created_at)")
    for row in rows:
        folded.sql("INSERT INTO event_log VALUES (?, ?, ?, ?, ?)", *row)
    if check == "schema":
        folded.sql("INSERT INTO event_log VALUES ('x', 'x', 'x', 'x', 1)")
        for command in ("run --once", "status", "verify"):
            done = projector(*command.split(), "-d", folded.path, check=4)
            assert "seq is no INTEGER PRIMARY KEY" in done.stderr

    (found,) = doctor(folded, check)
    assert (found["level"], "copy the log" in found["mend"]) == ("fail", True)


@pytest.mark.parametrize("seq", [MOST, -1])
def test_an_event_at_a_position_that_closes_the_log_is_moved_aside_by_the_command(
    folded: Database, seq: int
) -> None:
    folded.sql("DROP TRIGGER event_log_next_seq")
    folded.sql(f"INSERT INTO event_log VALUES ({seq}, 'x', 'x', 'x', 1)")

    for command in ("run --once", "db setup", "verify"):
        done = projector(*command.split(), "-d", folded.path, check=4)
        assert f"an event at position {seq}, past the triggers" in done.stderr
    (found,) = doctor(folded, "schema")
    fix(found)

    assert folded.sql("SELECT * FROM event_log_odd") == [(seq, "x", "x", "x", 1)]
    assert folded.created("A-2") == 3
    goes_on(folded)


def test_a_view_under_a_key_that_is_no_utf8_is_never_behind(folded: Database) -> None:
    for key in ("x'ff'", "x'73657373696f6e3a413100ff'"):
        folded.sql(
            f"INSERT INTO deferred SELECT name, CAST({key} AS TEXT), position, position, 1, 1, 1"
            " FROM checkpoint"
        )

    goes_on(folded)

    assert folded.sql("SELECT * FROM deferred") == []


@pytest.mark.parametrize("tapes", [(), ("one", "two")])
def test_a_view_in_the_place_of_a_log_that_cannot_be_told_is_no_circle(
    folded: Database, tapes: tuple[str, ...]
) -> None:
    ((sql,),) = folded.sql("SELECT sql FROM sqlite_master WHERE name = 'event_log'")
    folded.sql("DROP TABLE event_log")
    for tape in tapes:
        folded.sql(sql.replace("event_log", tape, 1))
    folded.sql("CREATE VIEW event_log AS SELECT 1 AS seq")

    (found,) = doctor(folded, "schema")
    refused = projector("db", "setup", "-d", folded.path, check=4).stderr

    assert "an SQL view of another program stands in the place of the table event_log" in refused
    assert found["mend"] in refused
    assert "db setup" not in found["mend"]
    assert ("RENAME TO event_log" if tapes else "restore a backup") in found["mend"]
    assert all(tape in found["mend"] for tape in tapes)


@pytest.mark.parametrize("counter", [MOST, 5_000_000, "x"])
def test_a_counter_of_positions_that_others_raised_is_named_and_put_back(
    folded: Database, counter: Any
) -> None:
    folded.sql("UPDATE sqlite_sequence SET seq = ? WHERE name = 'event_log'", counter)

    (found,) = doctor(folded, "seq")
    assert found["level"] == "fail"
    fix(found)

    assert folded.created("A-2") == 3
    goes_on(folded)


def test_an_entry_of_the_list_that_others_wrote_is_named_and_removed(folded: Database) -> None:
    folded.sql("INSERT INTO session_index (session_id, last_seq) VALUES ('x', 'y')")

    refused = projector("session", "list", "-d", folded.path, check=4)
    fix({"mend": refused.stderr})

    assert "A-1" in projector("session", "list", "-d", folded.path).stdout
    goes_on(folded)


def test_a_watch_is_not_silent_where_others_wrote_an_entry_that_is_newer_than_the_log(
    folded: Database,
) -> None:
    folded.sql("INSERT INTO session_index (session_id, last_seq) VALUES ('x', ?), ('y', 'z')", MOST)

    refused = projector("session", "watch", "-d", folded.path, check=4)

    assert "an entry of session_index in" in refused.stderr


# Indexes and triggers


@pytest.mark.parametrize(
    "index",
    [
        "UNIQUE INDEX hostile ON checkpoint (iif(position > 2, 1, name))",
        "UNIQUE INDEX hostile ON quarantine (projection)",
        "INDEX hostile ON checkpoint (json(digest))",
        "INDEX hostile ON deferred (key COLLATE RTRIM)",
        'UNIQUE INDEX "hostile ""`x`" ON projection_state (1)',
    ],
)
def test_an_index_of_others_on_a_table_of_ours_is_named_and_dropped(
    folded: Database, index: str
) -> None:
    if "json" in index:
        folded.sql("UPDATE checkpoint SET digest = '1'")
    folded.sql(f"CREATE {index}")

    (found,) = doctor(folded, "indexes")
    assert found["level"] == "fail"
    assert "hostile" in found["found"]
    fix(found)
    projector("replay", "-d", folded.path)
    goes_on(folded)


def test_an_index_of_others_on_the_views_is_named_and_left_alone(folded: Database) -> None:
    folded.sql('CREATE UNIQUE INDEX "their\'s" ON view (last_offset_id)')
    folded.sql("CREATE INDEX harmless ON view (created_at, key)")

    projector("db", "setup", "-d", folded.path)
    (found,) = doctor(folded, "indexes")
    assert (found["level"], "their's" in found["found"]) == ("warn", True)
    fix(found)
    assert folded.sql("SELECT name FROM sqlite_master WHERE name IN ('their''s', 'harmless')") == [
        ("harmless",)
    ]


@pytest.mark.parametrize(
    ("index", "table", "named"),
    [
        ("idx_event_log_key", "", ""),
        ("idx_event_log_key", "", "--session A-1"),
        ("idx_view_key", "view", ""),
        ("idx_session_index_last_seq", "session_index", ""),
    ],
)
def test_an_index_that_lacks_rows_makes_no_right_view_wrong(
    folded: Database, index: str, table: str, named: str
) -> None:
    if table:  # what is right, written past the index
        ((*row,),) = folded.sql(f"SELECT * FROM {table}")
        folded.sql(f"DELETE FROM {table}")
    with without_index(folded, index):
        if table:
            folded.sql(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
        else:
            folded.appended("A-1", "two")
            catch_up(folded)
        right = folded.everything()

    for command in ("verify", "replay --dry-run", "replay"):
        done = projector(*command.split(), *named.split(), "-d", folded.path, check=4)
        assert f"index {index}" in done.stderr
    for cure in re.findall("`([^`]*)`", done.stderr):
        fix({"mend": f"`{cure}`"})
    assert folded.everything() == right
    goes_on(folded)


def test_an_index_that_lacks_rows_keeps_one_projection_from_its_rebuild(folded: Database) -> None:
    with without_index(folded, "idx_event_log_key"):
        folded.appended("A-1", "two")
        catch_up(folded)
    right = folded.everything()
    folded.sql("UPDATE checkpoint SET version = 1 WHERE name = 'sessions'")
    views = folded.views()

    told = projector("run", "--once", "-d", folded.path, check=4).stderr
    assert "row 3 missing from index idx_event_log_key" in told
    with daemon(folded.path, options=["--verify-every", "0.01"]) as running:
        failed = running.wait_for("projection_failed")
        newest = folded.created("B-1", "more")
        projector("wait", newest, "--projection", "session_index", "-d", folded.path)
        assert folded.views() == views
        (cure,) = re.findall("`([^`]*)`", failed["hint"])
        fix({"mend": f"`{cure}`"})
        projector("wait", newest, "-d", folded.path)
    projector("verify", "-d", folded.path)

    assert folded.contents("A-1") == ["one", "two"]
    assert folded.everything()[0][0] == right[0][0]


def test_an_index_that_lacks_rows_puts_background_verify_off(folded: Database) -> None:
    with without_index(folded, "idx_event_log_key"):
        folded.appended("A-1", "two")
        catch_up(folded)

    with daemon(folded.path, options=["--verify-every", "0.01"]) as running:
        said = running.wait_for("verify_put_off")

    assert "missing from index idx_event_log_key" in said["why"]
    assert not [line for line in running.lines if line["event"] == "difference_found"]


@pytest.mark.parametrize("unique", ["", "UNIQUE "])
def test_an_index_of_others_on_the_log_is_not_what_it_is_read_by(
    folded: Database, unique: str
) -> None:
    folded.sql(f"CREATE {unique}INDEX theirs ON event_log (key, seq)")
    with without_index(folded, "theirs"):
        folded.appended("A-1", "two")
    folded.sql("DELETE FROM checkpoint")

    projector("run", "--once", "-d", folded.path)

    assert folded.contents("A-1") == ["one", "two"]


def test_an_index_is_compared_also_where_much_else_is_wrong_with_the_table(
    folded: Database,
) -> None:
    for number in range(100):
        folded.sql("INSERT INTO view VALUES (?1, ?1, x'', '', 0, 0)", f"a{number}")
    folded.sql("CREATE TABLE kept AS SELECT * FROM view WHERE key = 'session:A-1'")
    folded.sql("DELETE FROM view WHERE key = 'session:A-1'")
    with without_index(folded, "idx_view_key"):
        folded.sql("INSERT INTO view SELECT * FROM kept")
    with closing(sqlite3.connect(folded.path)) as connection:
        connection.executescript(
            f"{EDIT} UPDATE sqlite_master SET sql ="
            " replace(sql, 'key TEXT NOT NULL', 'key TEXT CHECK (key > ''b'')') WHERE name = 'view'"
        )

    done = projector("verify", "-d", folded.path, check=4)

    assert "its indexes cannot be compared" in done.stderr
    (found,) = doctor(folded, "schema")
    fix(found)
    goes_on(folded)


def test_two_that_share_a_page_of_the_file_are_named(folded: Database) -> None:
    with closing(sqlite3.connect(folded.path)) as connection:
        connection.executescript(
            f"{EDIT} UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master"
            " WHERE name = 'idx_event_log_key') WHERE name = 'idx_view_key'"
        )

    (found,) = doctor(folded, "schema")

    assert "idx_view_key, idx_event_log_key share one page" in found["found"]
    assert "copy the log" in found["mend"]


def test_a_table_whose_key_is_out_of_order_is_made_again(folded: Database) -> None:
    folded.created("B-1")
    catch_up(folded)
    right = folded.everything()
    ((sql,),) = folded.sql("SELECT sql FROM sqlite_master WHERE name = 'session_index'")
    down = sql.replace(" PRIMARY KEY", "").replace(") W", ", PRIMARY KEY (session_id DESC)) W")
    rows = folded.sql("SELECT * FROM session_index")
    folded.sql("DELETE FROM session_index")
    for schema in (down, sql):
        with closing(sqlite3.connect(folded.path)) as connection, connection:
            connection.execute(EDIT)
            edit = "UPDATE sqlite_master SET sql = ? WHERE name = 'session_index'"
            connection.execute(edit, (schema,))
        if schema is down:
            for row in rows:
                folded.sql(f"INSERT INTO session_index VALUES ({', '.join('?' * len(row))})", *row)

    fix({"mend": projector("verify", "-d", folded.path, check=4).stderr})
    projector("replay", "-d", folded.path)

    assert folded.everything() == right
    goes_on(folded)


@pytest.mark.parametrize(
    "index",
    ["UNIQUE INDEX idx_view_updated_at ON view (data)", "INDEX idx_view_key ON view (data)"],
)
def test_an_index_of_ours_that_others_made_in_another_way_is_made_again(
    folded: Database, index: str
) -> None:
    name = re.findall("idx_[a-z_]*", index)[0]
    folded.sql(f"DROP INDEX {name}")
    folded.sql(f"CREATE {index}")

    (found,) = doctor(folded, "indexes")
    assert f"{name} is changed" in found["found"]
    fix(found)

    assert "(data)" not in folded.sql("SELECT sql FROM sqlite_master WHERE name = ?", name)[0][0]
    goes_on(folded)


@contextmanager
def without_index(database: Database, name: str) -> Iterator[None]:
    """Take an index out of the schema, but not out of the file: it is not written meanwhile."""
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        found = "FROM sqlite_master WHERE name = ?"
        (row,) = connection.execute(f"SELECT * {found}", (name,)).fetchall()
        connection.execute(f"DELETE {found}", (name,))
    yield
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)


@pytest.mark.parametrize("on", ["INSERT ON view", "UPDATE ON checkpoint", "INSERT ON quarantine"])
def test_a_trigger_that_names_what_is_gone_is_told(folded: Database, on: str) -> None:
    folded.sql("CREATE TABLE gone (x)")
    folded.sql(f"CREATE TRIGGER hostile AFTER {on} BEGIN INSERT INTO gone VALUES (1); END")
    folded.sql("DROP TABLE gone")
    folded.created("A-2")
    folded.insert("A-2", "no event")
    projector("run", "--once", "-d", folded.path, check=4)

    (found,) = doctor(folded, "triggers")

    assert found["level"] == "fail"
    assert f"{on.split()[-1]}: no such table: main.gone" in found["found"]


@pytest.mark.timeout(120)
def test_a_trigger_that_never_ends_is_ended_and_said(folded: Database) -> None:
    folded.sql(f"CREATE TRIGGER hostile AFTER UPDATE ON checkpoint BEGIN {ENDLESS}; END")
    folded.created("A-2")
    with daemon(folded.path) as running:
        _, rest = running.process.communicate(timeout=60)
    written = projector("session", "queue", "-p", "x", "hi", "-d", folded.path)

    assert running.process.returncode == 4
    assert "a statement that should take moments did not end" in rest
    assert written.stdout == "x-1\n"
    (found,) = doctor(folded, "triggers")
    assert (found["level"], "hostile on checkpoint" in found["found"]) == ("warn", True)


def test_a_stop_is_heeded_while_a_trigger_never_ends(folded: Database) -> None:
    folded.sql(f"CREATE TRIGGER hostile AFTER INSERT ON view BEGIN {ENDLESS}; END")
    with daemon(folded.path) as running:
        running.wait_for("started")
        folded.created("A-2")
        until = time.monotonic() + 20
        while time.monotonic() < until and not locked(folded):
            time.sleep(0.02)
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("on", ["view", "checkpoint"])
def test_a_trigger_whose_one_step_takes_hours_is_refused_and_said(
    folded: Database, on: str
) -> None:
    endless = "SELECT hex(zeroblob(1000000)) LIKE '%' || hex(zeroblob(12000)) || '1'"
    folded.sql(f"CREATE TRIGGER hostile AFTER UPDATE ON {on} BEGIN {endless}; END")
    folded.appended("A-1", "two")

    said = projector("run", "--once", "-d", folded.path, check=4, timeout=20).stderr

    assert "a trigger or an SQL view that another program made there" in said
    assert "LIKE or GLOB pattern too complex" in said
    folded.sql("DROP TRIGGER hostile")
    goes_on(folded)


def test_a_stop_is_forced_while_a_statement_cannot_be_interrupted(folded: Database) -> None:
    one_step = "SELECT instr(zeroblob(20000000), zeroblob(10000000) || x'01')"
    folded.sql(f"CREATE TRIGGER hostile AFTER UPDATE ON view BEGIN {one_step}; END")
    before = folded.everything()
    with daemon(folded.path) as running:
        running.wait_for("started")
        folded.appended("A-1", "two")
        until = time.monotonic() + 20
        while time.monotonic() < until and not locked(folded):
            time.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
        said = running.wait_for("stop_forced")
        assert running.process.wait(timeout=20) == 3

    assert f"`projector doctor -d {folded.path}`" in said["hint"]
    assert folded.everything() == before
    folded.sql("DROP TRIGGER hostile")
    goes_on(folded)


def locked(database: Database) -> bool:
    done = subprocess.run(["sqlite3", database.path, "BEGIN IMMEDIATE"], capture_output=True)
    return b"locked" in done.stderr


# Locks


def test_locks_on_the_shared_memory_are_waited_out_like_any_other(folded: Database) -> None:
    shm = f"{folded.path}-shm"
    program = [sys.executable, "-c", LOCKS_THE_READ_MARKS, shm]
    with daemon(folded.path) as running:
        running.wait_for("started")
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            done = projector("run", "--once", "-d", folded.path, check=3)
            said = running.wait_for("database_unavailable")
            holder.communicate()
        running.wait_for("database_available_again")
        running.wait_until_at(folded.created("A-2"))
        assert running.stop(signal.SIGTERM) == 0

    told = f"{folded.path} is locked by another process (locking protocol)"
    assert told in done.stderr
    assert f"`fuser -v {folded.path} {shm}`" in done.stderr
    assert said["why"] == told
