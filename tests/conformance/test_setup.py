"""Making a database: its tables, once and for all."""

from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
from conformance.engines import Outsider
from support.laws import COUNTED, append, elsewhere, keep, said, tell

from session_projector.worker.errors import InterventionRequired
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Database, Store


def test_set_up_makes_a_database_that_was_not_there(url: str) -> None:
    database = storage.database(url)
    there_before = database.exists()

    done = database.setup()

    assert not there_before
    assert database.exists()
    assert done.applied
    assert database.migrations() == [(name, True) for name in done.applied]
    with database.open() as store:
        assert store.log.newest() == 0
        assert store.checkpoints.all().keys() <= {"sessions", "session_index"}


def test_set_up_a_second_time_does_nothing(database: Database, store: Store) -> None:
    append(store, "e1", "e2")
    keep(store, COUNTED, ("k", 1, None))
    stored = store.checkpoints.all()

    done = database.setup()

    assert (done.applied, done.backup, done.doubled_keys, done.restored) == ([], None, [], [])
    assert store.log.newest() == 2
    assert store.checkpoints.all() == stored
    assert store.views.row(COUNTED, "k") == ("k", 1, None)


def test_several_set_ups_at_once_apply_each_migration_once(url: str) -> None:
    with ExitStack() as stack:
        work = "say('ready'); input(); say(' '.join(database.setup().applied))"
        processes = [stack.enter_context(elsewhere(url, work)) for _ in range(3)]
        assert [said(process) for process in processes] == ["ready"] * 3
        for process in processes:
            tell(process)
        applied = [name for process in processes for name in said(process).split()]
        assert [process.wait() for process in processes] == [0, 0, 0]

    assert applied == [name for name, _ in storage.database(url).migrations()]


def test_the_name_of_a_database_opens_it_again(database: Database) -> None:
    with storage.database(database.name).open() as store:
        assert store.name == database.name
    assert database.engine[0] == database.engine[0].lower()
    sizes = database.sizes()
    assert sizes.file_bytes > 0
    assert database.wal_bytes() == sizes.wal_bytes


OPENED: dict[str, Callable[[Database], object]] = {
    "open": lambda database: database.open().__enter__(),
    "newest": lambda database: database.newest(busy_timeout_s=0.1),
    "leadership": lambda database: database.leadership().acquire(),
}


@pytest.mark.parametrize("name", OPENED)
def test_what_is_not_there_is_refused_with_the_command_that_makes_it(url: str, name: str) -> None:
    with pytest.raises(InterventionRequired) as refused:
        OPENED[name](storage.database(url))

    assert "`projector db setup`" in refused.value.hint
    assert not storage.database(url).exists()


def test_where_nothing_is_no_migration_is_applied(url: str) -> None:
    found = []
    with suppress(InterventionRequired):  # where there is no file that could be opened
        found = storage.database(url).migrations()

    assert not any(applied for _, applied in found)


async def test_a_daemon_is_refused_where_nothing_is_there(url: str) -> None:
    with pytest.raises(InterventionRequired) as refused:
        await storage.database(url).open_thread().__aenter__()

    assert "`projector db setup`" in refused.value.hint


async def test_a_schema_of_a_newer_program_is_refused_by_all(
    database: Database, outside: Outsider
) -> None:
    outside.insert("umzug_meta", name="9999-projector-later")

    refused: list[InterventionRequired] = []
    for work in (database.setup, lambda: database.open().__enter__()):
        with pytest.raises(InterventionRequired, match="newer schema") as error:
            work()
        refused.append(error.value)
    with pytest.raises(InterventionRequired, match="newer schema") as error:
        await database.open_thread().__aenter__()
    refused.append(error.value)

    assert all("upgrade projector" in error.hint for error in refused)
    assert database.migrations()[-1] == ("9999-projector-later", True)


@pytest.mark.needs("upgrades")
def test_a_schema_of_an_older_program_is_refused_and_upgraded_by_set_up(
    database: Database, outside: Outsider
) -> None:
    *_, (newest, _) = database.migrations()
    outside.sql(f"DELETE FROM umzug_meta WHERE name = '{newest}'")

    with pytest.raises(InterventionRequired, match=f"lacks {newest}") as refused:
        database.open().__enter__()

    assert "`projector db setup`" in refused.value.hint
    assert database.setup().applied == [newest]
    with database.open() as store:
        store.check_schema()


def test_a_layout_that_is_not_known_is_refused_and_left_as_it_is(
    database: Database, outside: Outsider
) -> None:
    outside.sql("ALTER TABLE event_log RENAME COLUMN key TO partition")

    for work in (database.setup, lambda: database.open().__enter__()):
        with pytest.raises(
            InterventionRequired, match=r"layout that is not known|lacks the columns"
        ):
            work()

    assert outside.sql("SELECT partition FROM event_log") == []


@pytest.mark.parametrize("table", ["view", "checkpoint", "quarantine", "dismissed"])
def test_a_table_that_is_gone_is_noticed_also_by_an_open_store_and_put_back_by_set_up(
    database: Database, store: Store, outside: Outsider, table: str
) -> None:
    outside.sql(f"DROP TABLE {table}")

    with pytest.raises(InterventionRequired, match=f"lacks {table}") as refused:
        store.check_schema()

    assert "`projector db setup`" in refused.value.hint
    assert table in database.setup().restored
    store.check_schema()


def test_indexes_match_in_a_sound_database_also_where_a_table_is_not_there_yet(
    store: Store,
) -> None:
    append(store, "e1", "e2")
    for _ in range(2):
        store.check_indexes([COUNTED.table, COUNTED.table])
        store.views.prepare(COUNTED)
