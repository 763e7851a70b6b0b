"""The daemon's way through a real database: batches, checkpoint, quarantine, races, repairs."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support import Database, daemon, event, fill, logs, oracle
from support.extensions import PerProject
from support.folding import catch_up, opened, refolded, run_once, target

from session_projector.projections import BUILT_IN
from session_projector.projections.event import Event, Other
from session_projector.projections.projection import Projection, Table
from session_projector.worker.daemon.batch_size import FIRST_EVENTS
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.outage import Outage
from session_projector.worker.daemon.page import Page
from session_projector.worker.daemon.tail import BATCH_BYTES, Tail
from session_projector.worker.errors import (
    CheckFailed,
    DatabaseUnavailable,
    InterventionRequired,
    LostRace,
    TransientError,
)
from session_projector.worker.operations import health
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Thread
from session_projector.worker.storage.sqlite.schema import migrate as schema
from session_projector.worker.telemetry.state import DaemonState

SESSIONS, INDEX = BUILT_IN


class LockedStore:
    """A store that is locked for some of the reads of new events."""

    def __init__(self, store: Any, locked: Iterator[bool]) -> None:
        self._store = store
        self._locked = locked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, **asked: Any) -> Any:
        if next(self._locked):
            raise DatabaseUnavailable("locked", "try again")
        return self._store.read(**asked)


class LockedThread:
    """The thread of such a store."""

    def __init__(self, thread: Thread, locked: Iterator[bool]) -> None:
        self._thread = thread
        self._locked = locked

    async def changed(self) -> bool:
        return await self._thread.changed()

    async def run(self, work: Callable[[Any], Any]) -> Any:
        return await self._thread.run(lambda store: work(LockedStore(store, self._locked)))


@logs.examples(
    *(25,),
    on_server=6,
    log=logs.logs,
    sizes=logs.batchings,
    page_bytes=st.sampled_from([300, 8192]),
)
def test_a_database_caught_up_in_any_batches_equals_the_oracle(
    database: Database, log: list[Any], sizes: list[int], page_bytes: int
) -> None:
    database, limits = database.renewed(), Limits(page_bytes=page_bytes)
    catch_up(database, limits=limits)
    for batch in logs.batches(log, sizes):
        for key, data, created_at in batch:
            database.insert(key, data, created_at=created_at)
        catch_up(database, limits=limits)

    expected = oracle.fold(database.log())
    assert database.views() == expected.views
    assert database.index() == oracle.index(database.log())
    assert database.quarantine().keys() == expected.quarantine.keys()
    assert database.sql("SELECT DISTINCT skipped FROM checkpoint") == [(expected.skipped,)]
    assert database.everything() == refolded(database).everything()


def test_pages_of_any_size_give_the_same(database: Database) -> None:
    for number in range(40):
        (database.created if number < 8 else database.appended)(f"A-{number % 8}", "x" * 100)
    expected = refolded(database).everything()

    limits = Limits(page_events=7, page_bytes=500, view_bytes=600, page_keys=3)
    catch_up(database, limits=limits)

    assert database.everything() == expected


async def test_what_many_pages_change_is_written_once(database: Database) -> None:
    fill(database, sessions=20, events=300)
    state = DaemonState()
    async with target(database.url, Limits(page_bytes=5000)).open_thread() as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        await Tail(thread, members, state=state).run(anyio.Event())

    # On a server the first page may come while others write.
    assert sum(state.batch_events.counts) <= (1 if database.engine == "sqlite" else 2)
    assert state.batch_events.sum == 300
    assert database.views() == oracle.fold(database.log()).views
    assert database.index() == oracle.index(database.log())


async def test_a_log_that_is_replaced_between_two_pages_of_a_batch_is_folded_from_the_checkpoint(
    database: Database,
) -> None:
    fill(database, sessions=20, events=300)
    other = database.another()
    fill(other, sessions=10, events=300)

    class ReplacedBeforePage2(LockedThread):
        pages = 0

        async def run(self, work: Callable[[Any], Any]) -> Any:
            found = await self._thread.run(work)
            if isinstance(found, Page):
                self.pages += 1
                if self.pages == 1:
                    database.restore(other)
            return found

    async with target(database.url, Limits(page_bytes=5000)).open_thread() as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        with pytest.raises(LostRace):
            await Tail(ReplacedBeforePage2(thread, repeat(False)), members).run(anyio.Event())

    await run_once(database.url)
    assert database.log() == other.log()
    assert database.views() == oracle.fold(other.log()).views


@pytest.mark.sqlite  # no other engine keeps such an event
def test_a_bad_event_stops_nothing_and_is_recorded_as_it_stands(database: Database) -> None:
    database.created("A-1", "one")
    bad = database.insert(b"\xff\x00", b"\xc1", id=None)
    database.sql(
        "INSERT INTO event_log (id, key, data, created_at)"
        " VALUES (CAST(x'ff' AS TEXT), CAST(x'fe' AS TEXT), CAST(x'7bff' AS TEXT), 1)"
    )
    database.appended("A-1", "two")

    catch_up(database)

    assert database.contents("A-1") == ["one", "two"]
    assert database.sql(
        "SELECT q.projection, q.id IS e.id, q.key IS e.key, q.seq"
        " FROM quarantine AS q JOIN event_log AS e USING (seq)"
        " ORDER BY 1 DESC, 4"
    ) == [(name, 1, 1, seq) for name in ("sessions", "session_index") for seq in (bad, bad + 1)]


def test_rows_of_view_under_other_keys_are_never_touched(database: Database) -> None:
    others = [
        ("1", "project:A", b"x", "e", 1, 1),
        ("2", "project:A", b"y", "e", 1, 1),
        ("3", "session", b"z", "e", 1, 1),
        ("4", "session;", b"z", "e", 1, 1),
    ]
    for row in others:
        database.sql("INSERT INTO view VALUES (?, ?, ?, ?, ?, ?)", *row)
    database.created("A-1")

    catch_up(database)

    assert database.sql("SELECT * FROM view WHERE key NOT LIKE 'session:%' ORDER BY id") == others
    assert len(database.views()) == 1


@pytest.mark.parametrize("batch_bytes", [0, BATCH_BYTES])
async def test_a_read_of_the_next_page_that_fails_undoes_nothing_of_the_page_before(
    database: Database, batch_bytes: int
) -> None:
    """Whether it is beside the commit, or before it."""
    fill(database, sessions=20, events=200)
    locked = chain([False, True], repeat(False))
    state = DaemonState()
    async with opened(database.url) as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        outage, thread = Outage(state), LockedThread(thread, locked)
        tail = Tail(thread, members, outage, batch_bytes=batch_bytes)

        await tail.run(anyio.Event(), until=200)

    assert database.views() == oracle.fold(database.log()).views
    assert state.unavailable == 0
    assert state.batch_events.sum == 200


async def test_what_was_read_ahead_is_not_used_after_a_failure(database: Database) -> None:
    """The database may have been restored since, and the log be another one from there on."""
    fill(database, sessions=20, events=200)
    restored = database.another()
    restored.insert_log(database.log()[:FIRST_EVENTS])
    for number in range(10):
        restored.appended("F-1", f"another {number}")
    async with opened(restored.url) as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        await Tail(thread, members).run(anyio.Event(), until=FIRST_EVENTS)

    async with target(database.url, Limits(busy_timeout_s=0)).open_thread() as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        tail = Tail(thread, members, batch_bytes=0)  # each page is a batch
        assert await tail.iterate()
        assert database.position() == FIRST_EVENTS
        with database.locked(), pytest.raises(DatabaseUnavailable):
            await tail.iterate()
        database.restore(restored)
        await tail.run(anyio.Event())

    assert database.position() == FIRST_EVENTS + 10
    assert database.log() == restored.log()
    assert database.views() == oracle.fold(database.log()).views


class Notes(Projection):
    """How many events of a type of its own a session has."""

    name = "notes"
    version = 1
    events = frozenset({"note_added"})
    table = Table(name="notes", columns={"session": "TEXT", "notes": "INTEGER"}, key="session")

    def key_of(self, event: Event) -> str:
        assert isinstance(event.body, Other)
        return event.session_id

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), view[1] + 1 if view else 1)


async def test_what_was_read_ahead_is_decoded_for_one_that_joins_meanwhile(
    database: Database,
) -> None:
    fill(database, sessions=20, events=FIRST_EVENTS)
    for _ in range(10):
        database.insert("F-1", event("note_added", {}))
    async with opened(database.url) as thread, opened(database.url) as own:
        members = [await load(thread, projection) for projection in BUILT_IN]
        tail = Tail(thread, members, batch_bytes=0)  # each page is a batch
        assert await tail.iterate()
        assert database.position() == FIRST_EVENTS
        joining = Tail(own, [await load(own, Notes())])
        await joining.run(anyio.Event(), until=FIRST_EVENTS)
        tail.members += joining.members

        await tail.run(anyio.Event())

    assert database.sql("SELECT * FROM notes") == [("F-1", 10)]
    assert database.sql("SELECT DISTINCT position FROM checkpoint") == [(FIRST_EVENTS + 10,)]
    assert database.quarantine() == {}


async def test_a_batch_that_touches_more_views_than_it_may_load_ends_before_the_first_of_these(
    database: Database,
) -> None:
    projections = (PerProject(), *BUILT_IN)
    for number in range(20):
        database.created(f"A-{number}", project=f"P{number % 3}")
    await run_once(database.url, projections)
    for number in range(20):
        database.created(f"B-{number}", project=f"P{number % 3}")
        database.appended(f"A-{number % 7}", f"x{number}")

    async with target(database.url, Limits(view_bytes=1)).open_thread() as thread:
        members = [await load(thread, projection) for projection in projections]
        with capture_logs() as said:
            await Tail(thread, members).run(anyio.Event(), until=60)

    assert sum(line.get("batches", 1) for line in said) > 10
    assert {line["event"] for line in said} == {"batch_committed"}  # no view was found to be odd
    assert database.sql("SELECT * FROM per_project ORDER BY project") == [
        ("P0", 14),
        ("P1", 14),
        ("P2", 12),
    ]
    assert database.views() == oracle.fold(database.log()).views
    assert database.index() == oracle.index(database.log())


async def test_only_the_first_batch_after_a_quiet_time_counts_as_a_wake_up(
    database: Database,
) -> None:
    stop = anyio.Event()

    def heard(state: DaemonState) -> None:
        position = state.progress["sessions"].position
        if position == 0 and not database.log():
            fill(database, sessions=20, events=200)
        if position == 200:
            stop.set()
            wakeup.close()

    state = DaemonState(heard)
    async with opened(database.url) as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        with closing(target(database.url).wakeup()) as wakeup:
            await Tail(thread, members, Outage(state), wakeup=wakeup, batch_bytes=0).run(stop)

    assert sum(state.batch_events.counts) > 1
    assert sum(state.wakeup_s.counts) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE view SET data = x'80' WHERE key = 'session:A-1'",
        "UPDATE view SET data = 'text' WHERE key = 'session:A-1'",
        "UPDATE view SET updated_at = 1 WHERE key = 'session:A-1'",
        "UPDATE view SET id = 'other' WHERE key = 'session:A-1'",
        pytest.param(
            "UPDATE view SET data = CAST(replace(hex(data), '', '') AS BLOB)",
            marks=pytest.mark.sqlite,
        ),
        "UPDATE view SET data = x'86A26964A3412D31A770726F6A656374A150A86D65737361676573910"
        "5A6737461747573A57265616479A9637265617465644174CF0000018BCFE56800A9757064617465644174CF"
        "0000018BCFE56800'",
        "DELETE FROM view WHERE key = 'session:A-1'",
    ],
)
def test_a_damaged_or_missing_row_is_folded_from_the_log_on_the_spot(
    database: Database, damage: str
) -> None:
    database.created("A-1", "one")
    database.insert("A-1", event("session_append", {"messages": [{"content": "bare"}]}))
    catch_up(database)

    database.sql(damage)
    database.appended("A-1", "two")
    database.created("A-1", "again")
    catch_up(database)

    assert database.contents("A-1") == ["one", "bare", "two"]
    assert database.everything() == refolded(database).everything()


def test_a_damaged_row_is_mended_also_by_an_event_that_does_not_fold(database: Database) -> None:
    for session_id in ("A-1", "A-2"):
        database.created(session_id, "one")
    catch_up(database)
    database.sql("UPDATE view SET data = x'80' WHERE key = 'session:A-1'")
    database.sql("DELETE FROM view WHERE key = 'session:A-2'")
    database.sql("DELETE FROM session_index WHERE session_id = 'A-2'")
    database.sql("INSERT INTO view VALUES ('g', 'session:G', x'80', 'e', 1, 1)")

    for session_id in ("A-1", "A-2"):
        database.created(session_id, "again")
    database.appended("G", "never created")
    catch_up(database)

    assert database.everything() == refolded(database).everything()


def test_a_database_restored_to_an_earlier_checkpoint_is_noticed_while_idle(
    database: Database,
) -> None:
    database.created("A-1", "one")
    catch_up(database)
    database.appended("A-1", "two")
    backup = database.copied()  # the checkpoint is one event behind
    with daemon(database.url) as running:
        running.wait_until_at(2)
        database.restore(backup)
        running.wait_for("checkpoint_moved_by_another")
        running.wait_until_at(2)

    assert database.contents("A-1") == ["one", "two"]


def test_a_database_restored_with_other_events_is_folded_on_from_its_own_checkpoint(
    database: Database,
) -> None:
    database.created("A-1", "one")
    catch_up(database)
    one = database.copied()
    database.appended("A-1", "another two")
    database.appended("A-1", "three")
    backup = database.copied()  # the checkpoint is two events behind
    database.restore(one)
    database.appended("A-1", "two")
    with daemon(database.url) as running:
        running.wait_until_at(2)
        database.restore(backup)
        running.wait_for("checkpoint_moved_by_another")
        running.wait_until_at(3)

    assert database.contents("A-1") == ["one", "another two", "three"]


@pytest.mark.sqlite
def test_views_are_found_through_our_own_index(database: Database) -> None:
    """A Kanbatte database may lack its index on `key`; without one each look-up reads every row."""
    database.sql("DROP INDEX idx_view_key")
    database.created("A-1")
    statements: list[str] = []

    async def fold() -> None:
        async with opened(database.url) as thread:
            await thread.run(
                lambda store: store.connection.raw.set_trace_callback(statements.append)
            )
            await Tail(thread, [await load(thread, SESSIONS)]).run(anyio.Event(), until=1)

    anyio.run(fold)
    on_view = [sql for sql in statements if " FROM view " in sql]
    plans = [database.sql(f"EXPLAIN QUERY PLAN {sql}")[0][3] for sql in on_view]
    assert plans
    assert all("INDEX idx_view_session_key" in plan for plan in plans), plans


def test_a_rewound_log_is_refused_with_the_command_that_mends_it(database: Database) -> None:
    database.created("A-1", "one")
    rewound = database.copied()
    database.appended("A-1", "two")
    catch_up(database)
    checkpoint = database.sql("SELECT * FROM checkpoint")
    for row in checkpoint:
        rewound.sql("INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)

    with pytest.raises(
        InterventionRequired, match="checkpoint sessions@2 does not match"
    ) as refused:
        catch_up(rewound)
    assert "projector replay" in refused.value.hint
    with pytest.raises(CheckFailed, match="@2 does not match") as unwell:
        health.check(storage.database(rewound.url))
    assert "projector replay" in unwell.value.hint

    rewound.insert("A-1", event("session_append", {"messages": [{}]}), id="another second event")
    with pytest.raises(InterventionRequired, match="checkpoint sessions@2 does not match"):
        catch_up(rewound)


def test_a_file_restored_in_place_is_noticed_and_gone_on_from(database: Database) -> None:
    database.created("A-1", "one")
    catch_up(database)
    backup = database.copied()
    with daemon(database.url) as running:
        running.wait_for("started")
        database.appended("A-1", "lost")
        running.wait_until_at(2)
        database.restore(backup)
        database.insert("A-1", event("session_append", {"messages": [{"content": "kept"}]}))
        running.wait_for("checkpoint_moved_by_another")
        running.wait_until_at(2)

    assert database.contents("A-1") == ["one", "kept"]
    assert database.everything() == refolded(database).everything()


@pytest.mark.sqlite
async def test_a_file_replaced_under_the_daemon_ends_it(database: Database, tmp_path: Path) -> None:
    schema.setup(tmp_path / "new.db")
    async with opened(database.url) as thread:
        (tmp_path / "new.db").replace(database.path)

        with pytest.raises(TransientError, match="replaced or deleted"):
            await Tail(thread, [await load(thread, SESSIONS)]).run(anyio.Event())


def test_views_of_another_program_are_replaced_never_folded_onto(database: Database) -> None:
    database.created("A-1", "one")
    for session_id in ("A-1", "ghost"):
        database.sql(
            "INSERT INTO view VALUES (?, ?, x'80', 'e1', 1, 1)", session_id, f"session:{session_id}"
        )

    catch_up(database)

    assert database.views().keys() == {"session:A-1"}
    assert database.everything() == refolded(database).everything()


@logs.examples(25, on_server=6, log=logs.logs)
def test_the_first_walk_over_an_adopted_log_equals_a_tail_over_it(
    database: Database, log: list[Any]
) -> None:
    database = database.renewed()
    for key, data, created_at in log:
        database.insert(key, data, created_at=created_at)
    database.sql("INSERT INTO view VALUES ('ghost', 'session:ghost', x'80', 'e', 1, 1)")

    catch_up(database)

    assert database.everything() == refolded(database).everything()
    assert database.views() == oracle.fold(database.log()).views
