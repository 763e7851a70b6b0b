"""What the daemon waits out is said once, counted, and said to be over."""

from collections.abc import AsyncIterator

import anyio
import pytest
from structlog.testing import capture_logs
from support import Database
from support.extensions import PerProject
from support.folding import opened

from session_projector.worker.daemon.outage import LONGEST_RETRY_S, Failures, Outage
from session_projector.worker.errors import DatabaseUnavailable, ProjectionFailed
from session_projector.worker.storage.port import Thread
from session_projector.worker.telemetry.state import DaemonState

BROKEN = ProjectionFailed("per_project", "it fails", "a hint")


@pytest.fixture
async def thread(database: Database) -> AsyncIterator[Thread]:
    async with opened(database.url) as thread:
        yield thread


async def test_each_outage_is_said_once_and_its_end_too() -> None:
    outage, stop = Outage(DaemonState()), anyio.Event()
    stop.set()  # so that nothing waits
    with capture_logs() as said:
        outage.over()
        for attempts in (3, 1):
            for _ in range(attempts):
                await outage.wait_out(DatabaseUnavailable("locked", "a hint"), stop)
            outage.over()
            outage.over()

    assert [(line["event"], line.get("failures")) for line in said] == [
        ("database_unavailable", None),
        ("database_available_again", 3),
        ("database_unavailable", None),
        ("database_available_again", 1),
    ]


async def test_one_that_fails_is_tried_again_ever_more_slowly_and_at_least_every_minute(
    thread: Thread,
) -> None:
    failures = Failures(PerProject())
    waits = []
    with capture_logs() as said:
        for _ in range(20):
            await failures.tell(thread, BROKEN)
            waits.append(failures.retry_s)

    assert waits[:3] == [1, 2, 4]
    assert {*waits[6:]} == {LONGEST_RETRY_S}
    assert [line["event"] for line in said] == ["projection_failed"]


async def test_one_that_succeeds_is_no_longer_reported_to_fail(thread: Thread) -> None:
    """Also where there is no event, whose commit would say so."""
    failures = Failures(PerProject())
    await failures.tell(thread, BROKEN)
    while_it_fails = await thread.run(lambda store: store.checkpoints.reports())
    with capture_logs() as said:
        await failures.over(thread)

    assert while_it_fails["per_project"].state == "failed"
    assert await thread.run(lambda store: store.checkpoints.reports()) == {}
    assert [(line["event"], line["failures"]) for line in said] == [("projection_recovered", 1)]
