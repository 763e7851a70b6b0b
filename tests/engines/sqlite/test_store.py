"""What a store on a SQLite file does to the file, and leaves of it."""

import sqlite3
from contextlib import closing

import pytest
from support import Database
from support.folding import opened, target
from support.laws import COUNTED, append, keep

from session_projector.worker.errors import InterventionRequired
from session_projector.worker.storage.limits import Limits


async def test_a_daemon_puts_a_database_into_wal_mode(database: Database) -> None:
    database.sql("PRAGMA journal_mode = DELETE")

    with target(database.path).open(writable=True):
        by_a_command = database.sql("PRAGMA journal_mode")
    async with opened(database.path):
        by_a_daemon = database.sql("PRAGMA journal_mode")

    assert (by_a_command, by_a_daemon) == ([("delete",)], [("wal",)])


def test_no_read_is_left_open_that_would_keep_the_wal_from_being_emptied(
    database: Database,
) -> None:
    limits = Limits(page_events=2, page_bytes=10)
    for number in range(5):
        database.created(f"A-{number}")
    with target(database.path, limits).open(writable=True) as store:
        keep(store, COUNTED, ("a", 1, None), ("b", 2, None))
        reads = [
            lambda: store.log.newest(),
            lambda: store.log.page(start=1),
            lambda: store.log.event(1),
            lambda: store.log.of(["session:A-1"], after=0, until=5),
            lambda: store.log.by_session(after=None, until=5),
            lambda: store.log.batch_reach(start=0, events=2),
            lambda: store.log.present(["session:A-1"]),
            lambda: store.views.load(COUNTED, ["a", "b"]),
            lambda: store.views.row(COUNTED, "a"),
            lambda: store.views.keys(COUNTED, after=None),
            lambda: next(store.views.select(COUNTED, where={}, order=["key"])),
            lambda: store.checkpoints.get("counted"),
            lambda: store.checkpoints.all(),
            lambda: store.quarantine.reasons("counted", [1]),
            lambda: store.scratch.clear("counted"),
            lambda: store.scratch.add("counted", [("a", 1), ("b", 1)]),
            lambda: store.scratch.page("counted", after=("", 0)),
            lambda: store.commit([]),
        ]
        for read in reads:
            read()
            database.appended("A-1", "more")
            with closing(sqlite3.connect(database.path, timeout=0)) as other:
                (busy, *_), *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert busy == 0


def test_an_event_that_a_trigger_of_others_keeps_out_is_not_taken_for_written(
    database: Database,
) -> None:
    database.sql("CREATE TRIGGER t BEFORE INSERT ON event_log BEGIN SELECT RAISE (IGNORE); END")

    with (
        target(database.path).open(writable=True) as store,
        pytest.raises(InterventionRequired, match="a trigger keeps it out") as refused,
    ):
        append(store, "e1")

    assert "tbl_name = " in refused.value.hint
