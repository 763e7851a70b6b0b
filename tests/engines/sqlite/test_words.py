"""The index by words in SQLite: what becomes of it in other hands, and where there is no FTS5."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from support import Database, projector
from support.folding import catch_up, differences, examine, target

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.worker.errors import InterventionRequired
from session_projector.worker.sessions.search import search

WITH_SEARCH = (*BUILT_IN, SEARCH)
WITHOUT_FTS5 = """
import ctypes, sqlite3, _sqlite3
library, connect = ctypes.CDLL(_sqlite3.__file__), sqlite3.connect
def without(*given, **named):
    connection = connect(*given, **named)
    at = ctypes.c_void_p.from_address(id(connection) + object.__basicsize__)
    assert library.sqlite3_drop_modules(at, None) == 0
    return connection
sqlite3.connect = without
from session_projector.__main__ import main
main()
"""


@pytest.fixture
def talk(database: Database) -> Database:
    database.created("A-1", "one word")
    database.appended("A-1", "another word")
    catch_up(database, WITH_SEARCH)
    return database


def places(database: Database, words: str) -> list[int]:
    with target(database.url).open() as store:
        return [result.n for result in search(store, words).results]


def without_fts5(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", WITHOUT_FTS5, *arguments, "-d", database.url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check(database: Database) -> None:
    with target(database.url).open() as store:
        store.words.check()


def test_the_index_is_what_fts5_itself_says_it_should_be(talk: Database) -> None:
    talk.sql("UPDATE search SET text = 'zebra' WHERE seq = 1")
    talk.sql("DELETE FROM search WHERE seq = 2")

    talk.sql("INSERT INTO search_words (search_words, rank) VALUES ('integrity-check', 1)")


@pytest.mark.parametrize(
    "part",
    [
        "TABLE search_words",
        "VIEW search_rows",
        "TRIGGER search_words_insert",
        "TRIGGER search_words_update",
        "TRIGGER search_words_delete",
    ],
)
def test_a_part_of_it_that_is_gone_is_told_of_and_all_of_it_made_again(
    talk: Database, part: str
) -> None:
    talk.sql(f"DROP {part}")

    (found,) = [one for one in examine(talk.url) if one.check == "search"]
    assert found.level == "fail"
    assert "is not whole" in found.found
    projector("run", "--once", "-d", talk.url)

    assert places(talk, "word") == [2, 1]
    assert differences(talk, WITH_SEARCH) == {}


def test_an_index_that_lacks_rows_is_told_of_and_the_command_fixes_it(talk: Database) -> None:
    talk.sql(
        "INSERT INTO search_words (search_words, rowid, text) VALUES ('delete', 1, 'one word')"
    )
    assert places(talk, "one") == []

    (found,) = [one for one in examine(talk.url) if one.check == "search"]
    assert (found.level, "2 rows, 1 in the index" in found.found) == ("fail", True)
    with pytest.raises(InterventionRequired, match="does not match its table"):
        differences(talk, WITH_SEARCH)
    subprocess.run(found.fix.split("`")[1], shell=True, check=True)

    check(talk)
    assert places(talk, "one") == [1]


def test_one_that_has_other_words_than_its_rows_is_told_of_too(talk: Database) -> None:
    change = (
        "INSERT INTO search_words (search_words, rowid, text) VALUES ('delete', 2, 'another word')",
        "INSERT INTO search_words (rowid, text) VALUES (2, 'zebra')",
    )
    for statement in change:
        talk.sql(statement)

    with pytest.raises(InterventionRequired, match="the row of event 2 is not found"):
        check(talk)


def test_rows_that_share_a_number_in_it_do_not_stand_in_the_way(talk: Database) -> None:
    for key in ("zz", "yy"):
        talk.sql(f"INSERT INTO search (event_key, text) VALUES ('{key}', 'word')")

    assert differences(talk, WITH_SEARCH) == {"view ghost": 2}
    projector("replay", "-d", talk.url)

    assert differences(talk, WITH_SEARCH) == {}
    assert places(talk, "word") == [2, 1]


def test_the_doctor_takes_its_triggers_for_ours(talk: Database) -> None:
    (found,) = [one for one in examine(talk.url) if one.check == "triggers"]

    assert (found.level, "search" in found.found) == ("ok", False)


def test_without_fts5_it_is_not_run_and_all_else_is(database: Database) -> None:
    database.created("A-1", "one word")

    ran = without_fts5(database, "run", "--once", "--with", "search")

    assert ran.returncode == 4
    assert "is built without FTS5" in ran.stderr
    assert "--without search" in ran.stderr
    assert database.contents("A-1") == ["one word"]
    assert without_fts5(database, "run", "--once").returncode == 0  # nothing of it stayed


def test_without_fts5_a_database_that_has_it_can_be_used(talk: Database) -> None:
    talk.appended("A-1", "a third word")

    assert "without FTS5" in without_fts5(talk, "search", "word").stderr
    assert "without FTS5" in without_fts5(talk, "run", "--once").stderr
    assert without_fts5(talk, "run", "--once", "--without", "search").returncode == 0
    assert talk.contents("A-1") == ["one word", "another word", "a third word"]
    assert without_fts5(talk, "status").returncode == 0


def test_a_table_of_another_program_is_left_alone(database: Database) -> None:
    database.sql("CREATE TABLE search (event_key TEXT PRIMARY KEY, mine TEXT)")
    database.sql("INSERT INTO search VALUES ('a', 'b')")

    ran = projector("run", "--once", "--with", "search", "-d", database.url, check=4)

    assert "does not fit" in ran.stderr
    assert database.sql("SELECT * FROM search") == [("a", "b")]


def test_it_survives_a_backup_and_vacuum(talk: Database) -> None:
    talk.sql("VACUUM")
    copy = talk.path.with_name("copy.db")
    talk.sql(f"VACUUM INTO '{copy}'")

    assert places(Database(copy), "word") == [2, 1]
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
