"""A commit: all of it or nothing, and only where the checkpoint is the one that was read."""

from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from conformance.engines import Outsider
from support.laws import COUNTED, append, change, keep, later

from session_projector.projections import BUILT_IN
from session_projector.projections.fold import Rejected
from session_projector.worker.errors import DatabaseUnavailable, LostRace, ProjectionFailed
from session_projector.worker.storage.port import (
    Checkpoint,
    Deferred,
    ProjectionStatus,
    QuarantineEntry,
    Store,
)

SESSIONS, INDEX = BUILT_IN
REBUILDING = ProjectionStatus("rebuilding", 2, "", 10, 20, 1000, 2000)


@pytest.fixture
def before(store: Store) -> Checkpoint:
    return store.views.prepare(COUNTED)


def session_row(name: str, data: bytes = b"\x80", **columns: Any) -> tuple[Any, ...]:
    key = f"session:{name}"
    return (columns.get("id", key), key, data, "e", 1, 1)


def stored(store: Store) -> list[Any]:
    """Everything that a commit may change."""
    views = store.views
    return [
        [views.row(one, key) for one in (COUNTED, SESSIONS) for key in views.keys(one, after=None)],
        store.checkpoints.all(),
        store.checkpoints.reports(),
        store.quarantine.entries(),
    ]


def test_a_commit_writes_rows_checkpoint_and_quarantine_together(
    store: Store, before: Checkpoint
) -> None:
    second, third = append(store, "e1", "e2", "e3")[1:]
    rows = [("a", 1, b"one"), ("b", 2, None)]
    bad = [Rejected(second, "bad"), Rejected(third, "worse")]

    middle = later(before, position=second, digest="d", skipped=1)
    store.commit([change(COUNTED, before, middle, rows, quarantined=bad)])
    after = later(middle, position=third)
    changed = [("a", 10, None), ("c", 3, None)]
    store.commit([change(COUNTED, middle, after, changed, removed=["b", "no"], cleared=[second])])

    assert store.checkpoints.get("counted") == after
    assert store.views.keys(COUNTED, after=None) == ["a", "c"]
    assert [store.views.row(COUNTED, key) for key in "abc"] == [changed[0], None, changed[1]]
    assert store.quarantine.entries() == [
        QuarantineEntry("counted", third, "e3", "session:A", "worse", None)
    ]


def test_many_rows_of_any_size_are_written_by_one_commit(store: Store, before: Checkpoint) -> None:
    rows = [(f"{n:04}", n, b"x" * (n * n % 50_000)) for n in range(700)]

    store.commit([change(COUNTED, before, rows=rows)])

    assert [store.views.row(COUNTED, row[0]) for row in rows] == rows
    assert store.views.count(COUNTED.table) == 700


def test_an_event_in_quarantine_is_recorded_once_with_its_newest_reason(
    store: Store, before: Checkpoint
) -> None:
    (first,) = append(store, "e1")
    for reason in ("old", "new"):
        after = later(before)
        bad = [Rejected(first, reason), Rejected(first + 1, "there is no such event")]
        store.commit([change(COUNTED, before, after, quarantined=bad)])
        before = after

    assert [(entry.seq, entry.reason) for entry in store.quarantine.entries()] == [(first, "new")]


# All or nothing


def test_of_several_changes_all_are_committed_or_none(store: Store, before: Checkpoint) -> None:
    sessions = store.views.prepare(SESSIONS)
    (first,) = append(store, "e1")
    counted = change(COUNTED, before, rows=[("a", 1, None)], quarantined=[Rejected(first, "bad")])
    store.checkpoints.report("counted", REBUILDING)
    initially = stored(store)

    with pytest.raises(LostRace):
        store.commit([counted, change(SESSIONS, later(sessions), rows=[session_row("A")])])
    stored_meanwhile = stored(store)
    store.commit([counted, change(SESSIONS, sessions, rows=[session_row("A")])])

    assert stored_meanwhile == initially
    assert store.views.row(COUNTED, "a") == ("a", 1, None)
    assert store.views.row(SESSIONS, "session:A") == session_row("A")


@pytest.mark.parametrize(
    "rows",
    [
        [session_row("A"), (None, None, None, None, None, None)],
        [session_row("A"), (*session_row("B")[:4], 2**63, 1)],
        [session_row("A"), session_row("B", data=None)],  # type: ignore[arg-type]
    ],
    ids=["nothing in it", "a number that is too large", "a column that may not be empty"],
)
def test_rows_that_the_table_does_not_take_are_a_fault_of_that_projection_alone(
    store: Store, before: Checkpoint, rows: list[tuple[Any, ...]]
) -> None:
    sessions = store.views.prepare(SESSIONS)
    initially = stored(store)

    with pytest.raises(ProjectionFailed) as failed:
        store.commit(
            [change(COUNTED, before, rows=[("a", 1, None)]), change(SESSIONS, sessions, rows=rows)]
        )

    assert failed.value.projection == "sessions"
    assert stored(store) == initially
    store.commit([change(COUNTED, before)])  # no transaction is left open


