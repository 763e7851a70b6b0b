"""How large batches are beside others that write."""

from collections.abc import Callable

import pytest

from session_projector.worker.folding.pacing import (
    CHUNK_HOLD_S,
    HOPELESS_HOLD_S,
    LEAST_EVENTS,
    LONGEST_HOLD_S,
    SMALL_EVENTS,
    TRANSACTIONS,
    WritePacing,
    cost_of,
)
from session_projector.worker.storage.limits import BATCH_EVENTS

MICROSECONDS = 1e-6


def settled(
    hold_us: Callable[[int], float], rows: Callable[[int], int], pacing: WritePacing
) -> int:
    """Events of a batch after many; the hold and the rows of one by its events."""
    for _ in range(30):
        events = pacing.most_events
        pacing.held(hold_us(events) * MICROSECONDS, rows=rows(events), projections=2)
    return pacing.most_events


def test_where_each_event_is_of_another_view_batches_hold_the_lock_shortly() -> None:
    events = settled(lambda events: 30 * events, lambda events: 2 * events, WritePacing())

    assert LEAST_EVENTS < events < SMALL_EVENTS
    assert 30 * events * MICROSECONDS <= 2 * LONGEST_HOLD_S


@pytest.mark.parametrize("us", [0.1, 1.0])
def test_what_takes_no_time_is_folded_in_batches_of_the_usual_size(us: float) -> None:
    assert (
        settled(lambda events: us * events, lambda events: 2 * events, WritePacing())
        == SMALL_EVENTS
    )


def test_what_takes_long_is_folded_in_the_least_batches() -> None:
    hold_us = 0.9 * HOPELESS_HOLD_S / LEAST_EVENTS / MICROSECONDS

    events = settled(lambda events: hold_us * events, lambda events: 2 * events, WritePacing())

    assert events == LEAST_EVENTS


def test_a_few_large_views_are_written_seldom() -> None:
    """However few events a batch has, it writes them all."""
    pacing = WritePacing()

    assert settled(lambda _: 100_000, lambda _: 10, pacing) == BATCH_EVENTS
    assert settled(lambda events: 30 * events, lambda events: 2 * events, pacing) < SMALL_EVENTS


def test_others_are_thought_of_for_a_while() -> None:
    pacing = WritePacing()
    before = bool(pacing)
    pacing.wrote(others=True)
    while_others_write = bool(pacing)
    for _ in range(1000):
        pacing.wrote(others=False)

    assert (before, while_others_write, bool(pacing)) == (False, True, False)


def test_each_commit_of_others_begins_that_while_again() -> None:
    pacing = WritePacing()
    for _ in range(3):
        pacing.wrote(others=True)
        for _ in range(TRANSACTIONS - 1):
            pacing.wrote(others=False)
        assert pacing

    pacing.wrote(others=False)
    assert not pacing
    pacing.wrote(others=False)  # and it has not run up a debt
    pacing.wrote(others=True)
    assert pacing


def test_a_lock_that_was_held_for_too_long_halves_the_next_batch_and_a_short_one_doubles_it() -> (
    None
):
    pacing = WritePacing()
    sizes = []
    for hold_s in (LONGEST_HOLD_S, 1.01 * LONGEST_HOLD_S, 1.01 * LONGEST_HOLD_S, LONGEST_HOLD_S):
        pacing.held(hold_s, rows=1000, projections=1)
        sizes.append(pacing.most_events)

    assert sizes == [SMALL_EVENTS, SMALL_EVENTS // 2, SMALL_EVENTS // 4, SMALL_EVENTS // 2]


# A batch that is written by several transactions


@pytest.mark.parametrize(("size", "row_us"), [(0, 30), (4000, 50), (100_000, 700)])
def test_a_transaction_has_as_many_rows_as_are_written_in_the_time_that_it_may_take(
    size: int, row_us: float
) -> None:
    pacing = WritePacing()
    for _ in range(50):
        rows = [size] * max(int(pacing.most_bytes / cost_of(size)), 1)
        pacing.wrote_bytes(len(rows) * row_us * MICROSECONDS, rows)

    assert len(rows) * row_us * MICROSECONDS == pytest.approx(CHUNK_HOLD_S, rel=0.5)


def test_one_transaction_that_was_held_up_does_not_make_all_others_tiny() -> None:
    pacing = WritePacing()
    usual = pacing.most_bytes
    pacing.wrote_bytes(10, [1000])

    assert usual / 2 < pacing.most_bytes < usual


def test_one_that_wrote_no_rows_tells_nothing() -> None:
    pacing = WritePacing()
    usual = pacing.most_bytes
    pacing.wrote_bytes(10, [])

    assert pacing.most_bytes == usual
