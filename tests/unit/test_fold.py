"""The same log gives the same views, byte for byte, in whatever batches."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import logs, oracle
from support.extensions import CreatedPerDay

from session_projector.projections import BUILT_IN
from session_projector.projections import fold as folding
from session_projector.projections import sessions as sessions_module
from session_projector.projections.event import LogRow
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.session_index import SessionIndex
from session_projector.projections.sessions import Sessions
from session_projector.worker.folding import cooperative
from session_projector.worker.folding.cooperative import fold_in_slices, read_in_slices

SESSIONS = Sessions()
Rows = dict[str, tuple[Any, ...]]
every_projection = pytest.mark.parametrize("projection", BUILT_IN, ids=lambda p: p.name)


def fold_batches(
    batches: list[list[tuple[Any, ...]]],
    projection: Projection = SESSIONS,
    fold: Callable[..., folding.Folded] = folding.fold,
) -> tuple[Rows, dict[int, str], int]:
    """Each batch begins from the rows that the one before left, as a daemon's does."""
    standing: Rows = {}
    quarantined: dict[int, str] = {}
    skipped = 0
    for batch in batches:
        views = {key: projection.from_row(row) for key, row in standing.items()}
        folded = fold(projection, views, folding.read(LogRow(*row) for row in batch))
        standing |= {key: projection.to_row(view) for key, view in folded.views.items()}
        quarantined |= {rejected.seq: rejected.reason for rejected in folded.quarantined}
        skipped += folded.skipped
    return standing, quarantined, skipped


@every_projection
@given(log=logs.logs, sizes=logs.batchings)
def test_any_batching_gives_the_same_views_and_the_same_quarantine(
    projection: Projection, log: list[Any], sizes: list[int]
) -> None:
    rows = logs.rows(log)

    assert fold_batches(logs.batches(rows, sizes), projection) == fold_batches([rows], projection)


@every_projection
@given(log=logs.lively_logs() | logs.logs, sizes=st.lists(st.integers(1, 20), min_size=1))
def test_each_session_folded_at_once_gives_what_event_by_event_does(
    projection: Projection, log: list[Any], sizes: list[int]
) -> None:
    batches = logs.batches(logs.rows(log), sizes)

    at_once = fold_batches(batches, projection, partial(anyio.run, fold_in_slices))
    assert at_once == fold_batches(batches, projection)
    assert [*at_once[1]] == sorted(at_once[1])


async def turns_of_others(work: Awaitable[Any]) -> int:
    """How often another task runs until some work is done."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_turns)
        await work
        tasks.cancel_scope.cancel()
    return turns


async def test_other_tasks_run_while_a_large_batch_is_read_and_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a stop, a health check and the watchdog would have to wait for it."""
    monkeypatch.setattr(cooperative, "LONGEST_SLICE_S", -1)  # whatever it takes is too long
    data = '{"type":"session_created","data":{"project":"A"}}'
    rows = [LogRow(n, f"e{n}", f"A-{n}", data, 1_700_000_000_000) for n in range(1, 2001)]
    events = folding.read(rows)

    assert await turns_of_others(read_in_slices(rows, BUILT_IN)) >= 2000 / 256
    assert await turns_of_others(fold_in_slices(SESSIONS, {}, events)) >= 2000 / 64
    assert await turns_of_others(fold_in_slices(CreatedPerDay(), {}, events)) >= 2000 / 16


@given(log=logs.logs)
def test_any_log_folds_to_what_the_oracle_says(log: list[Any]) -> None:
    rows = logs.rows(log)

    views, quarantined, skipped = fold_batches([rows])
    entries, index_quarantined, index_skipped = fold_batches([rows], SessionIndex())

    expected = oracle.fold(rows)
    assert (views, skipped) == (expected.views, expected.skipped)
    assert quarantined.keys() == expected.quarantine.keys()
    assert entries == oracle.index(rows)
    assert (index_quarantined, index_skipped) == (quarantined, skipped)


@given(log=logs.logs, sizes=logs.batchings)
def test_a_fold_leaves_the_views_it_began_from_as_they_were(
    log: list[Any], sizes: list[int]
) -> None:
    views: dict[str, Any] = {}
    for batch in logs.batches(logs.rows(log), sizes):
        events = folding.read(LogRow(*row) for row in batch)
        before = {key: SESSIONS.to_row(view) for key, view in views.items()}
        once = folding.fold(SESSIONS, views, events)
        twice = folding.fold(SESSIONS, views, events)
        assert {key: SESSIONS.to_row(view) for key, view in views.items()} == before
        assert once == twice
        views |= once.views


@pytest.mark.parametrize("kind", ["session_append", "session_updated"])
def test_an_event_that_would_make_a_view_too_large_is_quarantined(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def append(seq: int, size: int) -> tuple[Any, ...]:
        data = f'{{"type":"{kind}","data":{{"messages":[{{"c":"{"x" * size}"}}]}}}}'
        return (seq, f"e{seq}", "A-1", data, 1_700_000_000_000)

    created = (1, "e1", "A-1", '{"type":"session_created","data":{"project":"A"}}', 5)
    (row,) = fold_batches([[created, append(2, 3000)]])[0].values()
    limit = len(row[2])
    monkeypatch.setattr(sessions_module, "MAX_VIEW_BYTES", limit)
    monkeypatch.setattr(oracle, "VIEW_LIMIT_BYTES", limit)

    for size in (2999, 3000, 3001):
        rows = [created, append(2, size), append(3, 1)]
        expected = oracle.fold(rows)
        for batches in ([rows], [[row] for row in rows]):
            views, quarantined, _ = fold_batches(batches)
            assert views == expected.views
            assert quarantined.keys() == expected.quarantine.keys()
            assert (2 in quarantined) == (size > 3000)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, "other"),
        (2, None),
        (2, "text"),
        (2, b""),
        (2, b"\x80"),
        (2, b"\x86"),
        (3, None),
        (4, 1),
        (5, "soon"),
    ],
)
def test_a_row_that_no_fold_has_written_is_found_corrupt(column: int, value: Any) -> None:
    created = (1, "e1", "A-1", '{"type":"session_created","data":{"project":"A"}}', 5)
    (row,) = fold_batches([[created]])[0].values()
    corrupt = (*row[:column], value, *row[column + 1 :])

    with pytest.raises(CorruptRow):
        SESSIONS.from_row(corrupt)


@pytest.mark.parametrize("projection", [*BUILT_IN, CreatedPerDay()], ids=lambda p: p.name)
def test_a_batch_touches_each_view_from_its_first_event_on(projection: Projection) -> None:
    def created(seq: int, session: str, project: str) -> LogRow:
        data = f'{{"type":"session_created","data":{{"project":"{project}"}}}}'
        return LogRow(seq, f"e{seq}", session, data, 5)

    log = [
        created(3, "A-1", "A"),
        LogRow(4, "e4", "A-1", '{"type":"task_created"}', 5),
        LogRow(5, "e5", "B-1", "not JSON", 5),
        created(6, "B-1", "B"),
        created(7, "A-2", "A"),
        created(8, "A-1", "A"),
    ]
    events = folding.read(log)

    touched = folding.touched(projection, events, folding.runs_of(events))

    if projection.built_in:
        prefix = projection.table.prefix
        assert touched == {f"{prefix}A-1": 3, f"{prefix}B-1": 6, f"{prefix}A-2": 7}
    else:
        assert touched == {"A/0": 3, "B/0": 6}