# Compare and set


@pytest.mark.parametrize(
    "differing",
    [
        {"version": 2},
        {"version": -1},
        {"position": 0},
        {"position": 2},
        {"generation": 0},
        {"generation": 2},
        {"digest": "another"},
        {"name": "absent"},
    ],
    ids=str,
)
def test_a_commit_is_refused_where_any_part_of_its_checkpoint_differs(
    store: Store, before: Checkpoint, differing: dict[str, Any]
) -> None:
    now = later(before, position=1, digest="d")
    store.commit([change(COUNTED, before, now)])
    initially = stored(store)
    assumed = msgspec.structs.replace(now, **differing)

    with pytest.raises(LostRace):
        store.commit([change(COUNTED, assumed, rows=[("a", 1, None)])])

    assert stored(store) == initially


def test_of_two_stores_that_read_the_same_checkpoint_one_commits(
    store: Store, other: Store, before: Checkpoint
) -> None:
    store.commit([change(COUNTED, before, rows=[("a", 1, None)])])

    with pytest.raises(LostRace):
        other.commit([change(COUNTED, before, rows=[("a", 2, None)])])

    assert store.views.row(COUNTED, "a") == ("a", 1, None)


def test_what_a_projection_says_of_itself_ends_when_its_checkpoint_moves(
    store: Store, before: Checkpoint
) -> None:
    store.checkpoints.report("counted", REBUILDING)
    store.checkpoints.report("sessions", REBUILDING)

    raised = later(before)
    store.commit([change(COUNTED, before, raised)])
    kept = store.checkpoints.reports()
    store.commit([change(COUNTED, raised, later(raised, position=5))])

    assert kept.keys() == {"counted", "sessions"}
    assert store.checkpoints.reports().keys() == {"sessions"}


# Views that are deferred


def deferred(**positions: int) -> dict[str, Deferred]:
    """Views by key, each as of a position."""
    return {key: Deferred(at, 1000, 20, 5) for key, at in positions.items()}


def visible(outside: Outsider) -> list[tuple[Any, ...]]:
    """What any program sees of the positions."""
    return [
        *outside.sql("SELECT position FROM checkpoint WHERE name = 'counted'"),
        *outside.sql(
            "SELECT key, folded_position, read_position FROM deferred"
            " WHERE projection = 'counted' ORDER BY key"
        ),
    ]


def test_other_programs_see_no_position_that_a_deferred_view_has_not_reached(
    store: Store, other: Store, before: Checkpoint, outside: Outsider
) -> None:
    first = later(before, position=4, digest="d", deferred=deferred(a=2, b=3))
    second = later(first, position=9, digest="e")
    third = later(second, deferred=deferred(b=3))
    last = later(third, deferred={})

    seen = []
    for one, after in pairwise([before, first, second, third, last]):
        store.commit([change(COUNTED, one, after)])
        assert other.checkpoints.get("counted") == after
        assert other.checkpoints.all()["counted"].checkpoint == after
        assert other.views.load(COUNTED, ["a"]).checkpoint == after
        seen.append(visible(outside))

    assert seen == [
        [(2,), ("a", 2, 4), ("b", 3, 4)],
        [(2,), ("a", 2, 9), ("b", 3, 9)],
        [(3,), ("b", 3, 9)],
        [(9,)],
    ]


def test_what_is_deferred_is_committed_with_all_else_or_not_at_all(
    store: Store, before: Checkpoint, outside: Outsider
) -> None:
    now = later(before, position=4, digest="d", deferred=deferred(a=2))
    store.commit([change(COUNTED, before, now)])
    initially = visible(outside)

    too_large = change(COUNTED, now, later(now, deferred={}), [("a", 2**63, None)])
    with pytest.raises(ProjectionFailed):
        store.commit([too_large])

    assert visible(outside) == initially
    assert store.checkpoints.get("counted") == now


def test_of_two_stores_that_write_a_deferred_view_one_commits(
    store: Store, other: Store, before: Checkpoint
) -> None:
    now = later(before, position=4, digest="d", deferred=deferred(a=2))
    store.commit([change(COUNTED, before, now)])
    written = later(now, deferred={})
    store.commit([change(COUNTED, now, written, [("a", 1, None)])])

    with pytest.raises(LostRace):  # which knows nothing of that, and would leave out an event of it
        other.commit([change(COUNTED, now, later(now, position=5, digest="e"))])

    assert store.checkpoints.get("counted") == written


