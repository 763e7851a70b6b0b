"""Tables and indexes that somebody dropped or changed: refused, and created again by `db setup`."""

import asyncio
import re
import shutil
import subprocess

import pytest
from support import PROJECTOR, Database, event, projector, shell
from support.folding import examine, run_once

from session_projector.projections import BUILT_IN
from session_projector.worker.storage.sqlite.schema import migrate as schema

OF_THE_MACHINE = {"sqlite", "filesystem", "space"}
DERIVED = ["view", "checkpoint", "quarantine", "dismissed", "projection_state"]

needs_shell = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 shell")


@pytest.fixture
def folded(database: Database) -> Database:
    """Two sessions, folded, and an event in quarantine."""
    database.created("A-1", "one")
    database.created("A-2", "two")
    database.insert("A-1", event("session_append", {}))
    asyncio.run(run_once(database.path, BUILT_IN))
    return database


def shape(database: Database) -> list[tuple[str, ...]]:
    return database.sql("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2")


def wrong(database: Database) -> set[str]:
    return {one.check for one in examine(database.path) if one.level != "ok"} - OF_THE_MACHINE


def run_the_command_of(hint: str) -> None:
    """Run the command that a hint names."""
    (command,) = re.findall("`([^`]*)`", hint)
    done = shell(command)
    assert done.returncode == 0, done


@pytest.mark.parametrize("table", [*DERIVED, "session_index"])
def test_a_dropped_table_is_created_again_and_filled_from_the_log(
    folded: Database, table: str
) -> None:
    before, made = folded.everything(), shape(folded)
    folded.sql(f"DROP TABLE {table}")

    said = projector("db", "setup", "-d", folded.path).stdout
    projector("run", "--once", "-d", folded.path)

    assert f"restored {table}: it was missing or changed" in said
    assert folded.everything() == before
    assert shape(folded) == made
    assert wrong(folded) - {"quarantine"} == {"daemon"}


def test_all_of_them_at_once_are_created_again_together_with_what_an_upgrade_lacks(
    folded: Database,
) -> None:
    before = folded.everything()
    for table in [*DERIVED, "session_index"]:
        folded.sql(f"DROP TABLE {table}")
    folded.sql("DELETE FROM umzug_meta WHERE name LIKE '0005%'")

    done = schema.setup(folded.path)
    projector("run", "--once", "-d", folded.path)

    assert done.applied == ["0005-projector-projection-state"]
    assert folded.everything() == before


INDEXES = ["idx_event_log_key", "idx_view_key", "idx_view_updated_at", "idx_view_session_key"]


@pytest.mark.parametrize("index", INDEXES)
def test_a_dropped_index_is_found_and_put_back_by_the_command(folded: Database, index: str) -> None:
    made = shape(folded)
    folded.sql(f"DROP INDEX {index}")

    (found,) = [one for one in examine(folded.path) if index in one.found]
    run_the_command_of(found.fix)

    assert found.level != "ok"
    assert shape(folded) == made


@pytest.mark.parametrize("table", DERIVED)
@pytest.mark.parametrize("command", [["run", "--once"], ["status"], ["replay"]])
def test_a_dropped_table_is_refused_with_the_command_that_fixes_it(
    folded: Database, command: list[str], table: str
) -> None:
    folded.sql(f"DROP TABLE {table}")

    said = projector(*command, "-d", folded.path, check=4).stderr

    assert f"lacks {table}" in said
    assert f"`projector db setup -d {folded.path}`" in said


@pytest.mark.parametrize("table", DERIVED)
def test_doctor_finds_a_dropped_table_and_its_command_fixes_it(
    folded: Database, table: str
) -> None:
    folded.sql(f"DROP TABLE {table}")

    (found,) = [one for one in examine(folded.path) if one.check == "schema"]
    run_the_command_of(found.fix)

    assert found.level == "fail"
    assert f"lacks {table}" in found.found
    projector("run", "--once", "-d", folded.path)
    assert wrong(folded) - {"quarantine"} == {"daemon"}


@needs_shell
def test_a_table_without_one_of_its_columns_is_put_aside_by_the_command(folded: Database) -> None:
    before = folded.everything()
    folded.sql("ALTER TABLE checkpoint DROP COLUMN kept_in")
    folded.sql("ALTER TABLE quarantine DROP COLUMN reason")

    (found,) = [one for one in examine(folded.path) if one.check == "schema"]
    run_the_command_of(found.fix)
    projector("run", "--once", "-d", folded.path)

    assert "lacks the columns checkpoint.kept_in, quarantine.reason" in found.found
    assert folded.everything() == before
    assert folded.sql("SELECT count(*) FROM quarantine_aside") == [(2,)]
    assert wrong(folded) - {"quarantine"} == {"daemon"}


