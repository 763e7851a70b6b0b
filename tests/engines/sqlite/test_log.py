"""The log cannot be rewritten, whatever a writer's statement or settings."""

import sqlite3
from contextlib import closing

import pytest
from support import Database

COLUMNS = "event_log (id, key, data, created_at) VALUES"
WITH_SEQ = "event_log (seq, id, key, data, created_at) VALUES"
CONFLICTS = ["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT", "OR ROLLBACK"]
LOG = [(1, "a", "k", b"\x80", 1), (2, "b", "k", b"\x80", 1)]


@pytest.fixture
def two(database: Database) -> Database:
    """A log of two events."""
    for _, event_id, key, data, created_at in LOG:
        database.insert(key, data, id=event_id, created_at=created_at)
    return database


def refused(database: Database, statement: str) -> str:
    """Why a statement is refused, the log left as it was, under either setting that matters."""
    said = ""
    for recursive in ("OFF", "ON"):
        with closing(sqlite3.connect(database.path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA recursive_triggers = {recursive}")
            with pytest.raises(sqlite3.IntegrityError) as error:
                connection.execute(statement)
            said = str(error.value)
        assert database.log() == LOG
    return said


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event_log SET data = x'81'",
        "UPDATE OR IGNORE event_log SET created_at = 5",
        "UPDATE OR REPLACE event_log SET id = 'a' WHERE id = 'b'",
        "UPDATE event_log SET seq = seq + 10",
        "DELETE FROM event_log",
        "DELETE FROM event_log WHERE seq = 2",
    ],
)
def test_no_update_and_no_delete(two: Database, statement: str) -> None:
    assert "append-only" in refused(two, statement)


@pytest.mark.parametrize("conflict", CONFLICTS)
@pytest.mark.parametrize(
    "values",
    [
        "('a', 'k', x'81', 1)",
        "('a', 'other', x'80', 1)",
        "('a', 'k', '', 1)",
        "('new', 'k', x'80', 1), ('a', 'k', x'81', 1), ('newer', 'k', x'80', 1)",
        "('new', 'k', x'80', 1), ('new', 'k', x'81', 1)",
    ],
)
def test_a_known_id_with_another_key_or_data_is_refused(
    two: Database, conflict: str, values: str
) -> None:
    assert "this id is there" in refused(two, f"INSERT {conflict} INTO {COLUMNS} {values}")


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_a_blind_retry_is_ignored(two: Database, conflict: str) -> None:
    two.sql(f"INSERT {conflict} INTO {COLUMNS} ('a', 'k', x'80', 999)")

    assert two.log() == LOG


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_a_retry_among_new_events_drops_none_of_them(two: Database, conflict: str) -> None:
    two.sql(
        f"INSERT {conflict} INTO {COLUMNS}"
        " ('c', 'k', x'80', 1), ('a', 'k', x'80', 1), ('d', 'k', x'80', 1), ('c', 'k', x'80', 2)"
    )

    assert [event_id for _, event_id, *_ in two.log()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "upsert",
    [
        "ON CONFLICT (id) DO UPDATE SET data = excluded.data",
        "ON CONFLICT DO UPDATE SET data = excluded.data",
        "ON CONFLICT DO NOTHING",
        "ON CONFLICT (id) DO NOTHING",
    ],
)
def test_an_upsert_of_another_event_is_refused(two: Database, upsert: str) -> None:
    assert "this id is there" in refused(
        two, f"INSERT INTO {COLUMNS} ('a', 'k', x'81', 1) {upsert}"
    )


@pytest.mark.parametrize("conflict", CONFLICTS)
@pytest.mark.parametrize("seq", [-(2**63), -1, 0, 1, 2, 2 + 1_000_001, 2**63 - 1])
def test_an_explicit_seq_that_is_taken_passed_or_far_above_is_refused(
    two: Database, conflict: str, seq: int
) -> None:
    refused(two, f"INSERT {conflict} INTO {WITH_SEQ} ({seq}, 'c', 'k', x'80', 1)")


@pytest.mark.parametrize("conflict", CONFLICTS)
@pytest.mark.parametrize("seqs", [(10, 9), (10, 10), (10, 1_000_011)])
def test_explicit_seqs_in_one_statement_are_held_to_the_same(
    two: Database, conflict: str, seqs: tuple[int, int]
) -> None:
    first, second = seqs
    refused(
        two,
        f"INSERT {conflict} INTO {WITH_SEQ} ({first}, 'c', 'k', x'80', 1),"
        f" ({second}, 'd', 'k', x'80', 1)",
    )


def test_an_explicit_seq_just_above_is_taken(two: Database) -> None:
    two.sql(f"INSERT INTO {WITH_SEQ} (1000002, 'c', 'k', x'80', 1)")
    two.insert("k", b"\x80", id="d")

    assert [seq for seq, *_ in two.log()] == [1, 2, 1_000_002, 1_000_003]


def test_an_upsert_on_a_taken_seq_is_refused(two: Database) -> None:
    refused(
        two,
        f"INSERT INTO {WITH_SEQ} (1, 'c', 'k', x'81', 1)"
        " ON CONFLICT (seq) DO UPDATE SET data = excluded.data",
    )


def test_what_is_odd_is_taken_and_not_refused(two: Database) -> None:
    for odd in (None, 5, 1.5, b"\xff", ""):
        two.insert(odd, odd, id=None, created_at=odd)

    assert len(two.log()) == 7