def test_nothing_is_deferred_once_a_projection_is_dropped_or_begins_again(
    store: Store, before: Checkpoint, outside: Outsider
) -> None:
    now = later(before, position=4, digest="d", deferred=deferred(a=2))
    store.commit([change(COUNTED, before, now)])
    outside.sql("DROP TABLE counted")
    again = store.views.prepare(COUNTED)
    seen = visible(outside)
    store.commit([change(COUNTED, again, later(again, position=4, deferred=deferred(a=2)))])
    store.views.drop("counted")

    assert seen == [(0,)]
    assert visible(outside) == []


def test_nothing_is_deferred_where_somebody_deleted_the_checkpoint(
    store: Store, before: Checkpoint, outside: Outsider
) -> None:
    now = later(before, position=4, digest="d", deferred=deferred(a=2))
    store.commit([change(COUNTED, before, now)])
    outside.sql("DELETE FROM checkpoint")

    assert store.views.prepare(COUNTED) == Checkpoint("counted", 1, 0, 0, "", 0)


def test_the_quarantine_of_what_is_folded_is_no_stray_while_a_view_is_deferred(
    store: Store, before: Checkpoint
) -> None:
    seqs = append(store, "e1", "e2", "e3")
    now = later(before, position=seqs[1], digest="d", deferred=deferred(a=seqs[0]))
    bad = [Rejected(seq, "bad") for seq in seqs]
    store.commit([change(COUNTED, before, now, quarantined=bad)])

    assert store.quarantine.strays("counted", ahead=None) == [seqs[2]]


def row_of_others(outside: Outsider, **odd: Any) -> None:
    row = {"projection": "counted", "key": "a", "folded_position": 0, "read_position": 0}
    rest = {"bytes": 1, "cost_ms": 1, "since": 1}
    outside.insert("deferred", **(row | rest | odd))


@pytest.mark.parametrize(
    "odd",
    [{"key": "a" * 200_000}, {"read_position": -1}, {"folded_position": 5}],
    ids=["huge", "negative", "ahead"],
)
@pytest.mark.usefixtures("before")
def test_what_others_wrote_among_the_deferred_views_is_refused(
    store: Store, outside: Outsider, odd: dict[str, Any]
) -> None:
    row_of_others(outside, **odd)

    with pytest.raises(ProjectionFailed, match="somebody wrote to it"):
        store.checkpoints.get("counted")


@pytest.mark.needs("odd values")
@pytest.mark.parametrize("odd", [{"key": b"a"}, {"folded_position": "x"}], ids=str)
@pytest.mark.usefixtures("before")
def test_so_are_values_of_other_types(store: Store, outside: Outsider, odd: dict[str, Any]) -> None:
    row_of_others(outside, **odd)

    with pytest.raises(ProjectionFailed, match="somebody wrote to it"):
        store.checkpoints.get("counted")


# A table that others keep rows in too


def test_rows_under_other_keys_are_never_touched(store: Store, outside: Outsider) -> None:
    others = [("1", "project:A"), ("2", "project:A"), ("3", "session"), ("4", "session;")]
    for row_id, key in others:
        outside.insert(
            "view", id=row_id, key=key, data=b"x", last_offset_id="e", created_at=1, updated_at=1
        )
    initially = outside.sql("SELECT id, key, data FROM view ORDER BY id")

    before = keep(store, SESSIONS, session_row("A"), session_row("B"))
    removed = ["session:A", *(key for _, key in others)]
    store.commit([change(SESSIONS, before, rows=[session_row("B", b"new")], removed=removed)])

    assert store.views.keys(SESSIONS, after=None) == ["session:B"]
    assert store.views.count(SESSIONS.table) == 1
    assert [store.views.row(SESSIONS, key) for _, key in others] == [None] * 4
    store.views.drop("sessions")
    assert outside.sql("SELECT id, key, data FROM view ORDER BY id") == initially


def test_a_row_is_written_also_where_a_damaged_row_has_its_id(store: Store) -> None:
    before = keep(store, SESSIONS, session_row("A", id="session:B"), session_row("C"))

    store.commit([change(SESSIONS, before, rows=[session_row("B"), session_row("C", b"new")])])

    assert store.views.row(SESSIONS, "session:B") == session_row("B")
    assert store.views.row(SESSIONS, "session:C") == session_row("C", b"new")
    assert store.views.row(SESSIONS, "session:A") == session_row("A")


def test_a_row_of_another_program_with_the_id_of_ours_is_named_and_left(
    store: Store, outside: Outsider
) -> None:
    outside.insert(
        "view",
        id="session:A",
        key="project:A",
        data=b"x",
        last_offset_id="e",
        created_at=1,
        updated_at=1,
    )
    before = store.views.prepare(SESSIONS)

    with pytest.raises(ProjectionFailed, match="another program's row"):
        store.commit([change(SESSIONS, before, rows=[session_row("A")])])

    assert outside.sql("SELECT key FROM view") == [("project:A",)]
    assert store.checkpoints.get("sessions") == before


