"""What the API answers, on every engine."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgpack
import pytest
from support import T0, Database, event, fill, projector
from support.board import Board, board

from session_projector.worker.clock import now_ms
from session_projector.worker.sessions import window
from session_projector.worker.storage import open as storage

ODD_IDS = [
    "a b",
    "session:x",
    "../../etc",
    "<script>",
    "grün/?&#",
    "%2F",
    "'; --",
    "x\u202ey",
    ".",
    "ü" * 32_000,
]


@pytest.fixture
def shown(database: Database, tmp_path: Path) -> Iterator[Board]:
    with board(database, tmp_path / "state") as running:
        yield running


def fold(database: Database) -> None:
    projector("run", "-d", database.url, "--once", check=None)


def said(database: Database, session_id: str, *messages: dict[str, Any]) -> int:
    appended = event("session_append", {"messages": [*messages]})
    return database.insert(f"session:{session_id}", appended)


def status(database: Database, session_id: str, new: str, time: int = T0) -> int:
    changed = event("session_status_update", {"status": new})
    return database.insert(f"session:{session_id}", changed | {"timestamp": time})


def ids(answer: Any) -> list[str]:
    return [one["id"] for one in answer["sessions"]]


def test_a_database_without_a_daemon_is_an_empty_board(shown: Board) -> None:
    empty = shown.api("sessions")
    assert empty == {
        "cursor": "0-0",
        "counts": {},
        "other": 0,
        "waiting": 0,
        "projects": [],
        "project_count": 0,
        "sessions": [],
        "next": None,
    }
    assert shown.api("status")["daemon"]["alive"] is False
    assert shown.api("quarantine")["total"] == 0
    wrong = shown.api("session?id=absent", 404)
    assert wrong["error"].startswith("there is no session absent")
    assert "projector session list -d" in wrong["hint"]


def test_sessions_are_listed_by_filters_the_last_change_first(
    database: Database, shown: Board
) -> None:
    for number, (project, new) in enumerate(
        [("web", "done"), ("web", "in-progress"), ("api", "review"), ("api", "ready")]
    ):
        database.created(f"{project}-{number}", f"Fix the Parser {number}", project=project)
        status(database, f"{project}-{number}", new)
    fold(database)

    every = shown.api("sessions")
    assert ids(every) == ["api-3", "api-2", "web-1", "web-0"]
    assert every["counts"] == {"done": 1, "in-progress": 1, "review": 1, "ready": 1}
    assert (every["waiting"], every["projects"]) == (2, ["api", "web"])
    assert every["cursor"] == "0-8"
    assert every["sessions"][1] == {
        "id": "api-2",
        "project": "api",
        "status": "review",
        "title": "Fix the Parser 2",
        "messages": 1,
        "last_role": "user",
        "created_at": T0,
        "updated_at": T0,
        "last_seq": 6,
        "waiting": True,
    }
    web = shown.api("sessions?project=web&status=done,review")
    assert (ids(web), web["counts"], web["waiting"]) == (
        ["web-0"],
        {"done": 1, "in-progress": 1},
        0,
    )
    assert ids(shown.api("sessions?q=PARSER+2")) == ["api-2"]
    assert shown.api("sessions?q=parser+web")["counts"] == {"done": 1, "in-progress": 1}
    assert ids(shown.api("sessions?waiting=1")) == ["api-3", "api-2"]
    assert ids(shown.api("sessions?waiting=1&status=ready,done")) == ["api-3"]
    assert ids(shown.api("sessions?order=created")) == ["web-1", "web-0", "api-3", "api-2"]
    assert ids(shown.api("sessions?not=ready,done")) == ["api-2", "web-1"]
    assert ids(shown.api("sessions?not=ready&waiting=1")) == ["api-2"]
    assert shown.api("sessions?q=%25")["sessions"] == []  # no pattern
    assert shown.api("sessions?status=nothing")["sessions"] == []


def test_an_agent_that_has_spoken_last_and_is_still_waits_for_a_person(
    database: Database, shown: Board
) -> None:
    now = now_ms()
    for session_id, new, role, age_s in (
        ("still", "in-progress", "assistant", 70),
        ("moving", "in-progress", "assistant", 10),
        ("asked", "in-progress", "user", 70),
        ("done", "done", "assistant", 70),
        ("odd", "elsewhere", "assistant", 70),
        ("handed-over", "review", "user", 0),
    ):
        messages = [{"role": role, "content": "x"}]
        data = {"project": "P", "messages": messages, "status": new}
        time = now - age_s * 1000
        database.insert(session_id, event("session_created", data) | {"timestamp": time})
    fold(database)

    waiting = {"still", "odd", "handed-over"}
    every = shown.api("sessions")
    assert {one["id"] for one in every["sessions"] if one["waiting"]} == waiting
    assert every["waiting"] == 3
    assert {*ids(shown.api("sessions?waiting=1"))} == waiting


def test_very_many_statuses_and_projects_are_not_all_named(
    database: Database, shown: Board
) -> None:
    for number in range(250):
        data = {"project": f"P{number:03}", "status": f"s{number:03}", "messages": []}
        database.insert(f"S-{number}", event("session_created", data))
    for number in range(248, 250):
        data = {"project": "P249", "status": "s249", "messages": []}
        database.insert(f"T-{number}", event("session_created", data))
    database.created("ready", "one", project="P249")
    fold(database)
    every = shown.api("sessions")
    assert (len(every["counts"]), every["other"]) == (30, 221)
    assert every["counts"]["ready"] == 1
    assert every["counts"]["s249"] == 3
    assert (len(every["projects"]), every["project_count"]) == (200, 250)
    assert every["projects"][-1] == "P249"


@pytest.mark.parametrize("order", ["changed", "created"])
@pytest.mark.parametrize("waiting", ["0", "1"])
def test_pages_hold_each_session_once(
    database: Database, shown: Board, order: str, waiting: str
) -> None:
    fill(database, sessions=25, events=60)
    for number in range(0, 25, 2):
        status(database, f"F-{number}", "in-progress")
    said(database, "F-3", {"role": "assistant", "content": "x"})
    for number in range(0, 25, 4):
        said(database, f"F-{number}", {"role": "assistant", "content": "x"})
    fold(database)

    asked = {"order": order, "waiting": waiting, "limit": "4"}
    found, pages, token = [], 0, None
    while pages == 0 or token:
        page = shown.api(f"sessions?{urlencode(asked | ({'page': token} if token else {}))}")
        found += ids(page)
        pages, token = pages + 1, page["next"]

    every = shown.api(f"sessions?order={order}&waiting={waiting}&limit=200")
    assert found == ids(every)
    assert len({*found}) == (every["waiting"] if waiting == "1" else 25)
    assert pages == -(-len(found) // 4)


def test_a_long_session_is_read_by_windows(database: Database, shown: Board) -> None:
    database.created("long", *(f"m{number}" for number in range(1, 351)))
    fold(database)

    newest = shown.api("session?id=long")
    assert (newest["total"], newest["first"], newest["last"]) == (350, 251, 350)
    assert [one["n"] for one in newest["messages"]] == [*range(251, 351)]
    assert newest["messages"][-1]["message"] == {"role": "user", "content": "m350"}
    assert newest["fields"] == {
        "id": "long",
        "project": "P",
        "status": "ready",
        "createdAt": T0,
        "updatedAt": T0,
    }
    for asked, first, last in (
        ("first=1&last=3", 1, 3),
        ("first=1&last=350", 1, 100),
        ("first=340&last=999", 340, 350),
        ("last=250", 151, 250),
        ("last=50", 1, 50),
        ("first=200", 200, 299),
        ("first=351", 0, 0),
        ("last=0", 0, 0),
        ("first=5&last=4", 0, 0),
    ):
        page = shown.api(f"session/messages?id=long&{asked}")
        assert (page["total"], page["first"], page["last"]) == (350, first, last), asked
        assert [one["n"] for one in page["messages"]] == (
            [*range(first, last + 1)] if first else []
        )
    assert shown.api("session/message?id=long&n=7") == {
        "n": 7,
        "time": T0,
        "message": {"role": "user", "content": "m7"},
    }
    assert shown.api("session/message?id=long&n=351", 404)["error"]
    shown.api("session/message?id=long&n=0", 400)


def test_each_message_has_the_time_of_the_event_that_brought_it(
    database: Database, shown: Board
) -> None:
    def says(*texts: str, at: int, kind: str = "session_append", **more: Any) -> None:
        messages = [{"role": "user", "content": text} for text in texts]
        data = {"messages": messages, **more}
        database.insert("S" if at % 2 else "session:S", event(kind, data) | {"timestamp": at})

    def times(asked: str) -> list[tuple[str, Any]]:
        return [(one["message"]["content"], one["time"]) for one in shown.api(asked)["messages"]]

    says("old", "ok", "gone", at=1, kind="session_created", project="P")
    says("old", at=2)
    says("ok", "ok", at=3, kind="session_updated")  # these alone are left
    status(database, "S", "done", 4)
    says("lost", at=5, kind="session_created", project="P")  # quarantined
    says("ok", at=6)
    database.insert("S", {"type": "session_append", "data": {"messages": "no list"}})
    status(database, "S", "review", 7)
    added = {"messages": [{"role": "user", "content": "as JSON"}]}
    text = json.dumps({"type": "session_append", "data": added})
    database.insert("S", text, created_at=8_000)
    fold(database)

    said = [("ok", 3), ("ok", 3), ("ok", 6), ("as JSON", 8_000_000)]
    assert times("session?id=S") == said
    assert times("session/messages?id=S&first=2&last=3") == said[1:3]
    assert times("session/messages?id=S&last=1") == said[:1]
    assert times("session/at?id=S&at=2") == [("old", 1), ("ok", 1), ("gone", 1), ("old", 2)]
    assert times("session/at?id=S&at=6&last=2") == said[:2]
    assert shown.api("session/message?id=S&n=3")["time"] == 6


def test_no_time_is_told_of_a_message_that_no_event_brought(
    database: Database, shown: Board
) -> None:
    database.created("S", "one", "two")
    fold(database)
    (row,) = database.views().values()
    view = msgpack.unpackb(row[2])
    view["messages"][0]["content"] = "another program's"
    database.sql("UPDATE view SET data = ?", msgpack.packb(view))
    assert [one["time"] for one in shown.api("session?id=S")["messages"]] == [None, T0]


def test_one_message_is_read_without_the_view(database: Database, shown: Board) -> None:
    database.created("S", "one")
    database.appended("S", "two", "three")
    fold(database)
    database.sql(BROKEN[database.engine])
    told = [shown.api(f"session/message?id=S&n={n}")["message"]["content"] for n in (1, 2, 3)]
    assert told == ["one", "two", "three"]
    shown.api("session/message?id=S&n=4", 404)
    shown.api("session/message?id=absent&n=1", 404)


@pytest.mark.parametrize("limit", ["MOST_BACK", "_MOST_BYTES_BACK"])
def test_what_is_looked_at_for_the_time_of_a_message_is_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    database.created("S", "one")
    done = json.dumps(event("session_status_update", {"status": "done"}))
    database.insert_many((f"d{number}", "S", done, 1) for number in range(250))
    until = database.appended("S", "two")

    def found(*wanted: int) -> list[int]:
        with storage.database(database.url).open() as store:
            some = window.brought(store, "S", range(*wanted), total=2, until=until)
        return [one.n for one in some]

    assert found(1, 3) == [2, 1]
    monkeypatch.setattr(window, limit, 3)
    assert found(1, 3) == found(2, 3) == [2]
    assert found(1, 2) == found(0) == []


def test_what_is_long_is_cut_and_says_how_long_it_is(database: Database, shown: Board) -> None:
    long = "ü" * 20_000
    many = [{"type": "text", "text": "x" * 15_000}] * 100
    database.created("cut", "short")
    said(database, "cut", {"role": "user", "content": long}, {"role": "tool", "content": many})
    said(database, "cut", *[{"role": "user", "content": "y" * 16_000}] * 90)
    fold(database)

    page = shown.api("session/messages?id=cut&first=1")
    messages = [one["message"] for one in page["messages"]]
    assert messages[1]["content"] == {"cut": 40_000, "text": "ü" * 8192}
    assert messages[2]["role"] == "tool"
    assert messages[2]["cut"] > 1_500_000
    assert messages[2]["text"].startswith('{"role":"tool","content":[{"type":"text"')
    assert page["last"] < 93
    assert len(json.dumps(page)) < 1_100_000
    newest = shown.api("session?id=cut")
    assert (newest["last"], newest["first"] > 20) == (93, True)
    assert shown.api("session/message?id=cut&n=2")["message"]["content"] == long
    assert shown.api("session/message?id=cut&n=3")["message"]["content"] == many


def test_values_come_as_a_browser_can_keep_them(database: Database, shown: Board) -> None:
    message = {
        "role": 5,
        "big": 2**63,
        "small": -(2**53) - 1,
        "exact": 2**53,
        "float": 1.5,
        "nan": float("nan"),
        "binary": b"\x00\xff",
        "ext": msgpack.ExtType(5, b"x"),
        1: {"1": None, 2: True},
        "html": "<img src=x onerror=alert(1)>\u202e",
    }
    database.created("odd")
    said(database, "odd", message)
    fold(database)

    expected = {
        "role": 5,
        "big": {"int": str(2**63)},
        "small": {"int": str(-(2**53) - 1)},
        "exact": 2**53,
        "float": 1.5,
        "nan": None,
        "binary": "AP8=",
        "ext": {"ext": 5, "data": "eA=="},
        "1": {"1": None, "2": True},
        "html": "<img src=x onerror=alert(1)>\u202e",
    }
    assert shown.api("session?id=odd")["messages"][0]["message"] == expected
    assert shown.api("session/message?id=odd&n=1")["message"] == expected


def test_any_id_can_be_asked_for(database: Database, shown: Board) -> None:
    seqs = {session_id: database.created(session_id, "hello") for session_id in ODD_IDS}
    fold(database)

    assert {*ids(shown.api("sessions"))} == {*ODD_IDS}
    for session_id, seq in seqs.items():
        asked = quote(session_id, safe="")
        found = shown.api(f"session?id={asked}")
        assert (found["fields"]["id"], found["total"]) == (session_id, 1)
        events = shown.api(f"session/events?id={asked}")["events"]
        assert [one["seq"] for one in events] == [seq]
        assert shown.api(f"session/at?id={asked}&at={seq}")["fields"]["id"] == session_id
        with shown.changes(f"since=0-{seq - 1}&session={asked}&n=0") as stream:
            assert stream.wait_for("messages")["session"] == session_id


def test_ids_that_are_none_are_told_so(database: Database, shown: Board) -> None:
    fold(database)
    for odd in ("%00", "%FF%FE", "%ED%A0%80", "a" * 20_000, "%F0%9F%92%A9"):
        for path in ("session", "session/messages", "session/events", "session/why"):
            shown.api(f"{path}?id={odd}", 404)
    for path in ("session", "session/messages", "session/message?n=1", "session/at?at=1"):
        assert shown.api(path, 400)["error"] == "the parameter id is missing"


def test_the_events_of_a_session_come_by_pages_with_the_reasons_of_the_quarantine(
    database: Database, shown: Board
) -> None:
    database.created("S", "one")
    database.insert("S", event("session_created", {"project": "P"}))
    database.insert("session:S", b"\xc1")
    database.appended("S", "two")
    database.insert("session:S", event("task_created", {}))
    database.insert("S", event("session_status_update", {"status": "review"}))
    fold(database)

    first = shown.api("session/events?id=S&limit=2")
    assert [one["seq"] for one in first["events"]] == [1, 2]
    assert first["events"][0] | {"bytes": 0} == {
        "seq": 1,
        "time": T0,
        "type": "session_created",
        "bytes": 0,
        "reason": None,
        "note": None,
        "says": "one",
    }
    assert "twice" in first["events"][1]["reason"]
    assert first["next"] == 2
    twice = first["events"][1]["seq"]
    assert twice in shown.api("session?id=S")["quarantined"]
    projector("quarantine", "dismiss", "-d", database.url, str(twice), "--note", "as it is")
    assert twice not in shown.api("session?id=S")["quarantined"]
    assert shown.api("session/events?id=S&limit=2")["events"][1]["note"] == "as it is"
    rest = shown.api("session/events?id=S&after=2")
    assert [one["seq"] for one in rest["events"]] == [3, 4, 5, 6]
    assert rest["events"][0]["type"] is None
    assert "not MessagePack" in rest["events"][0]["reason"]
    assert [one["reason"] for one in rest["events"][1:]] == [None, None, None]
    assert [one["says"] for one in rest["events"][1:]] == ["two", "", "review"]
    assert rest["next"] is None
    assert shown.api("session/events?id=S&after=99") == {"events": [], "next": None}


def test_the_past_of_a_session(database: Database, shown: Board) -> None:
    database.created("S", "one")
    status(database, "S", "in-progress", T0 + 1000)
    database.appended("S", "two", "three")
    replaced = {"messages": [{"role": "user", "content": "other"}], "project": "Q"}
    database.insert("S", event("session_updated", replaced))
    fold(database)

    then = shown.api("session/at?id=S&at=2")
    assert (then["fields"]["status"], then["total"], then["session"]) == ("in-progress", 1, None)
    assert shown.api("session/at?id=S&at=3&first=2&last=2")["messages"] == [
        {"n": 2, "time": T0, "message": {"role": "assistant", "content": "two"}}
    ]
    assert shown.api("session/at?id=S&at=2099-01-01T00:00:00Z")["fields"]["project"] == "Q"
    assert "begins after that" in shown.api("session/at?id=S&at=0", 404)["error"]
    assert "neither a position" in shown.api("session/at?id=S&at=noon", 400)["error"]

    grown = shown.api("session/diff?id=S&from=1&to=3")
    assert grown["fields"] == {
        "status": {"from": "ready", "to": "in-progress"},
    }
    assert [one["n"] for one in grown["messages"]["added"]] == [2, 3]
    assert grown["totals"] == {"added": 2, "removed": 0, "changed": 0}
    other = shown.api("session/diff?id=S&from=3&to=4")
    assert other["fields"]["project"] == {"from": "P", "to": "Q"}
    assert other["messages"]["changed"] == [
        {
            "n": 1,
            "from": {"role": "user", "content": "one"},
            "to": {"role": "user", "content": "other"},
        }
    ]
    assert other["totals"] == {"added": 0, "removed": 2, "changed": 1}
    born = shown.api("session/diff?id=S&from=0&to=1")
    assert born["fields"]["status"] == {"from": None, "to": "ready"}

    origins = shown.api("session/why?id=S")["fields"]
    assert origins["messages"] == {"seq": 4, "time": T0, "type": "session_updated"}
    assert origins["status"]["seq"] == 2


def test_a_difference_of_many_messages_is_cut_and_says_so(database: Database, shown: Board) -> None:
    database.created("S")
    said(database, "S", *[{"role": "user", "content": str(number)} for number in range(250)])
    fold(database)

    found = shown.api("session/diff?id=S&from=1&to=2")
    assert len(found["messages"]["added"]) == 100
    assert found["totals"]["added"] == 250


def test_the_quarantine_by_reason_and_by_pages(database: Database, shown: Board) -> None:
    for number in range(5):
        database.appended(f"absent-{number}", "x")
    database.insert("session:S", b"\xc1", id="odd <id>")
    fold(database)

    every = shown.api("quarantine?projection=sessions&limit=4")
    assert (every["total"], every["undismissed"]) == (12, 12)
    never = next(one for one in every["reasons"] if "never created" in one["reason"])
    assert (never["count"], never["first"], never["last"]) == (5, 1, 5)
    assert [one["seq"] for one in every["events"]] == [1, 2, 3, 4]
    assert every["events"][0]["type"] == "session_append"
    assert every["next"] == 4
    rest = shown.api("quarantine?projection=sessions&after=4")
    assert [one["seq"] for one in rest["events"]] == [5, 6]
    assert rest["next"] is None
    chosen = shown.api(f"quarantine?{urlencode({'reason': never['reason']})}")
    assert {one["seq"] for one in chosen["events"]} == {1, 2, 3, 4, 5}
    assert len(chosen["events"]) == 10

    one = shown.api("quarantine/event?seq=6")
    assert (one["id"], one["key"], one["hex"], one["bytes"]) == ("odd <id>", "session:S", "c1", 1)
    assert one["fault"]
    assert one["detail"] is None
    assert one["commands"]["dismiss"].startswith("projector quarantine dismiss 6 --note")
    assert shown.api("quarantine/event?seq=7", 404)["error"].startswith("there is no event 7")
    database.created("S")
    assert "not in quarantine" in shown.api("quarantine/event?seq=7", 404)["error"]


def test_actions_on_the_quarantine(database: Database, tmp_path: Path) -> None:
    database.created("S", "one")
    for number in range(3):
        database.appended(f"absent-{number}", "x")
    fold(database)
    with board(database, tmp_path / "state", "--allow-actions") as shown:
        post = lambda action, asked: shown.post(f"/api/v1/quarantine/{action}", asked)  # noqa: E731
        assert shown.api("status")["board"]["actions"] is True
        checked = post("check", {"seq": 2}).json["verdicts"]
        assert "never created" in checked["sessions"]
        fixed = event("session_append", {"messages": [{"role": "user", "content": "fixed"}]})
        fixed["sessionId"] = "S"
        assert post("check", {"seq": 2, "event": fixed}).json == {"verdicts": {"sessions": None}}

        refused = post("resubmit", {"seqs": [2, 3]}).json
        assert refused["seqs"] == {}
        assert "never created" in refused["failed"]["2"]["error"]
        alone = post("resubmit", {"seq": 2, "event": {"type": "session_append"}})
        assert alone.status == 409
        assert post("resubmit", {"seq": 2, "event": json.dumps(fixed)}).json["seqs"] == {"2": 5}
        database.created("absent-1")
        assert post("resubmit", {"seqs": [3]}).json == {"seqs": {"3": 7}, "failed": {}}
        fold(database)
        assert database.contents("S") == ["one", "fixed"]
        assert database.contents("absent-1") == ["x"]

        assert post("dismiss", {"seqs": [4], "note": "known"}).json == {"dismissed": 1}
        assert shown.api("quarantine")["undismissed"] == 0
        assert shown.api("quarantine/event?seq=4")["note"] == "known"
        assert post("dismiss", {"seqs": [1], "note": "x"}).status == 409
        for wrong in (
            {"seqs": [], "note": "x"},
            {"seqs": [4]},
            {"seqs": [4], "note": " "},
            {"seqs": ["4"], "note": "x"},
            {"seqs": [-1], "note": "x"},
            {"seqs": [2**64], "note": "x"},
            {"seqs": [4], "note": "x", "other": 1},
            [],
            b"{",
            b"\xff",
        ):
            assert post("dismiss", wrong).status == 400, wrong
        assert post("resubmit", {}).status == 400
        assert post("resubmit", {"seqs": [4], "seq": 4}).status == 400
        assert post("resubmit", b"x" * (33 * 1024 * 1024)).status == 413


def test_an_event_is_given_whole_to_be_corrected_or_not_at_all(
    database: Database, tmp_path: Path
) -> None:
    texts = [
        '{"type": "session_append", "n": 9007199254740993, "x": "' + "y" * 20_000 + '"}',
        "{oops",
    ]
    for data in (*texts, msgpack.packb({"type": "session_append", "n": 2**53 + 1})):
        database.insert("S", data)
    for lossy in (
        {"type": "session_append", "b": b"x"},
        {"type": "session_append", "x": "y" * 300_000},
    ):
        database.insert("S", msgpack.packb(lossy))
    fold(database)
    with board(database, tmp_path / "state") as shown:
        given = [shown.api(f"quarantine/event?seq={seq}")["text"] for seq in range(1, 6)]
        detail = shown.api("quarantine/event?seq=2")["detail"]
    assert detail == "line 1, column 2: object keys must be strings, near: {oops"
    assert given[:2] == texts
    assert given[2] == '{"type":"session_append","n":9007199254740993}'
    assert given[3:] == [None, None]


def test_what_doctor_and_status_say(database: Database, shown: Board) -> None:
    database.created("S")
    fold(database)

    checks = shown.api("doctor")["checks"]
    assert {"name", "level", "found", "fix"} == {*checks[0]}
    found = shown.api("status")
    assert found["board"] == {
        "actions": False,
        "search": False,
        "version": projector("--version").stdout.strip(),
        "database": found["database"],
    }
    assert found["newest"] == 1


def test_wrong_parameters_are_told(shown: Board) -> None:
    for wrong in (
        "sessions?limit=0",
        "sessions?limit=201",
        "sessions?limit=x",
        "sessions?limit=-1",
        "sessions?order=best",
        "sessions?waiting=2",
        "sessions?page=x",
        "sessions?page=e30",
        "sessions?order=created&page=WzFd",
        "session/events?id=x&after=x",
        "session/message?id=x",
        "quarantine/event",
        "quarantine/event?seq=99999999999999999999",
        "quarantine?limit=101",
        "session/diff?id=x&from=1",
        "changes?since=x",
        "changes?since=1",
        "changes?session=S&n=x",
        "search",
        "search?q=x&order=worst",
        "search?q=x&since=noon",
    ):
        answer = shown.get(f"/api/v1/{wrong}")
        assert answer.status in (400, 404), wrong
        assert answer.json["error"], wrong
    assert shown.get("/api/v1/nothing").json["error"]
    assert shown.get("/nothing").status == 404
    assert shown.get("/api/v1/sessions", method="DELETE").status == 405


def test_a_view_of_another_program_is_told_with_its_cure(database: Database, shown: Board) -> None:
    database.created("S", "one")
    fold(database)
    database.sql(BROKEN[database.engine])

    wrong = shown.api("session?id=S", 500)
    assert "was not written by projector" in wrong["error"]
    assert "projector replay --session=S -d" in wrong["hint"]


BROKEN = {
    "sqlite": "UPDATE view SET data = x'81a16100' WHERE key = 'session:S'",
    "postgresql": r"UPDATE view SET data = '\x81a16100' WHERE key = 'session:S'",
}


@pytest.mark.sqlite
def test_what_is_wrong_with_the_database_is_told(database: Database, shown: Board) -> None:
    database.created("S", "one")
    fold(database)
    hidden = database.path.rename(database.path.with_suffix(".hidden"))
    wrong = shown.api("sessions", 500)
    assert wrong["error"].startswith("there is no database at")
    assert "projector db setup -d" in wrong["hint"]
    hidden.rename(database.path)
    assert ids(shown.api("sessions")) == ["S"]


def test_nothing_is_kept_open_between_two_requests(database: Database, shown: Board) -> None:
    database.created("S", "one")
    fold(database)
    shown.api("session?id=S")
    shown.api("sessions")
    with shown.changes() as stream:
        stream.next()
        database.appended("S", "two")
        fold(database)
        stream.wait_for_session("S")
        while database.is_pinned():  # while it answers another read, and no longer
            time.sleep(0.01)
