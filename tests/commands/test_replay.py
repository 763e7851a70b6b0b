"""`projector verify` and `projector replay`: one walk, beside whatever else goes on."""

import json
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from hypothesis import strategies as st
from support import (
    INSERT,
    PROJECTOR,
    T0,
    Database,
    daemon,
    event,
    fill,
    logs,
    oracle,
    projector,
    started,
)
from support.extensions import CreatedPerDay
from support.folding import (
    Heard,
    catch_up,
    checkpoint,
    differences,
    opened,
    refolded,
    repair,
    target,
)
from support.folding import replay as replay_all

from session_projector.projections import BUILT_IN
from session_projector.worker.errors import LostRace
from session_projector.worker.replay import fix
from session_projector.worker.replay import rebuild as replay
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import REPLAY, Change

DAMAGES = {
    "view damaged": "UPDATE view SET data = x'80' WHERE key = 'session:A-1'",
    "view stale": "UPDATE view SET last_offset_id = 'e9' WHERE key = 'session:A-1'",
    "view missing": "DELETE FROM view WHERE key = 'session:A-1'",
    "view ghost": "INSERT INTO view VALUES ('x', 'session:G', x'80', 'e', 1, 1)",
    "quarantine missing": "DELETE FROM quarantine",
    "quarantine stale": "UPDATE quarantine SET reason = 'x'",
    "quarantine ghost": "INSERT INTO quarantine VALUES ('sessions', 1, 'e1', 'A-1', 'x')",
    "checkpoint stale": "UPDATE checkpoint SET skipped = 9 WHERE name = 'sessions'",
}


@pytest.fixture
def folded(database: Database) -> Database:
    """Three sessions, one of them under both spellings; an event skipped and one quarantined."""
    for number in range(3):
        database.created(f"A-{number}", "one")
    database.insert("A-1", event("session_append", {"messages": [{"content": "bare"}]}))
    database.insert("A-1", event("task_created", {}))
    database.insert("A-2", b"\xc1")
    catch_up(database)
    return database


@pytest.mark.parametrize(
    "kinds",
    [  # of those that damage the same row, each alone
        ("view damaged", "quarantine missing"),
        ("view stale", "quarantine stale"),
        ("view missing", "quarantine ghost"),
        ("view ghost", "checkpoint stale"),
    ],
)
def test_verify_names_what_differs_and_replay_fixes_it(
    folded: Database, kinds: tuple[str, str]
) -> None:
    for kind in kinds:
        folded.sql(DAMAGES[kind])

    found = projector("verify", "-d", folded.url, check=1)
    tried = projector("replay", "--dry-run", "-d", folded.url)
    projector("replay", "-d", folded.url)

    for kind in kinds:
        row, what = kind.split()
        assert f"sessions: {what} {row}" in found.stdout
        assert f"1 {kind}" in tried.stdout or f"2 {kind}" in tried.stdout
    assert f"`projector replay -d {folded.named}`" in found.stdout
    projector("verify", "-d", folded.url)
    assert folded.everything() == refolded(folded).everything()


def test_a_key_of_which_all_is_in_quarantine_is_a_view_only_where_it_has_a_row(
    folded: Database,
) -> None:
    folded.insert("Q-1", event("session_append", {"messages": [{"content": "never created"}]}))
    catch_up(folded)

    lines = projector("verify", "--json", "-d", folded.url).stdout.splitlines()
    folded.sql("INSERT INTO view VALUES ('x', 'session:Q-1', x'80', 'e', 1, 1)")
    found = projector("verify", "-d", folded.url, check=1).stdout

    assert [json.loads(line)["views"] for line in lines] == [3, 3]
    assert "sessions: 1 of 4 views differ (1 view ghost)" in found


def test_a_difference_names_the_field_and_the_message(folded: Database) -> None:
    view = folded.view("A-1")
    view["status"] = "done"
    view["messages"][1]["content"] = "rewritten"
    folded.sql("UPDATE view SET data = ? WHERE key = 'session:A-1'", oracle.msgpack.packb(view))

    lines = projector("verify", "--json", "--session", "A-1", "-d", folded.url, check=1).stdout
    text = projector("verify", "--session", "A-1", "-d", folded.url, check=1).stdout

    assert 'messages 2.content: found "rewritten", expected "bare"\n' in text
    assert 'status: found "done", expected "ready"\n' in text
    difference, summary, index = map(json.loads, lines.splitlines())
    assert difference["kind"] == "stale"
    assert difference["key"] == "session:A-1"
    assert {"field": "status", "stands": "done", "log": "ready"} in difference["fields"]
    assert difference["fields"][0] == {
        "field": "messages 2.content",
        "stands": "rewritten",
        "log": "bare",
    }
    assert summary["differences"] == {"view stale": 1}
    assert index["differences"] == {}