# Beside others


@pytest.mark.needs("one writer")
def test_a_commit_says_whether_another_connection_committed_since_the_one_before(
    store: Store, other: Store, before: Checkpoint
) -> None:
    said = []
    for others in (False, False, True, False):
        if others:
            append(other, "e1")
        after = later(before)
        stats = store.commit([change(COUNTED, before, after)])
        said.append(stats.others_wrote)
        assert stats.waited_s >= 0
        assert stats.held_s > 0
        before = after

    assert said == [False, False, True, False]


def test_an_empty_commit_does_no_harm(store: Store) -> None:
    keep(store, COUNTED, ("a", 1, None))
    initially = stored(store)

    store.commit([])

    assert stored(store) == initially


@pytest.mark.parametrize("bulk", [False, True])
def test_a_commit_is_seen_at_once_by_whoever_reads_next(
    store: Store, other: Store, before: Checkpoint, bulk: bool
) -> None:
    for number in range(5):
        after = later(before)
        store.commit([change(COUNTED, before, after, [("a", number, b"x" * 50_000)])], bulk=bulk)
        before = after

        assert other.views.load(COUNTED, ["a"]).rows["a"][1] == number


# Transactions and snapshots


def test_a_transaction_keeps_nothing_where_its_block_fails(store: Store) -> None:
    append(store, "e1")

    def work() -> None:
        with store.transaction():
            append(store, "e2")
            store.quarantine.dismiss(1, "looked at")
            assert store.log.count() == 2  # it sees what it wrote
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()

    assert store.log.count() == 1
    append(store, "e3")
    assert store.log.count() == 2


def test_a_transaction_that_reads_first_can_write_though_another_process_wants_to(
    store: Store, outside: Outsider
) -> None:
    with store.transaction():
        counted = store.log.count()
        with suppress(outside.error):  # it has to wait, or it may write: either is well
            outside.sql("DELETE FROM dismissed", patience_s=0)
        append(store, "e1")

    assert counted == 0
    assert store.log.count() == 1


def test_one_transaction_changes_nothing_of_what_another_has_read(
    store: Store, other: Store
) -> None:
    with store.transaction():
        counted = store.log.count()
        with pytest.raises(DatabaseUnavailable), other.transaction():
            append(other, "e1")
        append(store, "e2")

    with other.transaction():
        append(other, "e1")
    assert counted == 0
    assert store.log.count() == 2


def test_what_is_written_in_a_transaction_is_seen_by_others_when_it_ends(
    store: Store, other: Store
) -> None:
    with store.transaction():
        append(store, "e1", "e2")
        seen = other.log.count()

    assert seen == 0
    assert other.log.count() == 2


def test_a_snapshot_sees_one_moment(store: Store, other: Store, before: Checkpoint) -> None:
    append(store, "e1")
    with store.snapshot():
        seen = [store.log.count()]
        append(other, "e2")
        other.commit([change(COUNTED, before, rows=[("a", 1, None)])])
        seen.append(store.log.count())
        assert store.checkpoints.get("counted") == before
        assert store.views.row(COUNTED, "a") is None

    assert seen == [1, 1]
    assert store.log.count() == 2
    assert store.checkpoints.get("counted") == later(before)


def test_a_snapshot_that_fails_ends(store: Store, other: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.snapshot():
        raise ZeroDivisionError(store.log.count())
    append(other, "e1")

    assert store.log.count() == 1


# Has anybody written?


def test_another_connections_commit_is_told_once(store: Store, other: Store) -> None:
    told = [store.changed()]
    append(other, "e1")
    told += [store.changed(), store.changed()]

    assert told == [False, True, False]


def test_another_processs_commit_is_told(store: Store, outside: Outsider) -> None:
    store.changed()
    outside.insert("event_log", id="e1", key="A", data=b"\x80", created_at=1)

    assert store.changed()


def test_a_commit_of_ones_own_is_not_told(store: Store, before: Checkpoint) -> None:
    store.changed()
    store.commit([change(COUNTED, before)])
    store.checkpoints.report("counted", REBUILDING)

    assert not store.changed()


@pytest.mark.needs("one writer")
def test_so_is_not_an_event_of_ones_own(store: Store) -> None:
    store.changed()
    append(store, "e1")

    assert not store.changed()


def test_a_commit_between_the_question_and_the_reading_is_told_by_the_next_question(
    store: Store, other: Store
) -> None:
    store.changed()
    append(other, "e1")
    store.log.newest()

    assert store.changed()
