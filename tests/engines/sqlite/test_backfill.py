"""The write-ahead log is copied back beside batches that follow each other, and stays small."""

import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from support import Database, daemon
from support.folding import checkpoint, opened

from session_projector.projections import BUILT_IN
from session_projector.worker.storage.port import Change, Thread

SESSIONS, _ = BUILT_IN
MIB = 1024 * 1024


@pytest.fixture
async def thread(database: Database) -> AsyncIterator[Thread]:
    async with opened(database.path) as thread:
        yield thread


async def write(thread: Thread, data: bytes, *, bulk: bool) -> None:
    before = await checkpoint(thread, SESSIONS)
    after = msgspec.structs.replace(before, generation=before.generation + 1)
    row = ("session:A", "session:A", data, "e", 1, 1)
    change = Change(SESSIONS.table, before, after, [row])
    await thread.run(lambda store: store.commit([change], bulk=bulk))


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():  # noqa: ASYNC110
            await anyio.sleep(0.05)


def without_wal(database: Database, folder: Path) -> list[tuple[Any, ...]]:
    """The views in the database file alone."""
    shutil.copy(database.path, folder / "alone.db")
    with closing(sqlite3.connect(folder / "alone.db")) as connection:
        return connection.execute("SELECT key, data FROM view").fetchall()


async def test_a_large_commit_that_another_follows_is_copied_back_before_that_one(
    database: Database, thread: Thread, tmp_path: Path
) -> None:
    await write(thread, b"first", bulk=True)
    await thread.run(lambda store: store.commit([], bulk=True))

    assert without_wal(database, tmp_path) == [("session:A", b"first")]


async def test_a_commit_by_itself_is_copied_back_a_moment_later(
    database: Database, thread: Thread, tmp_path: Path
) -> None:
    for data in (b"first", b"second"):  # the second copy is of a thread that was over by then
        await write(thread, data, bulk=False)

        await until(lambda: without_wal(database, tmp_path) == [("session:A", data)])
        await until(lambda: all(one.name != "backfill" for one in threading.enumerate()))


async def test_commits_that_follow_each_other_are_copied_back_together(
    database: Database, thread: Thread
) -> None:
    """Each copy is written to the disk, and costs more than a commit."""
    copies = set()
    for number in range(100):
        await write(thread, bytes([number]), bulk=False)
        await anyio.sleep(0.005)
        copies.add(os.stat(database.path).st_mtime_ns)

    assert len(copies) < 50


def test_a_wal_that_commits_keep_from_being_used_again_is_emptied(database: Database) -> None:
    text = "x" * 8 * MIB
    with (
        closing(sqlite3.connect(database.path, isolation_level=None)) as reader,
        daemon(database.path) as running,
    ):
        database.created("A", text)
        running.wait_until_at(1)
        reader.execute("BEGIN")  # which pins it for a while
        reader.execute("SELECT count(*) FROM view").fetchone()
        others = (f"B-{number}" for number in count())  # as one large session is written less often
        while os.path.getsize(f"{database.path}-wal") < 80 * MIB:
            running.wait_until_at(database.created(next(others), text))
        reader.rollback()
        while os.path.getsize(f"{database.path}-wal") > 64 * MIB:
            running.wait_until_at(database.created(next(others), text))
        emptied = [line for line in running.lines if line["event"] == "wal_emptied"]
        assert [line["bytes"] > 64 * MIB for line in emptied] == [True]


async def test_the_wal_stays_as_small_as_one_commit(database: Database, thread: Thread) -> None:
    for number in range(8):
        await write(thread, bytes([number]) * 8 * MIB, bulk=True)

    assert os.path.getsize(f"{database.path}-wal") < 10 * MIB  # noqa: ASYNC240


async def test_after_such_commits_sqlite_copies_back_by_itself_again(
    database: Database, thread: Thread, tmp_path: Path
) -> None:
    await write(thread, b"first", bulk=True)
    await write(thread, b"second" * MIB, bulk=False)

    assert without_wal(database, tmp_path) == [("session:A", b"second" * MIB)]
