"""The stream of changes: resumed where it broke off, begun again where that cannot be."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import T0, Daemon, Database, daemon, event, projector
from support.board import Board, Stream, board

from session_projector.worker.board.live import Client, News, look
from session_projector.worker.clock import now_ms
from session_projector.worker.sessions.timeline import SESSIONS
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Change


@pytest.fixture
def shown(database: Database, tmp_path: Path) -> Iterator[Board]:
    with board(database, tmp_path / "state") as running:
        yield running


@pytest.fixture
def running(database: Database) -> Iterator[Daemon]:
    with daemon(database.url) as running:
        running.wait_for("started")
        yield running


def fold(database: Database) -> None:
    projector("run", "-d", database.url, "--once")


def begun(stream: Stream) -> Any:
    """The first event."""
    name, data = stream.next()
    assert name == "sessions"
    return data


@pytest.mark.usefixtures("running")
def test_what_is_committed_is_told_to_all(database: Database, shown: Board) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(shown.changes()) for _ in range(3)]
        for stream in streams:
            first = begun(stream)
            assert (first["sessions"], first["counts"], first["waiting"]) == ([], {}, 0)
        database.created("S", "one")
        for stream in streams:
            one = stream.wait_for_session("S")
            assert (one["title"], one["messages"], one["last_seq"]) == ("one", 1, 1)
            assert stream.last_id == "0-1"
            assert stream.wait_for("sessions", counts={"ready": 1})["waiting"] == 1
    database.appended("S", "two")
    with shown.changes("since=0-1") as stream:  # while there was no client, nobody watched
        assert stream.wait_for_session("S")["messages"] == 2


def test_the_messages_of_an_open_session_come_with_it(
    database: Database, shown: Board, running: Daemon
) -> None:
    running.wait_until_at(database.created("S", "one"))
    opened = shown.api("session?id=S")
    with shown.changes(f"since={opened['cursor']}&session=S&n={opened['total']}") as stream:
        begun(stream)
        database.appended("S", "two", "three")
        added = stream.wait_for("messages")
        assert added == {
            "session": "S",
            "total": 3,
            "messages": [
                {"n": 2, "time": T0, "message": {"role": "assistant", "content": "two"}},
                {"n": 3, "time": T0, "message": {"role": "assistant", "content": "three"}},
            ],
        }
        assert stream.wait_for_session("S")["messages"] == 3
        database.insert("S", event("session_created", {"project": "P"}))  # quarantined
        database.insert("session:S", event("session_status_update", {"status": "done"}))
        assert stream.wait_for_session("S")["status"] == "done"
        database.appended("S", "four")
        assert [one["n"] for one in stream.wait_for("messages")["messages"]] == [4]
        database.insert("S", event("session_updated", {"messages": []}))
        again = {"session": "S", "total": 0, "messages": [], "replaced": True}
        assert stream.wait_for("messages") == again


def test_a_stream_goes_on_where_it_broke_off(
    database: Database, shown: Board, running: Daemon
) -> None:
    running.wait_until_at(database.created("S", "one"))
    running.wait_until_at(database.created("other", "one"))
    with shown.changes("since=0-2&session=S&n=1") as stream:
        begun(stream)
        database.appended("S", "two")
        stream.wait_for_session("S")
        assert stream.last_id == "0-3"
    running.wait_until_at(database.appended("S", "three"))
    running.wait_until_at(database.appended("other", "two"))

    again = "since=0-2&session=S&n=1"  # as a browser asks, which does not change the address
    with shown.changes(again, last_event_id="0-3") as stream:
        assert stream.next() == (
            "messages",
            {
                "session": "S",
                "total": 3,
                "messages": [
                    {"n": 3, "time": T0, "message": {"role": "assistant", "content": "three"}}
                ],
            },
        )
        missed = begun(stream)
        assert [one["id"] for one in missed["sessions"]] == ["S", "other"]
        assert stream.last_id == "0-5"
    with shown.changes("since=0-2&session=S&n=1") as stream:
        name, data = stream.next()
        assert (name, [one["n"] for one in data["messages"]]) == ("messages", [2, 3])
    with shown.changes("since=0-2&session=S&n=2") as stream:  # it has read more meanwhile
        assert [one["n"] for one in stream.wait_for("messages")["messages"]] == [3]
    with shown.changes("since=0-5&session=S&n=3") as stream:
        assert begun(stream)["sessions"] == []


@pytest.mark.parametrize(
    "asked",
    [
        "since=1-2",
        "since=0-99",
    ],
)
def test_one_that_cannot_go_on_is_told_to_begin_again(
    database: Database, shown: Board, asked: str
) -> None:
    database.created("S", "one")
    database.appended("S", "two", "three")
    fold(database)
    with shown.changes(asked) as stream:
        assert stream.next() == ("reset", {})
        assert stream.last_id == "0-2"


@pytest.mark.parametrize("known", [0, 5])
def test_one_that_has_other_messages_is_told_to_fetch_them(
    database: Database, shown: Board, known: int
) -> None:
    database.created("S", "one")
    database.appended("S", "two", "three")
    fold(database)
    with shown.changes(f"since=0-2&session=S&n={known}") as stream:
        again = {"session": "S", "total": 3, "messages": [], "replaced": True}
        assert stream.next() == ("messages", again)
        begun(stream)


def test_several_sessions_in_one_stream(database: Database, shown: Board, running: Daemon) -> None:
    for one in ("S", "T", "U"):
        running.wait_until_at(database.created(one, "one"))
    with shown.changes("since=0-3&session=S&n=1&session=T&n=1") as stream:
        begun(stream)
        for one in ("U", "T", "S"):
            database.appended(one, "two")
        assert {stream.wait_for("messages")["session"] for _ in range(2)} == {"S", "T"}
    for asked in ("session=S&n=1&n=2", "&".join(f"session={n}" for n in range(17))):
        assert shown.api(f"changes?{asked}", 400)["error"]


def test_a_replay_that_changes_rows_is_told(
    database: Database, shown: Board, running: Daemon
) -> None:
    running.wait_until_at(database.created("S", "one"))
    with shown.changes("since=0-1") as stream:
        begun(stream)
        database.sql("UPDATE session_index SET title = 'wrong'")
        projector("replay", "-d", database.url)
        assert stream.wait_for("reset") == {}
        generation, _, seq = stream.last_id.partition("-")
        assert (int(generation) > 0, seq) == (True, "1")
    with shown.changes("", last_event_id="0-1") as stream:
        assert stream.next() == ("reset", {})
    with shown.changes("session=S&n=1", last_event_id=shown.api("sessions")["cursor"]) as stream:
        begun(stream)
        database.sql("UPDATE view SET updated_at = 5")
        projector("replay", "-d", database.url)
        assert stream.wait_for("reset") == {}


def test_a_replay_of_views_is_told_though_events_came_meanwhile(
    database: Database, shown: Board
) -> None:
    database.created("S", "one")
    fold(database)
    cursor = shown.api("sessions")["cursor"]
    database.sql("UPDATE view SET updated_at = 5")
    projector("replay", "-d", database.url)
    database.appended("S", "two")
    fold(database)
    with shown.changes("session=S&n=1", last_event_id=cursor) as stream:
        assert stream.next() == ("reset", {})


def test_a_view_that_is_written_late_is_no_replay(database: Database) -> None:
    database.created("S", "one")
    fold(database)
    with storage.database(database.url).open(writable=True) as store:
        seen = look(store, None).seen
        before = store.views.prepare(SESSIONS)
        late = msgspec.structs.replace(before, generation=before.generation + 1)
        store.commit([Change(SESSIONS.table, before, late)])
        assert look(store, seen) == News(seen)
        store.commit([Change(SESSIONS.table, late, late.replayed())])
        assert look(store, seen).reset


def test_only_sessions_of_a_project_are_told_and_which_are_gone(
    database: Database, shown: Board, running: Daemon
) -> None:
    running.wait_until_at(database.created("S", "one", project="mine"))
    with shown.changes("project=mine&since=0-1") as stream:
        assert begun(stream)["counts"] == {"ready": 1}
        database.created("T", "one", project="other")
        assert stream.wait_for("sessions", gone=["T"])["sessions"] == []
        database.insert("S", event("session_updated", {"project": "other"}))
        assert stream.wait_for("sessions", gone=["S"])["sessions"] == []
        assert stream.wait_for("sessions", counts={})["waiting"] == 0


def test_one_that_is_too_far_behind_is_told_to_begin_again(
    database: Database, shown: Board, running: Daemon
) -> None:
    """It does not read: what is sent to it fills the buffers of the kernel, and then its queue."""
    database.created("S", "one")
    running.wait_until_at(database.created("slow", "one"))
    with (
        shown.changes("since=0-2&session=slow&n=1") as slow,
        shown.changes("since=0-2") as quick,
    ):
        begun(quick)
        for _ in range(120):
            database.appended("slow", *["x" * 16_000] * 8)
            quick.wait_for_session("slow")
        assert slow.wait_for("reset") == {}
        database.appended("S", "two")
        assert slow.wait_for_session("S")["messages"] == 2


async def test_what_comes_soon_after_goes_together_where_there_are_many() -> None:
    paused = asyncio.Event()

    def pause_s() -> float:
        paused.set()
        return 0.05

    client = Client(None, {})
    frames = client.frames(pause_s)
    client.give(b"one")
    assert await anext(frames) == b"one"
    following = asyncio.ensure_future(anext(frames))
    client.give(b"two")
    await paused.wait()
    client.give(b"three")

    assert await following == b"twothree"


def test_very_many_changes_at_once_are_a_reset(database: Database, shown: Board) -> None:
    created = json.dumps(event("session_created", {"project": "P"}))
    database.insert_many((f"n{n}", f"N-{n}", created, 1) for n in range(600))
    fold(database)
    with shown.changes(f"since={shown.api('sessions')['cursor']}") as stream:
        begun(stream)
        database.sql("UPDATE session_index SET last_seq = last_seq + 1000")  # in one commit
        stream.wait_for("reset")
    with shown.changes("since=0-1") as stream:
        assert stream.next() == ("reset", {})


def test_without_a_daemon_the_stream_says_so_and_hears_of_one(
    database: Database, shown: Board
) -> None:
    with shown.changes() as stream:
        begun(stream)
        assert stream.wait_for("status")["daemon"]["alive"] is False
        with daemon(database.url) as running:
            running.wait_until_at(database.created("S", "one"))
            assert stream.wait_for_session("S")["messages"] == 1
            while not stream.wait_for("status")["daemon"]["alive"]:
                pass


@pytest.mark.usefixtures("running")
def test_a_session_that_is_still_begins_to_wait_for_a_person(
    database: Database, shown: Board
) -> None:
    """Its last change is 59 s old when it is told."""
    with shown.changes() as stream:
        begun(stream)
        said = [{"role": "assistant", "content": "which one?"}]
        data = {"project": "P", "status": "in-progress", "messages": said}
        database.insert("S", event("session_created", data) | {"timestamp": now_ms() - 59_000})
        assert stream.wait_for_session("S")["waiting"] is False
        told = stream.wait_for("sessions", waiting=1)
        assert told["counts"] == {"in-progress": 1}
        assert [(one["id"], one["waiting"]) for one in told["sessions"]] == [("S", True)]


def test_so_does_one_that_was_still_before_anybody_looked(database: Database, shown: Board) -> None:
    said = [{"role": "assistant", "content": "which one?"}]
    data = {"project": "P", "status": "in-progress", "messages": said}
    database.insert("S", event("session_created", data) | {"timestamp": now_ms() - 57_000})
    fold(database)
    with shown.changes("since=0-0") as stream:
        while not stream.wait_for_session("S")["waiting"]:
            pass


@pytest.mark.sqlite
def test_a_database_that_is_replaced_is_read_again(database: Database, shown: Board) -> None:
    database.created("S", "one")
    fold(database)
    other = database.another()
    other.created("T", "one")
    fold(other)
    with shown.changes("since=0-1") as stream:
        begun(stream)
        for end in ("", "-wal", "-shm"):
            if (found := other.path.with_name(other.path.name + end)).exists():
                found.rename(database.path.with_name(database.path.name + end))
        trouble = stream.wait_for("trouble")
        assert "replaced" in trouble["error"]
        assert stream.wait_for("reset") == {}
        assert [one["id"] for one in shown.api("sessions")["sessions"]] == ["T"]


@pytest.mark.usefixtures("running")
def test_a_board_ends_at_once_though_streams_are_open(shown: Board) -> None:
    with shown.changes() as stream:
        begun(stream)
        shown.process.send_signal(signal.SIGTERM)
        with pytest.raises(EOFError):
            stream.wait_for("nothing")
        assert shown.process.wait(timeout=20) == 0
    assert shown.said() == ""
