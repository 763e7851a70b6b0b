"""`projector copy`: a whole log from one database to another, and the same views there."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import psycopg
import pytest
from hypothesis import given, settings
from support import INSERT, PROJECTOR, T0, WRITER, Database, daemon, event, fill, logs, projector
from support.extensions import PROGRAM, PerProject
from support.folding import catch_up, examine
from support.laws import Counted
from support.postgres import Server

from session_projector.projections import BUILT_IN
from session_projector.projections.event import MAX_EVENT_BYTES, MAX_NAME_BYTES
from session_projector.projections.projection import Projection
from session_projector.worker.daemon.supervisor import run_once
from session_projector.worker.errors import InterventionRequired
from session_projector.worker.operations import copy as copying
from session_projector.worker.operations import quarantine
from session_projector.worker.replay import side_by_side
from session_projector.worker.replay.difference import Difference
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Store

pytestmark = pytest.mark.once  # both engines are in each of them
EVENTS = 13_000
"""More than three pages."""
SMALL = Limits(page_events=4, page_bytes=1000, page_keys=2, view_bytes=5000)
VIEW = "SELECT id, key, data, last_offset_id, created_at, updated_at FROM view ORDER BY id"


@pytest.fixture
def server(postgres: Server) -> Iterator[str]:
    """The URL of an empty database on a server."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def source(database: Database) -> Database:
    """Sessions under both spellings, JSON and MessagePack, gaps, and events that do not fold."""
    for number in range(5):
        database.created(f"A-{number}", "one", "grün", project="P")
        database.appended(f"A-{number}", "two")
    database.insert("A-1", json.dumps(event("session_append", {"messages": [{"n": "a\0b"}]})))
    database.insert("A-2", b"\xc1")
    database.insert("A-2", "{bad", created_at=None)
    database.insert(None, None, id=None, created_at=None)
    database.sql("INSERT INTO event_log VALUES (5000, 'far', 'A-3', ?, 5)", '{"type": "other"}')
    database.appended("A-3", "three")
    catch_up(database)
    with stores(database.path) as (store,):
        quarantine.dismiss(store, 12, "known \1 ü")
    return database


def typed(database: Database) -> list[tuple[Any, ...]]:
    """The log with the type of each value."""
    columns = ("seq", "id", "key", "data", "created_at")
    types = ", ".join(f"typeof({column})" for column in columns)
    return database.sql(f"SELECT {', '.join(columns)}, {types} FROM event_log ORDER BY seq")


def notes(database: Database) -> list[tuple[Any, ...]]:
    return database.sql("SELECT * FROM dismissed ORDER BY seq")


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def there(url: str) -> int:
    """How many events a database on the server has, 0 where there is no log yet."""
    if sql(url, "SELECT to_regclass('event_log') IS NULL") == [(True,)]:
        return 0
    return int(sql(url, "SELECT count(*) FROM event_log")[0][0])


def summary(*arguments: str | Path, check: int = 0) -> dict[str, Any]:
    """The last line of what a copy says in JSON."""
    done = projector("copy", *arguments, "--json", check=check)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def stores(*names: str | Path, limits: Limits = SMALL) -> Iterator[list[Store]]:
    with ExitStack() as stack:
        databases = [storage.database(str(name), limits) for name in names]
        yield [stack.enter_context(one.open(writable=True)) for one in databases]


def copied(one: str | Path, other: str | Path, limits: Limits = SMALL) -> copying.Copied:
    """Copy as the command does it, and find all views equal."""
    target = storage.database(str(other), limits)
    copying.prepare(storage.database(str(one)), target)
    with stores(one, other, limits=limits) as (reading, writing):
        done = copying.copy(reading, writing, lambda *_: None)
        anyio.run(run_once, target, BUILT_IN)
        assert differences(reading, writing, done.position) == []
    return done


def differences(
    source: Store, target: Store, position: int, projections: Sequence[Projection] = BUILT_IN
) -> list[Difference]:
    async def compare() -> list[Difference]:
        found: list[Difference] = []
        for projection in projections:
            async for step in side_by_side.compare(source, target, projection, position):
                found += step.differences
        return found

    return anyio.run(compare)


