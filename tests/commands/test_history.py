"""One session looked back at: its events, its view at any of them, what changed, and why."""

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import anyio
import msgpack
import pytest
from hypothesis import strategies as st
from support import PROJECTOR, T0, Database, event, logs, oracle, projector
from support.folding import run_once, target

from session_projector.projections import BUILT_IN
from session_projector.projections.event import MAX_EVENT_BYTES
from session_projector.projections.messagepack import decode_exact
from session_projector.worker.errors import CheckFailed, UsageError, naming
from session_projector.worker.sessions import time_travel as look_back
from session_projector.worker.sessions import timeline as history
from session_projector.worker.storage.port import Store


def run(database: Database, *arguments: str, **options: Any) -> str:
    return projector("session", *arguments, "-d", database.url, **options).stdout


def run_json(database: Database, *arguments: str) -> Any:
    return json.loads(run(database, *arguments, "--json"))


def refused(database: Database, *arguments: str, code: int) -> str:
    done = projector("session", *arguments, "-d", database.url, check=code)
    assert done.stdout == ""
    return done.stderr


def updated(database: Database, *, time: int = T0, **data: Any) -> int:
    return database.insert("A-1", event("session_updated", data, timestamp=time))


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


@pytest.fixture
def session(database: Database) -> Database:
    """A session of four events that fold, whose times are not in the order of the log."""
    database.created("A-1", "one", "two", project="web")
    updated(database, status="review", time=T0 + 5000)
    updated(database, status="done", time=T0 + 2000)
    updated(database, messages=said("uno"), time=T0 + 9000)
    return database


def test_the_beginning_of_an_id_is_enough_where_no_other_has_it(database: Database) -> None:
    for session_id in ("0199aaaa-1", "0199aaab-1", "0199", "0299bbbb-1", "0299bbbb-1.agent-7"):
        database.created(session_id, f"in {session_id}")
    anyio.run(run_once, database.url)

    assert "in 0299bbbb-1" in run(database, "view", "0299")
    assert "in 0299bbbb-1" in run(database, "view", "0299", "--at", "4")
    assert "session_created" in run(database, "history", "0299b")
    assert "session_created" in run(database, "why", "0299b")
    assert "seq 4" in run(database, "diff", "0299b", "1", "4")
    assert "in 0199\n" in run(database, "view", "0199")  # its whole id
    several = refused(database, "view", "0199aa", code=1)
    assert "several sessions begin with 0199aa: 0199aaaa-1, 0199aaab-1" in several
    assert "there is no session 029" in refused(database, "view", "029", code=1)


# A view at a position, whatever the log


@logs.examples(
    25, on_server=6, log=logs.logs, pair=st.tuples(st.integers(0, 26), st.integers(0, 26))
)
def test_looking_back_agrees_with_the_daemon_and_with_the_fold_of_the_prefix(
    database: Database, log: list[Any], pair: tuple[int, int]
) -> None:
    database = database.renewed()
    for key, data, created_at in log:
        database.insert(key, data, created_at=created_at)
    anyio.run(run_once, database.url, BUILT_IN)
    rows = database.log()
    folds = [oracle.fold(rows[:seq]).views for seq in range(len(rows) + 1)]

    reasons: dict[int, str] = {}
    with target(database.url).open() as store:
        for session_id in ["", *logs.SESSION_IDS]:
            key = f"session:{session_id}"
            views = [encoded.get(key) for encoded in folds]
            for seq, view in enumerate(views):
                assert view_at(store, session_id, seq) == repr(view and decode_exact(view[2]))
            newest = history.folded(store, session_id)
            row = newest and history.SESSIONS.to_row(newest)
            assert row == database.views().get(key)
            found = history.timeline(store, session_id)
            reasons |= {entry.seq: entry.reason for entry in found if entry.reason}
            check_diff(store, session_id, [views[min(at, len(rows))] for at in pair], pair)

    quarantine = dict(
        database.sql(
            "SELECT seq, reason FROM quarantine WHERE projection = 'sessions' AND key >= ''"
        )
    )
    assert reasons == quarantine


def view_at(store: Store, session_id: str, seq: int) -> str:
    """As text, in which 1, 1.0 and true differ."""
    try:
        return repr(look_back.view_at(store, session_id, look_back.point(str(seq))))
    except CheckFailed:
        return repr(None)


