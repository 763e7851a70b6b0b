"""Bringing back a log from another database: the same positions, all of a batch or none."""

from typing import Any

import pytest
from conformance.engines import Outsider
from support.laws import T0, append, event

from session_projector.projections.event import LogRow
from session_projector.worker.errors import InterventionRequired, LostRace
from session_projector.worker.storage.port import Store

ROWS = [
    LogRow(3, "a", "session:A", b"\x80\x00", T0),
    LogRow(4, None, None, None, None),
    LogRow(9, "grün", "A", '{"a": "ü"}', 1),
]


def everything(store: Store) -> list[LogRow]:
    rows: list[LogRow] = []
    while page := store.log.page(start=rows[-1].seq + 1 if rows else 0):
        rows += page
    return rows


def test_events_come_back_as_they_were_and_the_next_one_follows(store: Store) -> None:
    store.log.restore(ROWS[:2], after=0)
    store.log.restore(ROWS[2:], after=4)

    assert everything(store) == ROWS
    assert append(store, "next") == [10]


@pytest.mark.parametrize("first", [2_500_000, 2**40])
def test_a_gap_of_any_size_comes_back(store: Store, first: int) -> None:
    rows = [LogRow(first, "a", "A", "{}", T0), LogRow(3 * first, "b", "A", "{}", T0)]

    store.log.restore(rows[:1], after=0)
    store.log.restore(rows[1:], after=first)

    assert everything(store) == rows
    assert append(store, "next") == [3 * first + 1]


def test_what_does_not_follow_the_newest_event_is_a_lost_race(store: Store, other: Store) -> None:
    other.log.restore(ROWS[:1], after=0)

    for after in (0, 2, 4):
        with pytest.raises(LostRace):
            store.log.restore(ROWS[1:], after=after)

    assert everything(store) == ROWS[:1]


@pytest.mark.parametrize("data", [b"\x80\x00", b"\x81"])
def test_an_id_that_is_taken_leaves_nothing_of_the_batch(store: Store, data: bytes) -> None:
    store.log.restore(ROWS[:1], after=0)
    again = LogRow(12, "a", "session:A", data, T0)

    with pytest.raises(InterventionRequired, match=r"event 12 \(id 'a'\)"):
        store.log.restore([*ROWS[1:], again], after=3)

    assert everything(store) == ROWS[:1]
    store.log.restore(ROWS[1:], after=3)
    assert everything(store) == ROWS


def test_a_batch_that_failed_leaves_no_lock_behind(store: Store, other: Store) -> None:
    with pytest.raises(LostRace):
        store.log.restore(ROWS, after=7)

    assert len(append(other, "e1")) == 1


ODD: dict[str, Any] = {
    "id": [b"\xff", "a\udcff", "a\0b"],
    "key": [b"\xff", "a\udcff", "a\0b"],
    "data": [5, 1.5, "{\udcff}", '{"a": "\0"}'],
    "created_at": ["soon", 1.5, b"\x01"],
}


@pytest.mark.parametrize(
    ("column", "value"), [(column, value) for column, values in ODD.items() for value in values]
)
def test_an_odd_event_is_kept_or_refused_as_was_said(store: Store, column: str, value: Any) -> None:
    row = LogRow(**{"seq": 5, "id": "x", "key": "A", "data": "{}", "created_at": T0, column: value})
    why = store.log.unfit and store.log.unfit(row)

    if why:
        with pytest.raises(InterventionRequired, match="event 5"):
            store.log.restore([*ROWS[:2], row], after=0)
        assert column in why
        assert everything(store) == []
    else:
        store.log.restore([*ROWS[:2], row], after=0)
        assert everything(store) == [*ROWS[:2], row]


def test_what_fits_is_not_called_unfit(store: Store) -> None:
    assert not any(store.log.unfit(row) for row in ROWS if store.log.unfit)


# Notes


def test_a_note_is_kept_with_its_time(store: Store, outside: Outsider) -> None:
    first, second = append(store, "e1", "e2")
    outside.insert("dismissed", seq=7, id="of another log", note="old", dismissed_at=1)

    store.quarantine.dismiss(second, "known \0 \1 ü", at=T0)
    store.quarantine.dismiss(first, "first", at=5)
    store.quarantine.dismiss(first, "again", at=6)

    assert store.quarantine.notes() == [(first, "again", 6), (second, "known \0 \1 ü", T0)]
    store.quarantine.dismiss(first, "now")
    assert store.quarantine.notes()[0][2] > T0


def test_a_restored_event_is_one_like_others(store: Store) -> None:
    store.log.restore(ROWS, after=0)

    assert store.log.append(event("a", data=b"\x80\x00")) == 3
    assert store.log.count() == 3
    assert store.log.settled() == 9
