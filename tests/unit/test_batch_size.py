"""How many events the next batch has, by how long those before took."""

import pytest

from session_projector.worker.daemon.batch_size import (
    FIRST_EVENTS,
    LEAST_GROWTH,
    LONG_BATCH_S,
    MOST_GROWTH,
    SHORT_BATCH_S,
    BatchSize,
)
from session_projector.worker.folding.pacing import WritePacing
from session_projector.worker.storage.limits import BATCH_EVENTS

EITHER = pytest.mark.parametrize("built_in", [True, False])


@pytest.fixture
def pacing() -> WritePacing:
    return WritePacing()


@pytest.fixture
def size(pacing: WritePacing) -> BatchSize:
    return BatchSize(pacing)


@EITHER
def test_a_batch_grows_so_that_the_next_one_may_take_about_as_long(
    size: BatchSize, built_in: bool
) -> None:
    size.grow(SHORT_BATCH_S / 4, built_in=built_in)

    assert size.events(built_in=built_in) == 4 * FIRST_EVENTS


@EITHER
def test_it_grows_by_leaps_up_to_a_limit(size: BatchSize, built_in: bool) -> None:
    size.grow(1e-9, built_in=built_in)
    first = size.events(built_in=built_in)
    for _ in range(10):
        size.grow(1e-9, built_in=built_in)

    assert (first, size.events(built_in=built_in)) == (MOST_GROWTH * FIRST_EVENTS, BATCH_EVENTS)


def test_what_takes_long_grows_only_where_it_is_ours(pacing: WritePacing) -> None:
    ours, theirs = BatchSize(pacing), BatchSize(pacing)
    ours.grow(2 * SHORT_BATCH_S, built_in=True)
    theirs.grow(2 * SHORT_BATCH_S, built_in=False)

    assert (ours.events(built_in=True), theirs.events(built_in=False)) == (
        LEAST_GROWTH * FIRST_EVENTS,
        FIRST_EVENTS,
    )


def test_what_takes_too_long_shrinks_to_single_events_unless_it_is_ours(
    pacing: WritePacing,
) -> None:
    ours, theirs = BatchSize(pacing), BatchSize(pacing)
    for size, built_in in ((ours, True), (theirs, False)):
        size.shrink(LONG_BATCH_S, built_in=built_in)
    before = ours.events(built_in=True), theirs.events(built_in=False)
    sizes = []
    for _ in range(5):
        for size, built_in in ((ours, True), (theirs, False)):
            size.shrink(LONG_BATCH_S + 0.001, built_in=built_in)
        sizes.append(theirs.events(built_in=False))

    assert before == (FIRST_EVENTS, FIRST_EVENTS)
    assert ours.events(built_in=True) == FIRST_EVENTS
    assert sizes == [16, 4, 1, 1, 1]


def test_beside_other_writers_it_is_as_small_as_the_back_off_says_unless_it_is_ours(
    size: BatchSize, pacing: WritePacing
) -> None:
    for _ in range(10):
        size.grow(1e-9, built_in=True)
    pacing.wrote(others=True)
    beside = size.events(built_in=False)
    size.grow(1e-9, built_in=False)  # has no say meanwhile

    assert (beside, size.events(built_in=False)) == (pacing.most_events, pacing.most_events)
    assert size.events(built_in=True) == BATCH_EVENTS