def test_a_database_is_copied_over_and_back_with_equal_bytes(
    source: Database, server: str, tmp_path: Path
) -> None:
    back = Database(tmp_path / "back.db")
    before = source.log(), source.everything(), notes(source)

    over = projector("copy", source.path, server)
    projector("copy", server, back.path)

    assert "copied 16 events, with notes of operators: 1" in over.stdout
    assert "sessions: 0 of 5 views differ" in over.stdout
    assert (source.log(), source.everything(), notes(source)) == before
    assert typed(back) == typed(source)
    assert back.everything() == source.everything()
    assert notes(back) == notes(source)
    assert sql(server, VIEW) == source.sql(VIEW)
    assert sql(server, "SELECT seq FROM event_log WHERE data IS NULL AND packed IS NULL") == [(14,)]
    projector("verify", "-d", server)
    projector("verify", "-d", back.path)
    assert [one.check for one in examine(back.path) if one.level == "fail"] == []


def test_the_next_event_follows_those_that_were_copied(
    source: Database, server: str, tmp_path: Path
) -> None:
    back = Database(tmp_path / "back.db")
    copied(source.path, server)
    (row,) = sql(
        server, "INSERT INTO event_log (id, key, data) VALUES ('n', 'k', '') RETURNING seq"
    )

    copied(server, back.path)
    back.insert("A-1", b"\x80", id="next")

    assert row == (5002,)
    assert [seq for seq, *_ in back.log()][-2:] == [5002, 5003]


@given(log=logs.logs)
@settings(max_examples=8)
def test_any_log_comes_back_as_it_was(log: list[tuple[Any, Any, int]], postgres: Server) -> None:
    with postgres.database(template=postgres.template) as url, ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        first, back = Database(folder / "first.db"), Database(folder / "back.db")
        storage.database(str(first.path)).setup()
        for row in logs.rows(log):
            first.sql("INSERT INTO event_log VALUES (?, ?, ?, ?, ?)", *row)
        catch_up(first)
        with stores(first.path, url) as (reading, writing):
            if any(map(writing.log.unfit or str, reading.log.page(start=0, events=99))):
                return
        copied(first.path, url)
        copied(url, back.path)
        assert typed(back) == typed(first)
        assert back.everything() == first.everything()


# Again


def test_what_was_written_since_is_copied_by_the_next_run(source: Database, server: str) -> None:
    first = copied(source.path, server)
    source.appended("A-0", "later")
    catch_up(source)
    second, third = copied(source.path, server), summary(source.path, server)

    assert (first.events, second.events, third["events"]) == (16, 1, 0)
    assert second.position == third["position"] == 5002
    assert (third["left"], third["held_back_by"]) == (0, [])
    assert sql(server, VIEW) == source.sql(VIEW)


def test_a_copy_that_was_killed_is_continued(database: Database, server: str) -> None:
    fill(database, sessions=50, events=EVENTS)
    arguments = [*PROJECTOR, "copy", str(database.path), server]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while not there(server):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    kept = there(server)
    assert 0 < kept < EVENTS

    done = summary(database.path, server)

    assert done["events"] == EVENTS - kept
    assert there(server) == EVENTS


