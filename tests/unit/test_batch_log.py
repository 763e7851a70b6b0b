"""Batches in the log: a line for each, and for many in a row one that sums them up."""

from collections import Counter
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from support.laws import COUNTED

from session_projector.projections.fold import Rejected
from session_projector.worker.daemon import batch_log
from session_projector.worker.daemon.batch_log import BatchLog
from session_projector.worker.storage.port import Change, Checkpoint


def committed(log: BatchLog, position: int, *, quarantined: bool = False) -> None:
    before = Checkpoint("counted", 1, position - 3, 0, "x", 0)
    after = Checkpoint("counted", 1, position, 0, "x", 1)
    rejected = [Rejected(position, "no event")] if quarantined else []
    rows = [("a", 1, None)] * 2
    change = Change(COUNTED.table, before, after, rows, quarantined=rejected)
    log.committed([change], position=position, lag=9, duration_s=0.001)


def total(lines: list[Any]) -> Counter[str]:
    found = Counter[str]()
    for line in lines:
        found["batches"] += line.get("batches", 1)
        found["views"] += line["views"]["counted"]
        found["skipped"] += line["skipped"]["counted"]
        found["quarantined"] += line.get("quarantined_count", 0)
    return found


async def test_a_batch_of_a_quiet_log_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_log, "QUIET_S", 0.0)
    log = BatchLog()
    with capture_logs() as said:
        for position in (3, 6, 9):
            committed(log, position, quarantined=position == 6)

    assert [line["position"] for line in said] == [3, 6, 9]
    assert [line["log_level"] for line in said] == ["info", "warning", "info"]
    assert not [line for line in said if "batches" in line]
    assert said[1]["quarantined"] == [6]


async def test_many_batches_in_a_row_are_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_log, "QUIET_S", 60.0)
    monkeypatch.setattr(batch_log, "EVERY_S", 60.0)
    log = BatchLog()
    with capture_logs() as said:
        for position in range(3, 303, 3):
            committed(log, position, quarantined=position > 250)
        log.say()
        log.say()

    assert [line["position"] for line in said] == [3, 300]
    assert said[1]["batches"] == 99
    assert said[1]["log_level"] == "warning"
    assert said[1]["quarantined"] == [*range(252, 282, 3)]
    assert said[1]["duration_ms"] == 99
    assert total(said) == {"batches": 100, "views": 200, "skipped": 100, "quarantined": 17}


@pytest.mark.parametrize("limit", ["QUIET_S", "EVERY_S"])
async def test_what_was_summed_up_is_said_though_no_batch_follows(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    for each in ("QUIET_S", "EVERY_S"):
        monkeypatch.setattr(batch_log, each, 0.05 if each == limit else 60.0)
    log = BatchLog()
    with capture_logs() as said, anyio.fail_after(30):
        committed(log, 3)
        committed(log, 6)
        while said[-1]["position"] < 6:  # noqa: ASYNC110 - the log has no event to wait for
            await anyio.sleep(0.001)

    assert total(said)["batches"] == 2