def test_other_programs_rows_and_projections_stay_where_a_table_is_created_again(
    folded: Database,
) -> None:
    folded.sql("INSERT INTO view VALUES ('p', 'project:p', 'x', 'y', 1, 2)")
    folded.sql(
        "INSERT INTO checkpoint SELECT 'other', 7, 3, 1, 'd', 0, 'others', 'k', ''"
        " FROM checkpoint LIMIT 1"
    )
    folded.sql("DROP TABLE session_index")

    schema.setup(folded.path)

    assert folded.sql("SELECT id FROM view WHERE key = 'project:p'") == [("p",)]
    assert folded.sql("SELECT version, position FROM checkpoint WHERE name = 'other'") == [(7, 3)]
    assert folded.sql("SELECT position FROM checkpoint WHERE name = 'sessions'") == [(3,)]


@pytest.mark.parametrize("command", [["replay"], ["run", "--once"]])
def test_a_trigger_that_keeps_a_checkpoint_where_it_is_ends_what_would_try_for_ever(
    folded: Database, command: list[str]
) -> None:
    folded.sql("UPDATE view SET data = x'80' WHERE key = 'session:A-1'")
    folded.appended("A-1", "more")
    folded.sql("CREATE TRIGGER keeps BEFORE UPDATE ON checkpoint BEGIN SELECT RAISE (IGNORE); END")

    said = projector(*command, "-d", folded.path, check=4, timeout=30).stderr

    assert "whatever is written to it: a trigger keeps it there" in said


LOSES_EACH_RACE = """
CREATE TRIGGER races BEFORE UPDATE ON checkpoint BEGIN
  UPDATE checkpoint SET generation = generation + 1 WHERE name = NEW.name;
  SELECT RAISE (IGNORE);
END
"""


def test_replay_that_loses_a_table_on_its_way_says_so(folded: Database) -> None:
    folded.sql("UPDATE checkpoint SET version = -version")  # a rebuild that is not done
    folded.sql(LOSES_EACH_RACE)
    with subprocess.Popen(
        [*PROJECTOR, "replay", "-d", folded.path], stderr=subprocess.PIPE, text=True
    ) as replay:
        try:
            assert replay.stderr is not None
            assert any("checkpoint_moved_by_another" in line for line in replay.stderr)
            folded.sql("DROP TRIGGER races")
            folded.sql("DROP TABLE view")
            _, said = replay.communicate(timeout=30)
        finally:
            replay.kill()

    assert replay.returncode == 4
    assert "view" in said
    assert f"projector db setup -d {folded.named}" in said


@pytest.mark.parametrize("column", ["version", "position", "generation", "skipped"])
def test_a_checkpoint_that_is_no_number_is_refused_and_fixed_by_the_command(
    folded: Database, column: str
) -> None:
    before = folded.everything()
    folded.sql(f"UPDATE checkpoint SET {column} = 'abc' WHERE name = 'sessions'")
    folded.sql("UPDATE view SET updated_at = 1 WHERE key = 'session:A-1'")

    said = projector("run", "--once", "-d", folded.path, check=4).stderr
    (found,) = [one for one in examine(folded.path) if one.check == "schema"]
    run_the_command_of(found.fix)
    projector("run", "--once", "-d", folded.path)

    assert "the checkpoint of sessions is no position" in said
    assert found.level == "fail"
    assert folded.everything() == before


@pytest.mark.parametrize(
    ("trigger", "level"),
    [
        ("t BEFORE INSERT ON event_log BEGIN SELECT RAISE (IGNORE); END", "warn"),
        ("t BEFORE UPDATE ON view BEGIN SELECT RAISE (ABORT, 'no'); END", "warn"),
        ("t AFTER INSERT ON event_log BEGIN UPDATE view SET data = ''; END", "warn"),
        ("t AFTER INSERT ON session_index BEGIN SELECT 1; END", "ok"),
        ("t AFTER UPDATE ON view BEGIN INSERT INTO told VALUES (NEW.key); END", "ok"),
    ],
)
def test_a_trigger_of_others_is_named_and_warned_of_where_it_may_lose_events_or_views(
    folded: Database, trigger: str, level: str
) -> None:
    folded.sql("CREATE TABLE told (key)")
    folded.sql(f"CREATE TRIGGER {trigger}")

    (found,) = [one for one in examine(folded.path) if one.check == "triggers"]

    assert found.level == level
    assert f"t on {trigger.split(' ON ')[1].split()[0]}" in found.found
    assert ("DROP TRIGGER" in found.fix) == (level == "warn")
