"""The lock file beside the database, which is what makes a daemon the leader."""

import fcntl
import os
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs
from support import Database, projector

from session_projector.worker.storage.port import Trouble
from session_projector.worker.storage.sqlite import lock as module
from session_projector.worker.storage.sqlite.lock import LOCK_SUFFIX, DaemonLock


@pytest.fixture
def lock_file(database: Database) -> Path:
    return database.path.with_name(database.path.name + LOCK_SUFFIX)


def test_whoever_asks_who_leads_is_not_taken_for_the_leader(
    database: Database, lock_file: Path
) -> None:
    with open(lock_file, "w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)

        assert DaemonLock(database.path).leader() is None


def test_the_file_holds_nothing_of_whoever_led_before(database: Database, lock_file: Path) -> None:
    for running in ({f"projection_{n}": n for n in range(50)}, {"one": 1}):
        lock = DaemonLock(database.path, running)
        lock.acquire()
        told = lock_file.read_text().split()[1:]
        lock.release()

        assert told == [f"{name}={version}" for name, version in running.items()]


def test_what_is_waited_for_is_written_where_the_file_has_its_room_already(
    database: Database, lock_file: Path
) -> None:
    """A full disk takes no new blocks, but new contents of those that are there."""
    lock = DaemonLock(database.path, {f"projection_{n}": n for n in range(300)})
    lock.acquire()
    before = lock_file.stat()
    lock.tell(Trouble("space", 1_764_339_000_000))
    after, said = lock_file.stat(), lock_file.read_text()
    lock.release()

    assert said.endswith(" ")
    assert said.split()[-1] == "WAITING_FOR_SPACE=1764339000"
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)


async def test_a_file_that_was_removed_is_made_again_once_it_can_be(
    database: Database, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0)
    file = anyio.Path(lock_file)
    lock = DaemonLock(database.path, {"one": 1})
    lock.acquire()
    lock.tell(trouble := Trouble("space", 1_764_339_000_000))
    await file.unlink()
    await file.mkdir()
    with capture_logs() as said:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lock.lost)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            await file.rmdir()
            while not said:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    leader = DaemonLock(database.path).leader()
    lock.release()

    assert leader is not None
    assert (leader.pid, leader.running, leader.trouble) == (os.getpid(), {"one": 1}, trouble)
    assert [(line["event"], line["file"]) for line in said] == [
        ("lock_taken_again", str(lock_file))
    ]


def test_where_no_daemon_can_start_nobody_is_told_to_start_one(
    database: Database, lock_file: Path
) -> None:
    lock_file.mkdir()
    healthy = projector("health", "-d", database.path, check=1).stdout
    status = projector("status", "-d", database.path).stdout

    for said in (healthy, status):
        assert f"none can be started by this user: {lock_file} cannot be opened" in said
        assert "projector doctor" in said
        assert "projector run" not in said
