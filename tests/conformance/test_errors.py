"""What goes wrong comes out as this program's errors, which say whether a retry may help."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conformance.engines import Outsider
from support.laws import COUNTED, WIDENED, append, change, keep

from session_projector.worker.errors import (
    DatabaseUnavailable,
    InterventionRequired,
    TransientError,
)
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Checkpoint, Database, ProjectionStatus, Store

FAILED = ProjectionStatus("failed", 1, "why", 1, 2, 3, 4)


WRITES: dict[str, Callable[[Store], object]] = {
    "append": lambda store: append(store, "e1"),
    "commit": lambda store: store.commit([change(COUNTED, kept(store))]),
    "transaction": lambda store: transaction(store),
    "prepare": lambda store: store.views.prepare(WIDENED),
    "drop": lambda store: store.views.drop("counted"),
    "report": lambda store: store.checkpoints.report("counted", FAILED),
    "dismiss": lambda store: store.quarantine.dismiss(1, "note"),
}


def transaction(store: Store) -> None:
    with store.transaction():
        append(store, "e1")


def kept(store: Store) -> Checkpoint:
    found = store.checkpoints.get("counted")
    assert found is not None
    return found


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_another_process_locks_out_is_unavailable_until_it_ends(
    store: Store, outside: Outsider, name: str
) -> None:
    keep(store, COUNTED, ("a", 1, None))

    with outside.locking():
        with pytest.raises(DatabaseUnavailable, match="lock") as locked_out:
            WRITES[name](store)
        assert store.views.load(COUNTED, ["a"]).rows == {"a": ("a", 1, None)}  # reading goes on
        assert store.log.page(start=0) == []

    assert isinstance(locked_out.value, TransientError)
    assert locked_out.value.hint
    WRITES[name](store)


def test_a_table_that_is_dropped_under_an_open_store_needs_a_person(
    store: Store, outside: Outsider
) -> None:
    outside.sql("DROP TABLE quarantine")

    with pytest.raises(InterventionRequired) as refused:
        store.quarantine.entries()

    assert "`projector db setup`" in refused.value.hint


@pytest.mark.needs("file")
@pytest.mark.parametrize("gone", [False, True], ids=["replaced", "deleted"])
def test_a_database_that_is_another_one_than_at_first_is_noticed(
    database: Database, tmp_path: Path, gone: bool
) -> None:
    assert database.file is not None
    check = database.watch_identity()
    with database.open(writable=True) as store:
        asked: list[Callable[[], object]] = [
            check,
            store.check_identity,
            store.changed,
            store.log.newest,
        ]
        for ask in asked:
            ask()
        if gone:
            database.file.unlink()
        else:
            storage.database(str(tmp_path / "new.db")).setup()
            (tmp_path / "new.db").replace(database.file)

        for ask in asked:
            with pytest.raises(TransientError, match="replaced or deleted"):
                ask()


@pytest.mark.needs("file")
@pytest.mark.parametrize("path", [".", "notes.txt", "no/such/folder/local.db"])
def test_what_is_no_database_needs_a_person(tmp_path: Path, path: str) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at" * 100)
    database = storage.database(str(tmp_path / path))

    for work in (database.setup, lambda: database.open().__enter__()):
        with pytest.raises(InterventionRequired):
            work()
