"""The rows that projections keep: made, brought to a version's shape, loaded, listed, dropped."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest
from conformance.engines import Engine, Outsider
from support.laws import COUNTED, WIDENED, Counted, append, change, keep, later

from session_projector.projections import BUILT_IN
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Projection, Table
from session_projector.worker.errors import LostRace, ProjectionFailed
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import (
    Among,
    Checkpoint,
    Database,
    ProjectionStatus,
    Store,
)

SESSIONS, INDEX = BUILT_IN
FAILED = ProjectionStatus("failed", 1, "why", 1, 2, 3, 4)


def like(projection: Projection, **fields: Any) -> Projection:
    """The same projection with something changed."""
    return type("Other", (type(projection),), fields)()  # type: ignore[no-any-return]


# Prepare


def test_a_projection_begins_at_0_with_an_empty_table(store: Store) -> None:
    checkpoint = store.views.prepare(COUNTED)

    assert checkpoint == Checkpoint("counted", 1, 0, 0, "", 0)
    assert store.checkpoints.get("counted") == checkpoint
    assert store.views.keys(COUNTED, after=None) == []
    assert store.views.count(COUNTED.table) == 0
    stored = store.checkpoints.all()["counted"].table
    assert (stored.name, stored.key, stored.prefix) == ("counted", "key", "")


def test_preparing_again_changes_nothing(store: Store, other: Store) -> None:
    checkpoint = keep(store, COUNTED, ("a", 1, None))
    store.checkpoints.report("counted", FAILED)

    assert other.views.prepare(COUNTED) == checkpoint
    assert other.views.row(COUNTED, "a") == ("a", 1, None)
    assert other.checkpoints.reports() == {"counted": FAILED}
    store.changed()
    assert other.views.prepare(COUNTED) == checkpoint
    assert not store.changed()


def test_several_that_prepare_at_once_get_the_same_checkpoint(url: str, database: Database) -> None:
    database = storage.database(url)  # which waits for a lock
    ready, got = threading.Barrier(4), []

    def prepare() -> None:
        with database.open(writable=True) as store:
            ready.wait()
            for number in range(5):
                name = f"counted_{number}"
                table = Table(name, COUNTED.table.columns, "key")
                got.append(store.views.prepare(like(COUNTED, name=name, table=table)))

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(got) == 20
    assert {checkpoint.name for checkpoint in got} == {f"counted_{n}" for n in range(5)}
    assert {checkpoint.position for checkpoint in got} == {0}


def test_a_newer_version_gets_the_columns_that_it_adds(store: Store) -> None:
    before = keep(store, COUNTED, ("a", 1, b"x"))

    checkpoint = store.views.prepare(WIDENED)

    assert checkpoint == before  # it rebuilds the views later, from where they are
    assert store.views.row(WIDENED, "a") == ("a", 1, None, b"x")
    keep(store, WIDENED, ("b", 2, "note", None))
    assert store.views.row(WIDENED, "b") == ("b", 2, "note", None)


def test_columns_that_a_newer_version_adds_are_empty_before_and_filled_after(store: Store) -> None:
    """Before, as in a dry run of the newer version; on one and the same connection."""
    keep(store, COUNTED, ("a", 1, b"x"))
    loaded_before = store.views.load(WIDENED, ["a"]).rows

    store.views.prepare(WIDENED)
    keep(store, WIDENED, ("a", 1, "note", b"x"))

    assert loaded_before == {"a": ("a", 1, None, b"x")}
    assert store.views.load(WIDENED, ["a"]).rows == {"a": ("a", 1, "note", b"x")}


def test_rows_are_read_again_where_their_table_was_gone_for_a_while(
    store: Store, other: Store
) -> None:
    keep(store, COUNTED, ("a", 1, b"x"))
    other.views.drop("counted")
    with pytest.raises(LostRace):
        store.views.load(COUNTED, ["a"])
    keep(other, COUNTED, ("a", 2, b"y"))

    assert store.views.load(COUNTED, ["a"]).rows == {"a": ("a", 2, b"y")}


def columns(**changed: str) -> dict[str, str]:
    return {**COUNTED.table.columns, **changed}


@pytest.mark.parametrize(
    ("misfit", "version", "why"),
    [
        (Table("counted", columns(note="TEXT"), "key"), 1, "has no column note"),
        (Table("counted", columns(number="TEXT"), "key"), 2, "its column number is {INTEGER}"),
        (Table("counted", columns(key="BLOB"), "key"), 2, "its column key is {TEXT}"),
        (Table("counted", columns(), "number"), 2, "column key is {TEXT}, the key"),
        (Table("counted", {"number": "INTEGER"}, "number"), 2, "number is {INTEGER}"),
        (Table("counted", columns(id="TEXT"), "id"), 2, "key is {TEXT}, the key"),
    ],
    ids=str,
)
def test_a_version_that_its_table_does_not_fit_is_refused(
    engine: Engine, store: Store, misfit: Table, version: int, why: str
) -> None:
    before = keep(store, COUNTED, ("a", 1, b"x"))

    with pytest.raises(ProjectionFailed, match="does not fit") as refused:
        store.views.prepare(like(COUNTED, table=misfit, version=version))

    assert why.format(**engine.types) in str(refused.value)
    assert store.checkpoints.get("counted") == before
    assert store.views.row(COUNTED, "a") == ("a", 1, b"x")


def test_the_views_of_a_newer_version_are_left_as_they_are(store: Store) -> None:
    newer = keep(store, WIDENED, ("a", 1, "note", b"x"))

    assert store.views.prepare(COUNTED) == newer
    assert store.views.row(WIDENED, "a") == ("a", 1, "note", b"x")


def test_so_are_those_that_a_newer_version_is_rebuilding(store: Store) -> None:
    newer = keep(store, WIDENED, ("a", 1, "note", b"x"))
    rebuilding = later(newer, version=-2)
    store.commit([change(WIDENED, newer, rebuilding)])

    assert store.views.prepare(COUNTED) == rebuilding


def folded(store: Store) -> Checkpoint:
    """Some rows, an event in quarantine and a report."""
    (first,) = append(store, "e1")
    before = store.views.prepare(COUNTED)
    after = later(before, position=first, digest="d", skipped=1)
    bad = [Rejected(first, "bad")]
    store.commit([change(COUNTED, before, after, [("a", 1, None)], quarantined=bad)])
    store.checkpoints.report("counted", FAILED)
    return after


def test_a_projection_whose_table_is_gone_begins_at_the_first_event_again(
    store: Store, outside: Outsider
) -> None:
    before = folded(store)
    outside.sql("DROP TABLE counted")

    checkpoint = store.views.prepare(COUNTED)

    assert checkpoint == Checkpoint("counted", 1, 0, before.generation + 1, "", 0)
    assert store.views.keys(COUNTED, after=None) == []
    assert store.quarantine.entries() == []
    assert store.checkpoints.reports() == {}


def test_so_does_one_whose_views_are_kept_in_another_table_from_now_on(store: Store) -> None:
    before = folded(store)
    elsewhere = like(COUNTED, table=Table("counted_2", columns(number="REAL"), "key"), version=2)

    checkpoint = store.views.prepare(elsewhere)

    assert checkpoint == Checkpoint("counted", 2, 0, before.generation + 1, "", 0)
    assert store.checkpoints.all()["counted"].table.name == "counted_2"
    assert store.quarantine.entries() == []


def test_a_table_with_rows_that_no_checkpoint_explains_is_not_taken_over(
    store: Store, outside: Outsider
) -> None:
    keep(store, COUNTED, ("theirs", 1, b""))
    outside.sql("DELETE FROM checkpoint")

    with pytest.raises(ProjectionFailed, match="exists with rows that no checkpoint explains"):
        store.views.prepare(COUNTED)

    assert outside.sql("SELECT key FROM counted") == [("theirs",)]
    assert store.checkpoints.get("counted") is None


def test_the_table_of_another_projection_is_not_taken_over(store: Store) -> None:
    keep(store, COUNTED, ("a", 1, None))

    with pytest.raises(ProjectionFailed, match="is of the projection counted"):
        store.views.prepare(like(COUNTED, name="thief"))

    assert store.views.row(COUNTED, "a") == ("a", 1, None)


# Load


def test_rows_are_loaded_with_the_checkpoint_that_made_them(store: Store) -> None:
    checkpoint = keep(store, COUNTED, ("a", 1, b"x"), ("b", 2, None))

    loaded = store.views.load(COUNTED, ["b", "no", "a"])

    assert loaded.rows == {"a": ("a", 1, b"x"), "b": ("b", 2, None)}
    assert loaded.covered == 3
    assert loaded.checkpoint == checkpoint


def test_without_a_checkpoint_nothing_is_loaded(store: Store) -> None:
    with pytest.raises(LostRace):
        store.views.load(COUNTED, ["a"])
    keep(store, COUNTED, ("a", 1, None))
    store.views.drop("counted")
    with pytest.raises(LostRace):
        store.views.load(COUNTED, ["a"])


@pytest.mark.parametrize("size", [0, 15_000, 100_000])
def test_no_more_is_loaded_than_a_batch_may_but_always_one(store: Store, size: int) -> None:
    keys = [f"k{n:02}" for n in range(20)]
    keep(store, COUNTED, *((key, 1, b"x" * size) for key in keys))

    loaded = store.views.load(COUNTED, keys)

    assert [*loaded.rows] == keys[: loaded.covered]
    assert loaded.covered == {0: 13, 15_000: 3, 100_000: 1}[size]


def test_rows_and_checkpoint_are_of_one_moment_beside_commits(
    database: Database, store: Store
) -> None:
    checkpoint = keep(store, COUNTED, ("a", 1, None), ("b", 1, None))
    ended = threading.Event()

    def commit(before: Checkpoint) -> None:
        with database.open(writable=True) as writing:
            try:
                for _ in range(150):
                    after = later(before)
                    rows = [(key, after.generation, None) for key in "ab"]
                    writing.commit([change(COUNTED, before, after, rows)])
                    before = after
            finally:
                ended.set()

    thread = threading.Thread(target=commit, args=(checkpoint,))
    thread.start()
    seen = set()
    while not ended.is_set():
        loaded = store.views.load(COUNTED, ["a", "b"])
        moments = {row[1] for row in loaded.rows.values()} | {loaded.checkpoint.generation}
        assert len(moments) == 1
        seen |= moments
    thread.join()

    assert store.views.load(COUNTED, ["a"]).checkpoint.generation == 151
    assert len(seen) > 1


def test_what_cannot_be_loaded_is_a_fault_of_that_projection_alone(
    store: Store, outside: Outsider
) -> None:
    keep(store, COUNTED, ("a", 1, None))
    outside.sql("DROP TABLE counted")

    for load in (store.views.load, lambda one, _: store.views.keys(one, after=None)):
        with pytest.raises(ProjectionFailed) as failed:
            load(COUNTED, ["a"])
        assert failed.value.projection == "counted"
    store.views.prepare(COUNTED)
    assert store.views.load(COUNTED, ["a"]).rows == {}


# One row, many rows


def test_one_row_is_read_whether_or_not_there_is_a_checkpoint(
    store: Store, outside: Outsider
) -> None:
    keep(store, COUNTED, ("a", 1, b"x"))
    outside.sql("DELETE FROM checkpoint")

    assert store.views.row(COUNTED, "a") == ("a", 1, b"x")
    assert store.views.row(COUNTED, "no") is None
    assert store.views.row(SESSIONS, "session:A") is None


ROWS = [("a", 3, b"x"), ("b", 1, b"y"), ("c", 2, b"y"), ("d", 2, b"z")]


@pytest.mark.parametrize(
    ("where", "above", "order", "found"),
    [
        ({}, None, ["key"], "abcd"),
        ({}, None, ["number", "key"], "bcda"),
        ({"number": [2]}, None, ["key"], "cd"),
        ({"number": [1, 3]}, None, ["key"], "ab"),
        ({"number": [2], "data": [b"y"]}, None, ["key"], "c"),
        ({"number": []}, None, ["key"], ""),
        ({}, ("number", 1), ["number", "key"], "cda"),
        ({"data": [b"y"]}, ("number", 1), ["key"], "c"),
        ({}, ("number", 3), ["key"], ""),
    ],
    ids=str,
)
def test_rows_are_selected_by_their_columns(
    store: Store,
    where: Mapping[str, list[Any]],
    above: tuple[str, int] | None,
    order: list[str],
    found: str,
) -> None:
    keep(store, COUNTED, *ROWS)

    selected = [*store.views.select(COUNTED, where=where, above=above, order=order)]

    assert selected == [row for key in found for row in ROWS if row[0] == key]


def test_a_selection_that_is_not_read_to_its_end_is_no_hindrance(
    store: Store, other: Store
) -> None:
    before = keep(store, COUNTED, *ROWS)
    some = store.views.select(COUNTED, where={}, order=["key"])

    assert next(some) == ROWS[0]
    other.commit([change(COUNTED, before, later(before), [("b", 10, None)])])
    some.close()  # type: ignore[attr-defined]

    assert store.views.row(COUNTED, "b") == ("b", 10, None)
    store.commit([change(COUNTED, later(before))])


def test_the_highest_number_of_a_column(store: Store) -> None:
    store.views.prepare(COUNTED)
    empty = store.views.highest(COUNTED, "number")
    keep(store, COUNTED, *ROWS)

    assert (empty, store.views.highest(COUNTED, "number")) == (0, 3)


def test_keys_come_in_order_page_by_page(store: Store) -> None:
    keep(store, COUNTED, *((key, 1, None) for key in ["c", "ä", "a", "d", "b"]))

    assert store.views.keys(COUNTED, after=None) == ["a", "b", "c"]
    assert store.views.keys(COUNTED, after="c") == ["d", "ä"]
    assert store.views.keys(COUNTED, after="bb") == ["c", "d", "ä"]
    assert store.views.keys(COUNTED, after="ä") == []


def test_rows_are_counted_also_where_their_table_is_gone(store: Store, outside: Outsider) -> None:
    keep(store, COUNTED, *ROWS)
    counted, exists = store.views.count(COUNTED.table), store.views.exists(COUNTED.table)
    outside.sql("DROP TABLE counted")

    assert (counted, exists) == (4, True)
    assert (store.views.count(COUNTED.table), store.views.exists(COUNTED.table)) == (0, False)


def test_a_dropped_projection_leaves_nothing(store: Store, outside: Outsider) -> None:
    folded(store)
    keep(store, like(COUNTED, name="other", table=Table("others", columns(), "key")))
    known = store.checkpoints.all().keys()

    store.views.drop("counted")
    store.views.drop("never heard of")

    assert store.checkpoints.all().keys() == known - {"counted"}
    assert store.quarantine.entries() == []
    assert store.checkpoints.reports() == {}
    assert store.views.count(COUNTED.table) == 0
    with pytest.raises(outside.error):
        outside.sql("SELECT * FROM counted")
    assert store.views.prepare(Counted()) == Checkpoint("counted", 1, 0, 0, "", 0)


def test_a_projection_is_dropped_also_where_its_table_is_gone_or_oddly_named(
    store: Store, outside: Outsider
) -> None:
    keep(store, COUNTED, ("a", 1, None))
    outside.sql("DROP TABLE counted")
    outside.insert(
        "checkpoint",
        name="odd",
        version=1,
        position=0,
        generation=0,
        digest="",
        skipped=0,
        kept_in='no"such',
        key_column='"',
        prefix="",
    )

    for name in ("counted", "odd"):
        assert store.views.count(store.checkpoints.all()[name].table) == 0
        store.views.drop(name)

    assert store.checkpoints.all().keys() <= {"sessions", "session_index"}


@pytest.mark.needs("odd values")
def test_rows_under_odd_keys_are_found_and_removed(store: Store, outside: Outsider) -> None:
    before = keep(store, COUNTED, ("a", 1, None))
    outside.sql("INSERT INTO counted (key, number) VALUES (CAST(x'62ff' AS TEXT), 2)")
    odd = "b\udcff"

    assert store.views.keys(COUNTED, after=None) == ["a", odd]
    assert store.views.keys(COUNTED, after=odd) == []
    assert store.views.row(COUNTED, odd) == (odd, 2, None)
    store.commit([change(COUNTED, before, removed=[odd])])
    assert store.views.keys(COUNTED, after=None) == ["a"]


# Latest and tally

TEXTS = ("note", "key")


@pytest.fixture
def noted(store: Store) -> Store:
    """Rows with a key, a number and a note."""
    keep(
        store,
        WIDENED,
        *(("a", 1, "One Way", None), ("b", 3, "no way", None), ("c", 3, "50% \x01_off", None)),
        *(("d", 2, None, None), ("E", 5, "no way", None)),
    )
    return store


def keys_of(rows: list[tuple[Any, ...]]) -> list[str]:
    return [row[0] for row in rows]


def test_the_latest_rows_come_from_the_highest_value_down(noted: Store) -> None:
    def latest(limit: int, below: tuple[Any, ...] | None = None, **among: Any) -> list[str]:
        order = ("number", "key")
        rows = noted.views.latest(WIDENED, Among(**among), order=order, below=below, limit=limit)
        return keys_of(rows)

    assert latest(9) == ["E", "c", "b", "d", "a"]
    assert latest(2) == ["E", "c"]
    assert latest(2, below=(3, "c")) == ["b", "d"]
    assert latest(9, below=(3, "")) == ["d", "a"]
    assert latest(9, above={"number": 2}, at_most={"number": 3}) == ["c", "b"]
    assert latest(9, having={"key": ["a", "E", "x"]}, lacking={"number": [5]}) == ["a"]
    assert latest(9, having={"key": []}) == []
    assert latest(0) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["WAY"], ["E", "b", "a"]),
        (["way", "n"], ["E", "b", "a"]),
        (["no"], ["E", "b"]),
        (["e"], ["E", "a"]),
        (["%"], ["c"]),
        (["_"], ["c"]),
        (["\x01"], ["c"]),
        (["no_way"], []),
        (["x"], []),
    ],
)
def test_words_are_found_in_any_of_some_texts_as_they_are_spelled(
    noted: Store, words: list[str], found: list[str]
) -> None:
    among = Among(words=words, texts=TEXTS)

    assert keys_of(noted.views.latest(WIDENED, among, order=("number", "key"), limit=9)) == found
    assert sum(noted.views.tally(WIDENED, among, "number").values()) == len(found)


def test_a_tally_counts_the_rows_with_each_value(noted: Store) -> None:
    assert noted.views.tally(WIDENED, Among(), "number") == {1: 1, 2: 1, 3: 2, 5: 1}
    assert noted.views.tally(WIDENED, Among(), "note") == {
        None: 1,
        "One Way": 1,
        "no way": 2,
        "50% \x01_off": 1,
    }
    assert noted.views.tally(WIDENED, Among(having={"note": ["no way"]}), "key") == {"b": 1, "E": 1}
    assert noted.views.tally(WIDENED, Among(having={"note": ["x"]}), "key") == {}