def check_diff(store: Store, session_id: str, views: list[Any], pair: tuple[int, int]) -> None:
    """What is said to have changed leads from one view to the other, and is nothing if both are
    the same."""
    points = [look_back.point(str(at)) for at in pair]
    if views == [None, None]:
        with pytest.raises(CheckFailed):
            look_back.diff(store, session_id, *points)
        return
    changes = look_back.diff(store, session_id, *points)
    before, after = [decode_exact(view[2]) if view else {"messages": []} for view in views]
    nothing = not changes.fields and not any(changes.messages.values())

    assert nothing == (before == after and repr(before) == repr(after))
    messages = dict(enumerate(before.pop("messages"), 1))
    for entry in changes.messages["removed"]:
        assert repr(messages.pop(entry["number"])) == repr(entry["message"])
    for entry in changes.messages["changed"]:
        assert repr(messages[entry["number"]]) == repr(entry["before"])
        messages[entry["number"]] = entry["after"]
    messages |= {entry["number"]: entry["message"] for entry in changes.messages["added"]}
    assert repr([message for _, message in sorted(messages.items())]) == repr(after.pop("messages"))
    for entry in changes.fields:
        assert before.get(entry["field"]) == entry["before"]
        before[entry["field"]] = entry["after"]
    assert {k: v for k, v in before.items() if v is not None and k != "id"} == {
        k: v for k, v in after.items() if k != "id"
    }


# history


