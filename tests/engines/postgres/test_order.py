"""The rule of gaps: never an event skipped, none twice, strictly in the order of positions."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import anyio
import psycopg
import pytest
from support.folding import opened as opened_thread
from support.postgres import Server

from session_projector.projections import BUILT_IN
from session_projector.projections.event import LogRow
from session_projector.worker.daemon.batch_size import FIRST_EVENTS
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.operations.status import status
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Store
from session_projector.worker.storage.postgres.connection import opened
from session_projector.worker.storage.postgres.settled import Settled
from session_projector.worker.storage.postgres.target import parse

INSERT = "INSERT INTO event_log (id, key, data, created_at) VALUES (%s, 'S-1', '{}', 1)"
WRITERS, EVENTS = 8, 12_500


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    with postgres.database(template=postgres.template) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with storage.database(url).open() as store:
        yield store


def connect(url: str, **options: Any) -> Any:
    return closing(psycopg.connect(url, **options))


def seqs(store: Store, *, start: int = 0) -> list[int]:
    return [row.seq for row in store.log.page(start=start) if row.seq != start]


def test_an_event_that_is_not_committed_holds_back_those_behind_it_and_no_others(
    url: str, store: Store
) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        quick.execute(INSERT, ("a",))
        slow.execute(INSERT, ("b",))
        quick.execute(INSERT, ("c",))
        held = seqs(store)
        newest = store.log.newest()
        changed = [store.changed(), store.changed()]
        slow.commit()

        assert held == [1]
        assert newest == 3
        assert changed == [True, True]  # nobody will tell that the gap is filled
        assert seqs(store) == [1, 2, 3]
        assert not store.changed()


async def test_a_batch_that_folds_on_up_to_a_gap_is_committed(url: str) -> None:
    """What follows it cannot be read, though it is there."""
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        for number in range(FIRST_EVENTS + 5):
            one = slow if number == FIRST_EVENTS else quick
            one.execute(INSERT, (f"e{number}",))
        async with opened_thread(url) as thread:
            members = [await load(thread, projection) for projection in BUILT_IN]
            await thread.run(lambda store: store.changed())  # what was committed until now
            tail = Tail(thread, members)
            await tail.run(anyio.Event())

    assert tail.position == FIRST_EVENTS


def test_a_position_that_was_given_up_is_passed(url: str, store: Store) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        slow.execute(INSERT, ("a",))
        quick.execute(INSERT, ("b",))
        assert seqs(store) == []
        slow.rollback()

        assert seqs(store) == [2]


def test_a_page_whose_last_event_is_the_one_behind_the_gap_is_read_again(url: str) -> None:
    """Between the read and the question who may fill the gap, the writer commits."""
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        slow.execute(INSERT, ("a",))
        quick.execute(INSERT, ("b",))
        whole = "SELECT seq, id, key, data, created_at FROM event_log ORDER BY seq"

        def then_commit() -> list[LogRow]:
            rows = [LogRow(*row) for row in quick.execute(whole)]
            slow.commit()
            return rows

        with opened(parse(url)) as connection:
            rows = Settled(connection).page(0, then_commit)

        assert [row.seq for row in rows] == [1, 2]


def test_writers_that_began_later_do_not_hold_back_what_is_there(url: str, store: Store) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow, connect(url) as later:
        slow.execute(INSERT, ("a",))
        quick.execute(INSERT, ("b",))
        assert seqs(store) == []
        later.execute(INSERT, ("c",))
        slow.rollback()

        assert seqs(store) == [2]


def test_a_transaction_that_is_prepared_meanwhile_still_holds_back(url: str, store: Store) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        slow.tpc_begin(slow.xid(1, "gid", "branch"))
        slow.execute(INSERT, ("a",))
        quick.execute(INSERT, ("b",))
        before = seqs(store)
        slow.tpc_prepare()
        prepared = seqs(store)
        slow.tpc_commit()

        assert (before, prepared) == ([], [])
        assert seqs(store) == [1, 2]


def test_a_subtransaction_that_is_rolled_back_leaves_a_gap_that_is_passed(
    url: str, store: Store
) -> None:
    with connect(url) as writer:
        writer.execute(INSERT, ("a",))
        writer.execute("SAVEPOINT s")
        writer.execute(INSERT, ("b",))
        writer.execute("ROLLBACK TO s")
        writer.execute(INSERT, ("c",))
        writer.commit()

    assert seqs(store) == [1, 3]


def test_transactions_elsewhere_stall_nothing(postgres: Server, url: str, store: Store) -> None:
    """In this database and in another, with a write open to a table of the same name."""
    with postgres.database() as foreign, connect(foreign) as there, connect(url) as here:
        there.execute("CREATE TABLE event_log (seq int)")
        there.execute("INSERT INTO event_log VALUES (1)")
        here.execute("CREATE SCHEMA other; CREATE TABLE other.event_log (seq int)")
        here.execute("INSERT INTO other.event_log VALUES (1)")
        with connect(url, autocommit=True) as quick, connect(url) as given_up:
            given_up.execute(INSERT, ("a",))
            given_up.rollback()
            quick.execute(INSERT, ("b",))

        assert seqs(store) == [2]
        assert store.log.settled() == 2


def test_who_holds_events_back_is_named(url: str, store: Store) -> None:
    name = "a forgetful agent"
    with connect(url, autocommit=True) as quick, connect(url, application_name=name) as slow:
        slow.execute(INSERT, ("a",))
        slow.execute("SELECT pg_sleep(1.1)")
        quick.execute(INSERT, ("b",))
        said = store.log.held_back_by()
        lags = [one.lag_seconds for one in status(storage.database(url)).projections]
        slow.rollback()

        assert len(said) == 1
        assert f"process {slow.info.backend_pid} " in said[0].who
        assert name in said[0].who
        assert f"pg_terminate_backend({slow.info.backend_pid})" in said[0].cure
        assert lags
        assert all(lag and lag > 1000 for lag in lags)  # the events are from 1970
        assert store.log.held_back_by() == []


def test_a_prepared_transaction_that_holds_events_back_is_named(url: str, store: Store) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as prepared:
        prepared.execute(INSERT, ("a",))
        prepared.execute("SELECT pg_sleep(1.1)")
        prepared.execute("PREPARE TRANSACTION 'forgotten'")
        prepared.commit()
        quick.execute(INSERT, ("b",))
        quick.execute("SELECT pg_sleep(1.1)")
        said = store.log.held_back_by()
        quick.execute("ROLLBACK PREPARED 'forgotten'")

        assert len(said) == 1
        assert "the prepared transaction forgotten of postgres" in said[0].who
        assert "ROLLBACK PREPARED" in said[0].cure


def test_who_holds_events_back_is_named_to_a_role_that_sees_little_of_others(url: str) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        pid = slow.info.backend_pid
        quick.execute("CREATE ROLE plain LOGIN; ALTER TABLE event_log OWNER TO plain")
        quick.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
        slow.execute(INSERT, ("a",))
        quick.execute(INSERT, ("b",))
        with storage.database(url.replace("postgres@", "plain@")).open() as store:
            said = store.log.held_back_by()
        slow.rollback()
        quick.execute("REASSIGN OWNED BY plain TO postgres; DROP OWNED BY plain; DROP ROLE plain")

    assert len(said) == 1
    assert f"(postgres, process {pid} of the server)" in said[0].who


def test_what_is_settled_ends_before_an_event_that_may_still_come(url: str, store: Store) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        quick.execute(INSERT, ("a",))
        slow.execute(INSERT, ("b",))
        quick.execute(INSERT, ("c",))

        assert store.log.settled() == 1
        slow.rollback()
        assert store.log.settled() == 3


def test_what_a_checkpoint_has_passed_is_given_within_a_snapshot_too(
    url: str, store: Store
) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        slow.execute(INSERT, ("a",))
        slow.rollback()
        quick.execute(INSERT, ("b",))
        quick.execute(
            "INSERT INTO checkpoint VALUES ('sessions', 1, 2, 0, '', 0, 'view', 'key', 'session:')"
        )
        slow.execute(INSERT, ("c",))
        quick.execute(INSERT, ("d",))
        with store.snapshot():
            seen = seqs(store)
        slow.commit()

        assert seen == [2]


def test_positions_that_are_drawn_again_after_a_restore_are_not_taken_for_settled(
    url: str, store: Store
) -> None:
    with connect(url, autocommit=True) as quick, connect(url) as slow:
        for number in range(4):
            slow.execute(INSERT, (f"lost-{number}",))
        slow.rollback()
        quick.execute(INSERT, ("a",))
        assert seqs(store) == [5]
        store.changed()
        quick.execute("ALTER TABLE event_log DISABLE TRIGGER event_log_append_only")
        quick.execute("DELETE FROM event_log")
        quick.execute("ALTER SEQUENCE event_log_seq_seq RESTART")
        assert store.changed()
        slow.execute(INSERT, ("b",))
        quick.execute(INSERT, ("c",))
        held = seqs(store)
        slow.commit()

        assert held == []
        assert seqs(store) == [1, 2]


def test_eight_writers_with_delays_and_rollbacks(url: str) -> None:
    """100,000 events: none is skipped, and none comes before one of a lower position."""
    writers = [threading.Thread(target=write, args=(url, number)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    found: list[int] = []
    with storage.database(url).open() as store:
        alive = True
        while alive or found[-1] < store.log.newest():
            alive = any(writer.is_alive() for writer in writers)
            found += seqs(store, start=found[-1] if found else 0)
        with connect(url) as connection:
            there = [seq for (seq,) in connection.execute("SELECT seq FROM event_log ORDER BY seq")]

    assert len(there) >= WRITERS * EVENTS
    assert found == there


def write(url: str, number: int) -> None:
    """Transactions of one event or of several, some of them late, rolled back, or prepared."""
    chance = random.Random(number)
    done = 0
    with connect(url) as connection:
        while done < EVENTS:
            many = chance.choice((1, 1, 1, 3, 40, 200))
            ids = [(f"{number}-{done + n}",) for n in range(many)]
            cursor = connection.cursor()
            cursor.executemany(INSERT, ids)
            how = chance.random()
            if how < 0.1:
                cursor.execute("SELECT pg_sleep(%s)", (chance.uniform(0.001, 0.05),))
            if how < 0.3:
                connection.rollback()
                continue
            if how < 0.4:
                cursor.execute("SAVEPOINT s")
                cursor.execute(INSERT, (f"{number}-{done}-lost",))
                cursor.execute("ROLLBACK TO s")
            if how < 0.42:
                cursor.execute(f"PREPARE TRANSACTION 'p{number}-{done}'")
                connection.commit()
                connection.autocommit = True
                with suppress(psycopg.Error):
                    connection.execute(f"COMMIT PREPARED 'p{number}-{done}'")
                connection.autocommit = False
            connection.commit()
            done += many