def test_two_copies_at_once_make_one(database: Database, server: str) -> None:
    fill(database, sessions=20, events=EVENTS)
    storage.database(server).setup()
    command = [*PROJECTOR, "copy", str(database.path), server, "--json"]
    with ExitStack() as stack:
        both = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        said = [process.communicate()[0] for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sum(json.loads(text.splitlines()[-1])["events"] for text in said) == EVENTS
    assert sql(server, "SELECT count(*), max(seq) FROM event_log") == [(EVENTS, EVENTS)]


def test_a_copy_beside_writers_and_the_rest_after_them(database: Database, server: str) -> None:
    writer = [sys.executable, "-c", WRITER, str(database.path)]
    with ExitStack() as stack:
        writers = [stack.enter_context(subprocess.Popen([*writer, str(n)])) for n in range(2)]
        while len(database.log()) < 20:
            time.sleep(0.005)
        first = copied(database.path, server)
        assert [one.wait() for one in writers] == [0, 0]

    rest = copied(database.path, server)

    assert first.events + rest.events == 600 == there(server)
    catch_up(database)
    assert sql(server, VIEW) == database.sql(VIEW)


def test_a_copy_beside_a_daemon_of_the_target(source: Database, server: str) -> None:
    storage.database(server).setup()
    with daemon(server) as running:
        running.wait_for("started")

        done = summary(source.path, server)

    assert done["events"] == 16
    assert sql(server, VIEW) == source.sql(VIEW)


def test_what_a_transaction_holds_back_is_left_and_who_does_it_is_told(
    server: str, tmp_path: Path
) -> None:
    storage.database(server).setup()
    insert = "INSERT INTO event_log (id, key, data) VALUES ('{}', 'A-0', '{{}}')"
    sql(server, insert.format("first"))
    with psycopg.connect(server, application_name="forgotten") as holder:
        holder.execute(insert.format("held").encode())
        sql(server, insert.format("after"))

        done = projector("copy", server, tmp_path / "back.db")

    assert "copied 1 event" in done.stdout
    assert "1 event came since" in done.stdout
    assert "forgotten" in done.stdout
    assert "pg_terminate_backend" in done.stdout
    assert summary(server, tmp_path / "back.db")["events"] == 2


# What is refused


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("INSERT INTO event_log VALUES (1, 'e1', 'A-0', 'other', 5)", "event 1 is not the same"),
        ("INSERT INTO event_log VALUES (1, 'x', 'A-0', '', 5)", "event 1 is not the same"),
        ("INSERT INTO event_log VALUES (9000, 'x', 'A-0', '', 5)", "it has event 9000"),
        ("INSERT INTO event_log VALUES (4000, 'x', 'A-0', '', 5)", "it has 1 event up to 4000"),
    ],
)
def test_a_target_with_other_events_is_left_as_it_is(
    source: Database, tmp_path: Path, statement: str, why: str
) -> None:
    other = Database(tmp_path / "other.db")
    projector("db", "setup", "-d", other.path)
    other.sql(statement)
    before = other.log(), other.everything()

    done = projector("copy", source.path, other.path, check=4)

    assert f"{other.path} has another log than {source.path}: {why}" in done.stderr
    assert (other.log(), other.everything()) == before


def test_a_target_on_a_server_with_other_events_is_left_as_it_is(
    source: Database, server: str
) -> None:
    storage.database(server).setup()
    sql(server, "INSERT INTO event_log (id, key, data) VALUES ('x', 'A-0', '{}')")

    done = projector("copy", source.path, server, check=4)

    assert "event 1 is not the same in both" in done.stderr
    assert there(server) == 1


def test_an_event_of_a_writer_between_two_pages_is_noticed(
    source: Database, tmp_path: Path
) -> None:
    other = Database(tmp_path / "other.db")
    storage.database(str(other.path)).setup()

    def meddle(*told: Any) -> None:
        if told[1] == 5:
            other.insert("A-0", b"\x80", id="theirs")

    with (
        stores(source.path, other.path) as (reading, writing),
        pytest.raises(InterventionRequired, match="another log"),
    ):
        copying.copy(reading, writing, meddle)

    assert [row[1] for row in other.log()][-1] == "theirs"


ODD = {
    "its id has a NUL": ("a\0b", "A-0", b"\x80", T0),
    "its key is a text that is not UTF-8": ("x", b"A\xff", b"\x80", T0),
    "its data is a number": ("x", "A-0", 5, T0),
    "its created_at is a text, not an integer": ("x", "A-0", b"\x80", "soon"),
}


@pytest.mark.parametrize("why", ODD)
def test_what_a_server_cannot_hold_is_named_before_anything_is_written(
    source: Database, server: str, tmp_path: Path, why: str
) -> None:
    back = Database(tmp_path / "back.db")
    source.sql(INSERT.replace("(?, ?,", "(?, CAST(? AS TEXT),"), *ODD[why])

    done = projector("copy", source.path, server, check=4)
    copied(source.path, back.path)

    assert "cannot take event 5002 (id " in done.stderr
    assert why in done.stderr
    assert "docs/postgresql.md" in done.stderr
    assert there(server) == 0
    with stores(source.path, back.path) as (reading, writing):
        assert [*reading.log.page(start=5002)] == [*writing.log.page(start=5002)]


def test_databases_that_are_no_two_are_refused(database: Database, tmp_path: Path) -> None:
    same = projector("copy", database.path, f"{tmp_path}/./local.db", check=2)
    absent = projector("copy", tmp_path / "absent.db", database.path, check=4)

    assert "is named twice" in same.stderr
    assert f"{tmp_path}/absent.db has no log to copy" in absent.stderr