@pytest.mark.sqlite
def test_history_lists_every_event_of_a_session_under_either_spelling(database: Database) -> None:
    database.created("A-1", "x")
    database.insert("A-1", {"type": "task_created", "timestamp": T0 + 5}, created_at=T0)
    database.created("A-2")
    database.insert("A-1", b"\x82\xa4type\xa1x\xa4data\x81\xc1", created_at=T0 // 1000)
    database.insert("A-1", '{"type": "session_append", "data": {}}', created_at=T0)
    database.insert("A-1", b"\xc1", created_at="soon", id=None)
    database.insert("A-1", b"\x81\xa4type\xaesession_app", id=b"\xff")

    listed = run_json(database, "history", "A-1")

    names = ("seq", "time", "type", "id", "quarantined")
    assert [tuple(entry[name] for name in names) for entry in listed] == [
        (1, T0, "session_created", "e1", None),
        (2, T0 + 5, "task_created", "e2", None),
        (4, T0, "x", "e4", "not MessagePack: byte 14 is 0xc1, which begins no value"),
        (5, T0, "session_append", "e5", "messages is missing or null"),
        (6, None, None, None, "not MessagePack: byte 0 is 0xc1, which begins no value"),
        (7, T0, None, "/w==", "not MessagePack: cut short after 18 bytes"),
    ]
    sizes = dict(database.sql("SELECT seq, length(data) FROM event_log"))
    assert all(entry["bytes"] == sizes[entry["seq"]] for entry in listed)
    table = run(database, "history", "A-1").splitlines()
    assert table[0].split() == ["seq", "time", "type", "bytes", "id", "quarantined"]
    assert table[2].split() == ["2", "2023-11-14T22:13:20.005+00:00", "task_created", "38", "e2"]
    assert table[4].split()[4:] == ["e5", "messages", "is", "missing", "or", "null"]


def test_an_oversized_event_is_listed_with_its_size_and_not_read_whole(database: Database) -> None:
    size = MAX_EVENT_BYTES + 1000
    head = b"\x82\xa4type\xaesession_append\xa4data\xc6" + size.to_bytes(4, "big")
    database.created("A-1")
    database.insert("A-1", head + bytes(size))
    database.insert("A-1", "ä" * MAX_EVENT_BYTES)

    _, blob, text = run_json(database, "history", "A-1")
    with target(database.url).open() as store:
        row = store.log.event(2)

    assert (blob["bytes"], blob["type"]) == (len(head) + size, "session_append")
    assert (text["bytes"], text["type"]) == (2 * MAX_EVENT_BYTES, None)
    assert "larger than 16777216 bytes" in blob["quarantined"]
    assert text["quarantined"] == blob["quarantined"]
    assert len(row.data) == MAX_EVENT_BYTES + 1


@pytest.mark.once
def test_what_an_event_says_never_moves_the_terminal(database: Database) -> None:
    nasty = "\x1b[2J\x9b\u202e\nx"
    message = {"role": nasty, "content": nasty, nasty: 1}
    data = {"project": nasty, "status": nasty, "messages": [message]}
    database.insert("A-1", event("session_created", data), id=nasty)
    database.insert("A-1", {"type": nasty * 99}, id=nasty + "2")
    updated(database, messages=[{**message, nasty: 2}], status=nasty * 2)

    for command in (["history"], ["why"], ["diff", "1", "3"], ["diff", "0", "3"]):
        for form in ([], ["--json"]):
            shown = run(database, command[0], "A-1", *command[1:], *form)
            assert not set(shown) & {"\x1b", "\x9b", "\u202e"}
            assert "\\u001b[2J" in shown
            assert form or max(map(len, shown.splitlines())) < 200
    assert len(run(database, "history", "A-1").splitlines()) == 4


def test_a_session_that_is_being_folded_pins_no_write_ahead_log(session: Database) -> None:
    with target(session.url).open() as store:
        steps = history.timeline(store, "A-1")
        next(steps)
        session.appended("A-1", "meanwhile")
        busy = session.is_pinned()
        rest = len(list(steps))

    assert (busy, rest) == (False, 3)


def test_a_reader_that_leaves_early_or_waits_troubles_nobody(database: Database) -> None:
    database.created("A-1")
    for number in range(500):  # more than a pipe holds
        database.insert("A-1", b"\xc1", id=f"{number}-{'x' * 190}")
    command = [*PROJECTOR, "session", "history", "A-1", "-d", database.url]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert listing.stdout.readline().startswith(b"seq")
        database.appended("A-1", "while the pipe is full")
        busy = database.is_pinned()
        listing.stdout.close()
        complaint = listing.stderr.read()

    assert not busy
    assert (complaint, listing.returncode) == (b"", 141)


def look_backs(store: Store) -> list[Callable[[], Any]]:
    """Each way to look back at the session A-1 but its history."""
    newest = look_back.point("9")
    return [
        partial(look_back.view_at, store, "A-1", newest),
        partial(look_back.diff, store, "A-1", newest, newest),
        partial(look_back.why, store, "A-1"),
    ]


@pytest.mark.once
def test_a_session_without_events_is_exit_1(database: Database) -> None:
    assert "there is no session A-1" in refused(database, "history", "A-1", code=1)
    with target(database.url).open() as store:
        for look in look_backs(store):
            with pytest.raises(CheckFailed, match="there is no session A-1"):
                look()


def test_a_session_of_which_nothing_folds_has_a_history_and_no_view(database: Database) -> None:
    database.insert("A-1", {"type": "task_created"})
    database.appended("A-1", "never created")

    with target(database.url).open() as store:
        listed = history.listing(store, "A-1")

        assert [step.reason is None for step in listed] == [True, False]
        for look in look_backs(store):
            with pytest.raises(CheckFailed, match="none of the events of session A-1") as raised:
                look()
            hint = naming(database.url, raised.value.hint)
            assert f"`projector session history A-1 -d {database.named}`" in hint
    assert "none of the events of session A-1" in refused(
        database, "view", "A-1", "--at", "9", code=1
    )


# view --at


@pytest.mark.parametrize(
    ("form", "shown"),
    [("markdown", "project web · review"), ("table", "review"), ("json", '"status": "review"')],
)
def test_view_shows_a_session_as_it_was_without_a_daemon(
    session: Database, form: str, shown: str
) -> None:
    assert shown in run(session, "view", "A-1", "--at", "2", "-f", form)


@pytest.mark.once
@pytest.mark.parametrize(
    ("at", "status", "messages"),
    [
        ("2023-11-14T22:13:20Z", "ready", 2),
        ("2023-11-14T22:13:21.999+00:00", "ready", 2),
        ("2023-11-15 00:13:22+02:00", "done", 2),  # its event comes after one of a later time
        ("2023-11-14T22:13:28.999999Z", "done", 2),
        ("2023-11-14T22:13:29Z", "done", 1),
        ("9999-12-31T23:59:59-12:00", "done", 1),
        ("1", "ready", 2),
        ("2", "review", 2),
        (str(2**63 - 1), "done", 1),
    ],
)
def test_a_time_means_up_to_the_last_event_not_later(
    session: Database, at: str, status: str, messages: int
) -> None:
    with target(session.url).open() as store:
        view = look_back.view_at(store, "A-1", look_back.point(at))

    assert (view["status"], len(view["messages"])) == (status, messages)


@pytest.mark.once
def test_a_time_as_small_as_a_position_is_a_time(database: Database) -> None:
    database.insert("A-1", event("session_created", {"project": "web"}, timestamp=0))
    updated(database, status="done", time=0)

    with target(database.url).open() as store:
        view = look_back.view_at(store, "A-1", look_back.point("1970-01-01T00:00:00Z"))

    assert view["status"] == "done"


@pytest.mark.once
def test_the_time_of_an_event_that_does_not_fold_is_no_point(session: Database) -> None:
    session.insert("A-1", event("session_created", {"project": "twice"}, timestamp=T0 + 20_000))

    with target(session.url).open() as store:
        view = look_back.view_at(store, "A-1", look_back.point("2023-11-14T22:13:50Z"))

    assert (view["project"], view["updatedAt"]) == ("web", T0 + 9000)


@pytest.mark.once
def test_a_time_without_an_offset_is_utc_and_a_date_its_midnight(session: Database) -> None:
    environment = {**os.environ, "TZ": "XXX+2"}  # two hours behind UTC

    for at in ("2023-11-14T22:13:25", "2023-11-14T20:13:25-02:00", "2023-11-15"):
        view = json.loads(run(session, "view", "A-1", "--at", at, "-f", "json", env=environment))
        assert view["status"] == "done"
    early = projector(
        *("session", "view", "A-1", "--at", "2023-11-14T22:13:19", "-d", session.url),
        env=environment,
        check=1,
    )
    assert "begins after that, at seq 1 (2023-11-14T22:13:20.000+00:00)" in early.stderr


@pytest.mark.parametrize(
    "at",
    [
        "yesterday",
        "2026-03-01+02:00",
        "2026-03-01x12:00",
        "2026-03-01T12:00 Z",
        "",
        "-1",
        "+1",
        "1.5",
        "٣",
        str(2**63),
        "9" * 5000,
    ],
)
def test_a_point_that_is_neither_position_nor_time_is_a_usage_error(at: str) -> None:
    with pytest.raises(UsageError):
        look_back.point(at)


@pytest.mark.once
def test_bad_points_and_points_before_the_beginning_are_said_on_the_command_line(
    session: Database,
) -> None:
    for odd in ("x\x1b", ""):
        assert "neither a position" in refused(session, "view", "A-1", "--at", odd, code=2)
    assert "neither a position" in refused(session, "diff", "A-1", "1", "x", code=2)
    assert "begins after that, at seq 1" in refused(session, "view", "A-1", "--at", "0", code=1)
    assert "begins after that, at seq 1" in refused(session, "diff", "A-1", "0", "0", code=1)


# diff


def test_diff_says_what_changed_by_field_and_message_number(session: Database) -> None:
    session.appended("A-1", "due", "tre")

    assert run(session, "diff", "A-1", "2", "5").splitlines() == [
        "seq 2 → seq 5",
        "status: review → done",
        "updatedAt: 2023-11-14T22:13:25.000+00:00 → 2023-11-14T22:13:20.000+00:00",
        "message 1 changed (content):",
        "  - user: one",
        "  + user: uno",
        "message 2 changed (role, content):",
        "  - user: two",
        "  + assistant: due",
        "message 3 added: assistant: tre",
    ]
    back = run(session, "diff", "A-1", "5", "2")
    assert "status: done → review" in back
    assert "message 3 removed: assistant: tre" in back


@pytest.mark.once
def test_diff_in_json_names_the_events_and_keeps_values(session: Database) -> None:
    assert run_json(session, "diff", "A-1", "2", "2023-11-14T22:13:29Z") == {
        "session_id": "A-1",
        "from": 2,
        "to": 4,
        "fields": [
            {"field": "status", "before": "review", "after": "done"},
            {"field": "updatedAt", "before": T0 + 5000, "after": T0 + 9000},
        ],
        "messages": {
            "added": [],
            "removed": [{"number": 2, "message": said("two")[0]}],
            "changed": [{"number": 1, "before": said("one")[0], "after": said("uno")[0]}],
        },
    }


@pytest.mark.once
def test_diff_from_before_the_beginning_adds_everything(session: Database) -> None:
    changed = run_json(session, "diff", "A-1", "0", "1")
    shown = run(session, "diff", "A-1", "0", "1")

    assert (changed["from"], changed["to"]) == (None, 1)
    assert [entry["before"] for entry in changed["fields"]] == [None] * 4
    assert [entry["number"] for entry in changed["messages"]["added"]] == [1, 2]
    assert shown.startswith("before the session began at seq 1 → seq 1\nproject: (none) → web\n")


@pytest.mark.once
def test_values_that_only_python_takes_for_the_same_are_changes(database: Database) -> None:
    values: list[Any] = [1, 1.0, True, b"\x01"]
    database.created("A-1")
    for value in values:
        updated(database, messages=[{"role": "user", "content": "same", "n": value}])

    with target(database.url).open() as store:
        for seq, (before, after) in enumerate(pairwise(values), 2):
            points = look_back.point(str(seq)), look_back.point(str(seq + 1))
            (changed,) = look_back.diff(store, "A-1", *points).messages["changed"]
            assert (repr(changed["before"]["n"]), repr(changed["after"]["n"])) == (
                repr(before),
                repr(after),
            )

    shown = run(database, "diff", "A-1", "2", "3")
    assert 'message 1 changed (n):\n  - {"n": 1}\n  + {"n": 1.0}\n' in shown
    database.insert("A-1", same_in_other_bytes())
    assert "message 1 changed (how it is encoded)" in run(database, "diff", "A-1", "2", "6")


def same_in_other_bytes() -> bytes:
    """As the first of those above, its 1 in two bytes."""
    packed = msgpack.packb(
        event("session_updated", {"messages": [{"role": "user", "content": "same", "n": 1}]})
    )
    return packed.replace(b"\xa1n\x01", b"\xa1n\xcc\x01")


@pytest.mark.once
def test_no_change_is_said_to_be_none(session: Database) -> None:
    updated(session, status="done", time=T0 + 9000)

    assert run(session, "diff", "A-1", "4", "5") == "seq 4 → seq 5\nnothing changed\n"


# why


def test_why_names_the_event_that_last_set_each_field(session: Database) -> None:
    updated(session, status="done", project=None, time=T0 + 10_000)  # done it was before
    session.insert("A-1", b"\xc1")

    found = run_json(session, "why", "A-1")

    assert {entry["field"]: (entry["value"], entry["seq"]) for entry in found["fields"]} == {
        "id": ("A-1", 1),
        "project": ("web", 1),
        "messages": (1, 4),
        "status": ("done", 5),
        "createdAt": (T0, 1),
        "updatedAt": (T0 + 10_000, 5),
    }
    assert list(found) == ["session_id", "fields", "messages"]
    by = {"seq": 5, "time": T0 + 10_000, "type": "session_updated", "id": "e5"}
    assert found["fields"][3] == {"field": "status", "value": "done", **by}


def test_why_says_which_messages_came_with_which_event(database: Database) -> None:
    database.created("A-1", "one", "two")
    database.insert("A-1", event("session_append", {"messages": []}))
    database.insert("A-1", event("session_status_update", {"status": "done"}))
    database.appended("A-1", "three")

    rows = [line.split() for line in run(database, "why", "A-1").splitlines()]
    assert [row[:3] for row in rows[-2:]] == [["messages", "1-2", "1"], ["messages", "3", "4"]]
    assert rows[3][:3] == ["messages", "3", "4"]

    updated(database, messages=said("uno"))
    database.appended("A-1", "due", "tre")
    runs = run_json(database, "why", "A-1")["messages"]
    assert [(entry["first"], entry["last"], entry["seq"]) for entry in runs] == [
        (1, 1, 5),
        (2, 3, 6),
    ]
    updated(database, messages=[])
    assert run_json(database, "why", "A-1")["messages"] == []


@pytest.mark.once
@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("b" * 185 + "one", "b" * 185 + "two", ["b" * 20 + 'one"}', "b" * 20 + 'two"}']),
        (b"\0", "AA==", ['- user: ```json "AA==" ```', "+ user: AA=="]),
        (float("nan"), None, ["- {'content': nan}", "+ {'content': None}"]),
    ],
)
def test_a_change_is_shown_where_it_is(
    database: Database, before: Any, after: Any, lines: list[str]
) -> None:
    for content in (before, after):
        data = {"project": "P", "messages": [{"role": "user", "content": content}]}
        kind = "session_updated" if content is after else "session_created"
        database.insert("A-1", event(kind, data))

    said = run(database, "diff", "A-1", "1", "2")

    assert "message 1 changed (content):" in said
    assert all(line in said for line in lines), said