@logs.examples(
    14,
    on_server=4,
    log=logs.logs,
    page=st.integers(1, 7),
    damage=st.sampled_from([*DAMAGES.values()]),
)
def test_replay_of_any_log_in_pages_of_any_size_gives_what_a_fresh_database_holds(
    database: Database, log: list[Any], page: int, damage: str
) -> None:
    database = database.renewed()
    for key, data, created_at in log:
        database.insert(key, data, created_at=created_at)
    catch_up(database)
    expected = database.everything()
    with pytest.MonkeyPatch.context() as patch:
        limits = Limits(
            page_events=page, range_events=2 * page + 1, page_keys=page, view_bytes=100 * page
        )
        patch.setattr(fix, "CHUNK_CHANGES", page)
        assert differences(database, limits=limits) == {}
        try:
            database.sql(damage)
        except database.error:
            return  # there is such a row already

        repair(database, limits=limits)
        assert differences(database, limits=limits) == {}

    assert database.everything() == expected
    assert expected == refolded(database).everything()
    assert database.views() == oracle.fold(database.log()).views


def test_views_gathered_over_sessions_are_verified_and_repaired(database: Database) -> None:
    projections = (CreatedPerDay(),)
    for number in range(30):
        database.created(f"A-{number}", project=f"P{number % 3}")
    database.insert("A-1", b"\xc1")
    database.insert("A-1", event("task_created", {}))
    limits = Limits(page_events=4)
    repair(database, projections, limits)
    table = CreatedPerDay.table
    made = database.sql(f"SELECT * FROM {table.name} ORDER BY 1")
    key = made[0][[*table.columns].index(table.key)]
    database.sql(f"DELETE FROM {table.name} WHERE {table.key} = ?", key)
    database.sql(f"UPDATE {table.name} SET {table.key} = 'x' WHERE {table.key} LIKE 'P1%'")

    assert differences(database, projections, limits) == {"view missing": 2, "view ghost": 1}
    repair(database, projections, limits)

    assert differences(database, projections) == {}
    assert database.sql(f"SELECT * FROM {table.name} ORDER BY 1") == made