def test_a_hint_about_the_target_names_it(database: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    projector("db", "setup", "-d", other.path)
    other.sql("DROP TABLE quarantine")

    done = projector("copy", database.path, other.path, check=4)

    assert f"`projector db setup -d {other.path}`" in done.stderr


# The comparison


def test_views_that_differ_are_named(source: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    copied(source.path, other.path)
    other.sql("DELETE FROM view WHERE key = 'session:A-1'")
    other.sql("UPDATE view SET created_at = 7 WHERE key = 'session:A-2'")
    other.sql("INSERT INTO view VALUES ('G', 'session:G', x'80', 'e', 1, 1)")
    other.sql("UPDATE quarantine SET reason = 'x' WHERE seq = 12 AND projection = 'sessions'")

    done = projector("copy", source.path, other.path, check=1)

    for line in (
        "sessions: missing view session:A-1",
        "sessions: damaged view session:A-2",
        "    created_at: found 7, expected 1700000000000",
        "sessions: ghost view session:G",
        "sessions: stale quarantine 12",
        "session_index: 0 of 5 views differ",
    ):
        assert line in done.stdout
    for path in (source.path, other.path):
        assert f"`projector verify -d {path}`" in done.stderr


def test_views_are_compared_as_of_one_position(database: Database, tmp_path: Path) -> None:
    copies = [Database(tmp_path / f"{n}.db") for n in range(2)]
    for number in range(9):
        database.created(f"A-{number % 7}", "one")
        database.insert(f"B-{number}", b"\xc1")
    for other in copies:
        copied(database.path, other.path)
    ahead, never = copies
    position = len(database.log())
    for projection in ("view", "quarantine", "checkpoint", "session_index"):
        never.sql(f"DELETE FROM {projection}")
    for number in range(4):
        more = event("session_append", {"messages": [{"n": number}]})
        ahead.insert(f"A-{number}", more, id=f"more{number}")
        ahead.insert(f"C-{number}", event("session_created", {"project": "P"}), id=f"c{number}")
    catch_up(ahead)
    catch_up(database)
    database.insert("A-1", event("session_append", {"messages": [{"n": 1}]}), id="not folded")

    with stores(database.path, ahead.path, never.path) as every:
        for one in every:
            for other in every:
                assert differences(one, other, position) == []
    database.sql("UPDATE view SET data = x'80' WHERE key = 'session:A-6'")
    with stores(database.path, ahead.path) as (one, other):
        (found,) = differences(one, other, position)
        assert (found.key, found.kind) == ("session:A-6", "stale")


def test_views_of_other_projections_are_compared_too(database: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    projections = [PerProject(), Counted()]
    for number in range(9):
        database.created(f"A-{number}", project=f"P-{number % 4}")
    catch_up(database, projections[:1])
    option = ["--projection", "support.extensions:PerProject"]

    command = [*PROGRAM, "copy", str(database.path), str(other.path), *option]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "per_project: 0 of 4 views differ" in done.stdout
    catch_up(other, projections[1:])
    with stores(database.path, other.path) as (one, two):
        assert differences(one, two, 9, projections) == []
        database.created("A-9", project="P-1")
        catch_up(database, projections[:1])
        assert differences(one, two, 9, projections) == []
        other.sql("UPDATE per_project SET sessions = 7 WHERE project = 'P-1'")
        assert [found.key for found in differences(one, two, 9, projections)] == ["P-1"]


# The notes, and what is large


def test_a_later_note_stays(source: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    copied(source.path, other.path)
    for name, seq, note in ((other.path, 12, "mine"), (source.path, 13, "more")):
        with stores(name) as (store,):
            quarantine.dismiss(store, seq, note)

    assert copied(source.path, other.path).notes == 1
    assert [row[2] for row in notes(other)] == ["mine", "more"]


def test_an_event_that_is_too_large_to_fold_is_copied_whole(
    database: Database, server: str, tmp_path: Path
) -> None:
    back, half = Database(tmp_path / "back.db"), MAX_EVENT_BYTES // 2 + 5
    for number, data in enumerate(("ü" * half, "x" * 2 * half, b"x" * 2 * half)):
        database.insert("A-0", data, id=f"large{number}")
    database.insert("k" * (MAX_NAME_BYTES + 5), b"\x80", id="i" * (MAX_NAME_BYTES + 5))

    copied(database.path, server, Limits())
    copied(server, back.path, Limits())

    assert back.log() == database.log()