def test_of_several_that_cannot_be_compared_the_others_are_in_the_log(folded: Database) -> None:
    folded.sql("UPDATE checkpoint SET version = 99")

    said = projector("verify", "-d", folded.url, check=4).stderr

    assert "projector: the views of sessions were made by version 99" in said
    (left_out,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert left_out["event"] == "projection_left_out"
    assert "the views of session_index were made by version 99" in left_out["why"]


def test_where_nobody_else_writes_a_replay_commits_a_hundred_rows_at_a_time(
    database: Database,
) -> None:
    fill(database, sessions=250, events=250)
    catch_up(database)
    commits = "SELECT generation FROM checkpoint WHERE name = 'sessions'"
    ((before,),) = database.sql(commits)
    database.sql("UPDATE view SET data = x'80'")

    assert repair(database) == {"view damaged": 250}
    ((after,),) = database.sql(commits)
    assert 3 <= (after - before) / REPLAY < 6  # also where a page ends, whatever its size


def test_unchanged_rows_are_not_written(folded: Database) -> None:
    folded.sql("CREATE TABLE written (key TEXT)")
    for change in ("INSERT", "UPDATE", "DELETE"):
        row = "old" if change == "DELETE" else "new"
        folded.on(f"AFTER {change}", "view", f"INSERT INTO written VALUES ({row}.key)")
    folded.sql("UPDATE view SET data = x'80' WHERE key = 'session:A-1'")
    folded.sql("DELETE FROM written")

    projector("replay", "-d", folded.url)
    projector("replay", "-d", folded.url)

    assert folded.sql("SELECT * FROM written") == [("session:A-1",)]
    assert len(folded.triggers()) == 3


def test_replay_makes_views_from_nothing(folded: Database) -> None:
    expected = refolded(folded).everything()
    for table in ("checkpoint", "quarantine", "session_index", "view"):
        folded.sql(f"DELETE FROM {table}")
    folded.sql("INSERT INTO view VALUES ('9', 'project:P', x'80', 'e', 1, 1)")

    projector("replay", "-d", folded.url)

    assert folded.sql("SELECT id FROM view WHERE key = 'project:P'") == [("9",)]
    folded.sql("DELETE FROM view WHERE key = 'project:P'")
    assert folded.everything() == expected


def test_replay_repairs_views_of_a_log_that_was_rewound(folded: Database) -> None:
    rewound = folded.copied()
    folded.appended("A-1", "lost")
    catch_up(folded)
    for table in ("checkpoint", "view", "session_index"):
        rewound.sql(f"DELETE FROM {table}")
        for row in folded.sql(f"SELECT * FROM {table}"):
            rewound.sql(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    refused = projector("run", "--once", "-d", rewound.url, check=4)
    assert "projector replay" in refused.stderr
    assert "projector replay" in projector("verify", "-d", rewound.url, check=4).stderr
    projector("replay", "--session", "A-1", "-d", rewound.url, check=1)
    assert "view stale" in projector("replay", "--dry-run", "-d", rewound.url).stdout

    projector("replay", "-d", rewound.url)

    projector("verify", "-d", rewound.url)
    assert rewound.everything() == refolded(rewound).everything()


def test_what_an_upgrade_can_fold_leaves_the_quarantine_in_the_logs_own_order(
    folded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if an older version had refused every append."""
    expected = refolded(folded).everything()
    folded.appended("A-1", "after")
    sessions = type(BUILT_IN[0])
    with monkeypatch.context() as older:

        def refuse(*_: Any) -> None:
            raise ValueError

        older.setattr(sessions, "changed", refuse)
        older.setattr(sessions, "appended", refuse)
        older.setattr(sessions, "version", 0)
        for table in ("checkpoint", "quarantine", "session_index", "view"):
            folded.sql(f"DELETE FROM {table}")
        catch_up(folded)
        assert len(folded.views()["session:A-1"][2]) < len(expected[0][1][2])

    repair(folded)

    assert folded.contents("A-1") == ["one", "bare", "after"]
    assert folded.everything() == refolded(folded).everything()


def test_readers_and_a_busy_daemon_go_on_during_replays(database: Database) -> None:
    """Every view is there at every moment and never has fewer messages than before."""
    fill(database, sessions=40, events=400)
    catch_up(database)
    faults: list[str] = []
    over = threading.Event()

    def read() -> None:
        seen: dict[str, int] = {}
        while not over.is_set():
            counts = dict(database.sql("SELECT session_id, message_count FROM session_index"))
            views = {row[0] for row in database.sql("SELECT key FROM view WHERE key > 'session:'")}
            faults.extend(f"{key} went back" for key in seen if counts.get(key, 0) < seen[key])
            faults.extend(f"{key} is gone" for key in seen if f"session:{key}" not in views)
            seen = counts
            over.wait(0.005)

    with daemon(database.url) as running:
        running.wait_for("started")
        reader = threading.Thread(target=read)
        reader.start()
        writer = database.writer("0")
        while writer.poll() is None:
            database.sql("UPDATE view SET data = x'80' WHERE key = 'session:F-3'")
            two = [started("replay", "-d", database.url) for _ in range(2)]
            assert [one.wait() for one in two] == [0, 0]
            projector("verify", "-d", database.url)
        over.set()
        reader.join()
        assert running.stop(signal.SIGTERM) == 0

    projector("run", "--once", "-d", database.url)
    assert faults == []
    assert database.views() == oracle.fold(database.log()).views
    assert database.index() == oracle.index(database.log())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_replay_stopped_at_any_moment_leaves_whole_rows_and_nothing_behind(
    database: Database, number: int
) -> None:
    fill(database, sessions=1500, events=3000)
    catch_up(database)
    expected = database.everything()
    database.sql("UPDATE view SET data = x'80'")
    running = started("replay", "-d", database.url)
    while database.sql("SELECT count(*) FROM view WHERE data = x'80'") == [(1500,)]:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(number)
    running.wait()

    good = {row[1]: row for row in expected[0]}
    assert all(row[2] == b"\x80" or row == good[key] for key, row in database.views().items())
    projector("replay", "-d", database.url)
    assert database.everything() == expected


async def test_a_batch_that_was_folded_before_a_replay_is_not_committed(
    database: Database,
) -> None:
    """The generation is part of the compare-and-set, also where the position stands still."""
    database.created("A-1", "one")
    async with opened(database.url) as thread:
        sessions = BUILT_IN[0]
        await replay_all(target(database.url), BUILT_IN, Heard())
        before = await checkpoint(thread, sessions)
        [row] = database.views().values()
        database.sql("UPDATE view SET data = x'80'")
        async for _ in replay.repair(thread, sessions, before):
            pass

        after = await checkpoint(thread, sessions)
        assert (after.position, after.generation) == (before.position, before.replayed().generation)
        batch = Change(sessions.table, before, before, rows=[(*row[:2], b"\x80", *row[3:])])
        with pytest.raises(LostRace):
            await thread.run(lambda store: store.commit([batch]))
        assert [*database.views().values()] == [row]


def test_a_view_is_compared_as_of_the_checkpoint(folded: Database) -> None:
    folded.appended("A-1", "not folded yet")
    folded.created("A-9")

    projector("verify", "-d", folded.url)
    projector("replay", "-d", folded.url)

    assert folded.contents("A-1")[-1] == "not folded yet"


def test_views_that_the_projector_did_not_make_are_said_to_be_so(database: Database) -> None:
    database.created("A-1")
    database.sql("INSERT INTO view VALUES ('x', 'session:A-1', x'80', 'e', 1, 1)")

    said = projector("verify", "-d", database.url, check=1)
    tried = projector("replay", "--dry-run", "-d", database.url)

    assert "projector replay" in said.stderr
    assert "1 view damaged" in tried.stdout


@pytest.mark.sqlite
def test_odd_keys_are_walked(database: Database) -> None:
    for key in (None, b"\xff", "", "session:", 5, 2.5):
        with closing(sqlite3.connect(database.path)) as connection, connection:
            connection.execute(INSERT, (f"k{key!r}", key, b"\xc0", T0))
    projector("replay", "-d", database.url)
    assert database.everything() == refolded(database).everything()

    database.sql("INSERT INTO event_log (id, key) VALUES ('u', CAST(x'fe' AS TEXT))")
    database.sql(
        "INSERT INTO view VALUES ('b', CAST(x'73657373696f6e3aff' AS TEXT), x'', '', 1, 1)"
    )
    projector("replay", "-d", database.url)

    projector("verify", "-d", database.url)
    assert len(database.sql("SELECT 1 FROM view")) == 0


def test_an_unknown_projection_is_refused(database: Database) -> None:
    refused = projector("replay", "--projection", "nope", "-d", database.url, check=2)

    assert "sessions, session_index" in refused.stderr


def test_a_session_that_nothing_names_is_said_not_to_be_there(folded: Database) -> None:
    for command in ("verify", "replay"):
        said = projector(command, "--session", "nope", "-d", folded.url, check=1)

        assert "there is no session nope" in said.stderr


def test_a_row_that_bears_the_id_of_another_session_is_repaired(folded: Database) -> None:
    folded.sql("DELETE FROM view WHERE key = 'session:A-1'")
    folded.sql("UPDATE view SET id = 'session:A-1' WHERE key = 'session:A-2'")

    projector("replay", "-d", folded.url)

    assert folded.everything() == refolded(folded).everything()


def test_another_programs_row_with_the_id_of_a_session_is_named_and_left_alone(
    folded: Database,
) -> None:
    folded.sql("INSERT INTO view VALUES ('session:A-9', 'project:P', x'80', 'e', 1, 1)")
    folded.created("A-9")

    refused = projector("run", "--once", "-d", folded.url, check=4)

    assert "another program's row has the id" in refused.stderr
    assert "SELECT id, key FROM view" in refused.stderr
    assert folded.sql("SELECT key FROM view WHERE id = 'session:A-9'") == [("project:P",)]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE view SET key = 'session:aghost' WHERE key = 'session:A-1'",
        pytest.param(
            "INSERT INTO session_index SELECT CAST('zz' AS BLOB), project, status, title,"
            " message_count, last_role, created_at, updated_at, last_event_id, last_seq"
            " FROM session_index WHERE session_id = 'A-1'",
            marks=pytest.mark.sqlite,
        ),
        pytest.param(
            "INSERT INTO quarantine VALUES ('sessions', CAST(x'ff' AS TEXT), 1, 2, 'r')",
            marks=pytest.mark.sqlite,
        ),
    ],
)
def test_odd_damage_is_found_and_repaired(folded: Database, damage: str) -> None:
    folded.sql(damage)

    projector("verify", "-d", folded.url, check=1)
    projector("replay", "-d", folded.url)

    assert folded.everything() == refolded(folded).everything()


def test_two_replays_at_once_count_the_skipped_once(database: Database) -> None:
    fill(database, sessions=200, events=2000)
    catch_up(database)
    database.sql("UPDATE checkpoint SET skipped = 5")
    two = [started("replay", "-d", database.url) for _ in range(2)]

    assert [one.wait() for one in two] == [0, 0]
    assert database.sql("SELECT DISTINCT skipped FROM checkpoint") == [(0,)]


@pytest.mark.once
@pytest.mark.parametrize("command", ["verify", "replay"])
def test_an_output_that_cannot_be_written_is_no_fault_of_a_projection(
    folded: Database, command: str
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROJECTOR, command, "-d", folded.url],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "projector: standard output: No space left on device\n"
