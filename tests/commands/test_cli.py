"""The commands as a user types them."""

import json
import os
import re
import select
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support import PROJECTOR, T0, Database, daemon, event, projector, shell
from support.folding import examine, target

from session_projector.projections.session_index import SessionIndex
from session_projector.worker.operations.event_types import types


def run(database: Database, *arguments: str, **options: Any) -> str:
    return projector(*arguments, "-d", database.url, **options).stdout


def fold(database: Database) -> None:
    run(database, "run", "--once")


def refused(database: Database, *arguments: str, code: int, **options: Any) -> str:
    done = projector(*arguments, "-d", database.url, check=code, **options)
    assert done.stdout == ""
    assert done.stderr.startswith("projector: ")
    return done.stderr


def test_queue_append_and_status_without_waiting_for_a_fold(database: Database) -> None:
    session_id = run(database, "session", "queue", "-p", "web", "Fix it").strip()
    said = '[{"role": "assistant", "content": "Fixed"}]'
    run(database, "session", "append", session_id, "-m", said)
    run(database, "session", "status", session_id, "review")
    fold(database)

    assert session_id == "web-1"
    view = database.view("web-1")
    assert [message["content"] for message in view["messages"]] == ["Fix it", "Fixed"]
    assert (view["project"], view["status"]) == ("web", "review")
    assert run(database, "session", "status", "web-1") == "review\n"


def test_what_was_written_is_told_as_json(database: Database) -> None:
    said = '[{"role": "user", "content": "x"}]'
    queue = ("session", "queue", "-p", "web", "Fix it")
    writes = [
        queue,
        ("session", "append", "web-1", "-m", said),
        ("session", "status", "web-1", "a"),
    ]

    told = [json.loads(run(database, *write, "--json")) for write in writes]

    assert told == [{"session_id": "web-1", "seq": seq} for seq in (1, 2, 3)]
    fold(database)
    status = json.loads(run(database, "session", "status", "web-1", "--json"))
    assert status == {"session_id": "web-1", "status": "a"}


def test_queue_takes_the_id_of_a_session_that_is_not_there_yet(database: Database) -> None:
    database.appended("mine", "too early")
    said = '[{"role": "user", "content": "Go on"}]'
    advised = refused(database, "session", "append", "mine", "-m", said, code=1)
    assert "`projector session queue --session mine -p PROJECT MESSAGE -d" in advised

    queue = ("session", "queue", "--session", "mine", "-p", "P", "Fix it")
    assert run(database, *queue, "--id", "q") == run(database, *queue, "--id", "q") == "mine\n"

    assert "session mine is there already" in refused(database, *queue, code=1)
    refused(database, "session", "queue", "--session", "other", *queue[4:], "--id", "q", code=2)
    refused(database, "session", "queue", "--session", "", *queue[4:], code=2)
    fold(database)
    assert database.contents("mine") == ["Fix it"]
    assert len(database.log()) == 2


def test_a_message_that_is_wrong_is_counted_from_1(database: Database) -> None:
    database.created("A-1")
    said = '[{"role": "user", "content": "x"}, {"content": "x"}]'

    wrong = refused(database, "session", "append", "A-1", "-m", said, code=2)

    assert "message 2 has no role" in wrong


def test_a_list_without_sessions_says_so(database: Database) -> None:
    done = projector("session", "list", "-d", database.url)

    assert (done.stdout, done.stderr) == ("", "no session matches\n")
    assert run(database, "session", "list", "--json") == "[]\n"


def test_append_reads_standard_input_and_stop_sets_ready(database: Database) -> None:
    database.created("A-1")
    run(database, "session", "status", "A-1", "in-progress")
    said = json.dumps([{"role": "user", "content": "ü"}, {"role": "tool", "content": [1, None]}])
    position = run(database, "session", "append", "A-1", "-m", "-", "--stop", stdin=said)
    fold(database)

    assert database.contents("A-1") == ["ü", [1, None]]
    assert database.view("A-1")["status"] == "ready"
    assert int(position) == database.position() == 4


def test_numbers_go_on_above_the_highest_in_use_in_either_spelling(database: Database) -> None:
    for key in ("web-2", "session:web-7", "web-x", "web-1-9", "other-50", "web-007"):
        database.insert(key, {"type": "session_created", "data": {"project": "web"}})

    assert run(database, "session", "queue", "-p", "web", "x") == "web-8\n"
    assert run(database, "session", "queue", "-p", "web-1", "x") == "web-1-10\n"


def test_two_processes_never_get_the_same_number(database: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        queue = partial(run, database, "session", "queue", "-p", "A", "x")
        ids = [said.strip() for said in threads.map(lambda _: queue(), range(8))]

    assert sorted(ids) == [f"A-{number}" for number in range(1, 9)]


def test_writers_only_insert_as_a_foreign_process_would(database: Database) -> None:
    run(database, "session", "queue", "-p", "A", "x")

    ((_, event_id, key, data, created_at),) = database.log()
    written = msgpack.unpackb(data)
    assert (key, written["sessionId"], written["type"]) == (
        "session:A-1",
        "A-1",
        "session_created",
    )
    assert written["timestamp"] == created_at > T0
    assert event_id
    assert database.views() == {}


@pytest.mark.once
@pytest.mark.parametrize(
    "messages",
    [
        "",
        "x",
        "{}",
        "[]",
        "[1]",
        '[{"role": "user"}]',
        '[{"content": "x"}]',
        '[{"role": 1, "content": "x"}]',
        '[{"role": "user", "content": 1e999}]',
        '[{"role": "user", "content": 18446744073709551616}]',
        '[{"role": "user", "content": "\\ud800"}]',
    ],
)
def test_messages_that_are_none_are_a_usage_error(database: Database, messages: str) -> None:
    database.created("A-1")

    refused(database, "session", "append", "A-1", "-m", messages, code=2)
    assert len(database.log()) == 1


def test_a_session_that_is_not_there_is_exit_1(database: Database) -> None:
    database.appended("A-1", "never created")
    said = '[{"role": "user", "content": "x"}]'

    assert "no session A-1" in refused(database, "session", "view", "A-1", code=1)
    assert "no session A-1" in refused(database, "session", "append", "A-1", "-m", said, code=1)
    assert "no session A-1" in refused(database, "session", "status", "A-1", "done", code=1)
    assert len(database.log()) == 1


def test_a_session_that_is_not_folded_yet_is_said_to_be(database: Database) -> None:
    database.created("A-1")

    assert "not yet folded" in refused(database, "session", "view", "A-1", code=1)


@pytest.mark.once
def test_an_empty_status_is_a_usage_error(database: Database) -> None:
    database.created("A-1")

    assert "status is empty" in refused(database, "session", "status", "A-1", "", code=2)


def test_list_filters_by_project_and_status(database: Database) -> None:
    for session_id, status in (("A-1", "ready"), ("A-2", "done"), ("A-3", "in-progress")):
        database.created(session_id, "x", project="A")
        run(database, "session", "status", session_id, status)
    database.created("B-1", project="B")
    fold(database)

    def ids(*arguments: str) -> list[str]:
        listed = run(database, "session", "list", "--json", *arguments)
        assert run(database, "session", "list", "-f", "json", *arguments) == listed
        return [session["session_id"] for session in json.loads(listed)]

    assert ids() == ["A-1", "A-2", "A-3", "B-1"]
    assert ids("-p", "A") == ["A-1", "A-2", "A-3"]
    assert ids("-p", "A", "-s", "ready,in-progress") == ["A-1", "A-3"]
    assert ids("-p", "C") == []
    table = run(database, "session", "list", "-p", "B").splitlines()
    assert table[0].split() == ["id", "project", "status", "messages", "updated", "title"]
    assert table[1].split()[:4] == ["B-1", "B", "ready", "0"]
    assert run(database, "session", "list", "-p", "B", "-f", "markdown").startswith("| id | ")


NASTY = "\x1b[31mred\x1b[0m \x07 \x9b2J \u202e \x00 \r | grün 頑張って 🤖"


@pytest.mark.once
@pytest.mark.parametrize("form", ["table", "json", "markdown"])
def test_control_characters_never_reach_the_terminal_raw(database: Database, form: str) -> None:
    name = NASTY if database.engine == "sqlite" else NASTY.replace("\x00", "")
    database.insert(
        f"session:{name}",
        event(
            "session_created",
            {
                "project": NASTY,
                "status": NASTY,
                "messages": [{"role": NASTY, "content": NASTY}, {"role": "x", "content": [NASTY]}],
            },
        ),
    )
    database.insert(name, b"\xc1")
    fold(database)
    view = ["session", "view", NASTY.replace("\x00", ""), "-f", form]

    said = run(database, "session", "list", "-f", form)
    said += run(database, "quarantine", "list", *(["--json"] if form == "json" else []))
    said += projector(*view, "-d", database.url, check=None).stderr
    said += run(database, "status", *(["--json"] if form == "json" else []))

    assert not {c for c in said if c in NASTY and (c < " " or "\x7f" <= c <= "\x9f")} - {"\n"}
    assert "\u202e" not in said
    assert "頑張って 🤖" in said


@pytest.mark.once
@pytest.mark.parametrize("form", ["table", "json", "markdown"])
def test_view_shows_a_session_printably(database: Database, form: str) -> None:
    data = {"project": "A", "messages": [{"role": "user\x1b", "content": "\x1b[1mbold ü"}]}
    database.insert("A-1", event("session_created", data))
    fold(database)

    said = run(database, "session", "view", "A-1", "-f", form)

    assert "\x1b" not in said
    assert "[1mbold ü" in said
    assert "A-1" in said


def test_json_shows_what_json_cannot_hold_by_the_rules_of_the_contract(database: Database) -> None:
    content = (
        b"\x88"  # a map of eight
        b"\xa1b\xc4\x02\x00\xff"  # binary
        b"\xa1e\xd4\x05a"  # an extension type
        b"\xa1t\xd6\xff\x00\x00\x00\x01"  # a time
        b"\xa1n\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"  # NaN
        b"\xa1u\xcf\xff\xff\xff\xff\xff\xff\xff\xff"  # 2^64 - 1
        b"\x01\xa1i"  # an integer key
        b"\xc0\xa1k"  # a nil key
        b"\xa1f\xca\x3f\x00\x00\x00"  # a 32-bit float
    )
    head = b"\x82\xa4type\xafsession_created\xa4data\x82\xa7project\xa1A\xa8messages\x91"
    database.insert("A-1", head + b"\x82\xa4role\xa1u\xa7content" + content)
    fold(database)

    view = json.loads(run(database, "session", "view", "A-1", "-f", "json"))

    assert view["messages"][0]["content"] == {
        "b": "AP8=",
        "e": {"ext": 5, "data": "YQ=="},
        "t": {"ext": -1, "data": "AAAAAQ=="},
        "n": None,
        "u": 2**64 - 1,
        "1": "i",
        "null": "k",
        "f": 0.5,
    }
    assert list(view) == ["id", "project", "messages", "status", "createdAt", "updatedAt"]


def test_a_catch_up_says_what_it_did_and_where_most_of_it_went_wrong(database: Database) -> None:
    database.created("A-1")
    database.insert("A-1", {"type": "unknown", "data": {}})
    database.insert("A-1", {"type": "session_append", "data": {}})
    said = run(database, "run", "--once")
    assert "sessions: up to event 3; events: 1 folded, 1 quarantined, 1 skipped\n" in said
    assert "sessions: up to event 3; events: 0 folded" in run(database, "run", "--once")

    database.insert("A-1", {"type": "session_append", "data": {}})
    most = projector("run", "--once", "-d", database.url, check=1)
    assert "session_index: up to event 4; events: 0 folded, 1 quarantined, 0" in most.stdout
    assert "more events went to quarantine than were folded, for " in most.stderr
    assert f"`projector quarantine list -d {database.named}`" in most.stderr


def test_quarantine_list_says_which_and_why(database: Database) -> None:
    assert "nothing is quarantined" in run(database, "quarantine", "list")
    database.insert("A-1", {"type": "session_append", "data": {}}, id="bad")
    run(database, "run", "--once", check=1)

    rows = json.loads(run(database, "quarantine", "list", "--json"))
    assert [row.pop("projection") for row in rows] == ["session_index", "sessions"]
    reason = "messages is missing or null"
    assert rows == [{"seq": 1, "id": "bad", "key": "A-1", "reason": reason, "dismissed": None}] * 2
    assert "messages is missing" in run(database, "quarantine", "list")


@pytest.mark.once
@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ('{"type": "session_append", "data": {"messages": [{}]}}', 0, "its row's key names"),
        (event("session_append", {"messages": [{}]}, sessionId="A-1"), 0, "would fold"),
        (event("session_append", {"messages": [{}]}, sessionId="A-2"), 1, "never created"),
        (event("session_created", {"project": "A"}, sessionId="A-1"), 1, "came twice"),
        (event("session_append", {"messages": []}, sessionId="A-1"), 1, "messages is empty"),
        (event("task_created", {}), 0, "would be skipped"),
        (event("session-apend", {}), 1, "did you mean session_append?"),
        ("", 1, "not JSON"),
        ("[1", 1, "line 1, column 3: it ends before the event does, near: [1"),
        (b"\x81", 1, "not MessagePack"),
        (b"\xff", 1, "not a map"),
    ],
)
def test_event_check_says_whether_and_why_not(
    database: Database, tmp_path: Path, data: Any, code: int, words: str
) -> None:
    database.created("A-1")
    if isinstance(data, dict):
        data = msgpack.packb(data)
    file = tmp_path / "event"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())

    for done in (
        projector("event", "check", "-d", database.url, stdin=data, check=code),
        projector("event", "check", file, "-d", database.url, check=code),
    ):
        assert words in done.stdout + done.stderr


def test_event_check_prints_json(database: Database) -> None:
    said = projector("event", "check", "--json", "-d", database.url, stdin="{oops", check=1).stdout

    found = json.loads(said)
    assert found["session_id"] is found["did_you_mean"] is None
    assert "not JSON" in found["projections"]["sessions"]
    assert found["detail"] == "line 1, column 2: object keys must be strings, near: {oops"


def test_event_types_tells_who_folds_them_and_what_was_meant(database: Database) -> None:
    assert projector("event", "types", "-d", database.url).stderr == "there is no event yet\n"
    for kind in ("session_apend", "task_created", "session_apend"):
        database.insert("A-1", event(kind, {}))
    database.created("A-1")

    said = projector("event", "types", "-d", database.url)
    found = json.loads(projector("event", "types", "--json", "-d", database.url).stdout)

    assert "none, skipped: did you mean session_append?" in said.stdout
    assert said.stderr == ""
    assert (found["events"], found["looked_at"]) == (4, 4)
    assert [tuple(one.values()) for one in found["types"]] == [
        ("session_apend", 2, 1, 3, [], "session_append"),
        ("session_created", 1, 4, 4, ["sessions", "session_index"], None),
        ("task_created", 1, 2, 2, [], None),
    ]
    warned = [one for one in examine(database.url) if one.check == "event types"]
    assert [(one.level, "did you mean session_append?" in one.found) for one in warned] == [
        ("warn", True)
    ]


def test_event_types_looks_at_the_newest_events_only(database: Database) -> None:
    for _ in range(101):
        database.appended("A-1", "x")
    with target(database.url).open() as store:
        few = types(store, positions=3)
        little = types(store, characters=1)

    assert (few.events, few.looked_at, few.types[0].first) == (101, 3, 99)
    assert (little.looked_at, little.types[0].first) == (100, 2)


def test_event_check_works_without_a_database(tmp_path: Path) -> None:
    data = msgpack.packb(event("session_append", {"messages": [{}]}, sessionId="A-1"))

    said = projector("event", "check", "-d", tmp_path / "absent.db", stdin=data).stdout

    assert "would fold" in said
    projector("event", "check", tmp_path / "absent", check=2)


def test_status_tells_how_things_stand_with_and_without_a_daemon(database: Database) -> None:
    database.created("A-1")
    database.insert("A-1", {"type": "task_created"})
    database.insert("A-1", b"\xc1")
    fold(database)
    database.insert("A-1", {"type": "task_created"}, created_at=T0)

    status = json.loads(run(database, "status", "--json"))

    sessions, index = status["projections"]
    assert status["newest"] == 4
    nobody = {
        "alive": False,
        "pid": None,
        "stopped": False,
        "running": [],
        "seen": False,
        "host": "",
        "trouble": None,
    }
    assert status["daemon"] == nobody
    assert status["file_bytes"] > 0
    expected = {
        "position": 3,
        "lag_events": 1,
        "views": 1,
        "quarantined": 1,
        "skipped": 1,
        "fits_log": True,
    }
    assert sessions.items() >= (expected | {"name": "sessions", "version": 2}).items()
    assert index.items() >= (expected | {"name": "session_index", "version": 3}).items()
    assert sessions["lag_seconds"] > 1_000_000
    readable = run(database, "status")
    assert "none is alive" in readable
    with daemon(database.url) as running:
        running.wait_until_at(4)
        readable = run(database, "status")
        assert f"alive, process {running.process.pid}" in readable
        running.suspend()
        readable = run(database, "status")
        assert f"suspended (SIGSTOP), process {running.process.pid}" in readable
        assert (
            f"resume it, as no other takes over from it: `kill -CONT {running.process.pid}`"
            in readable
        )


@pytest.mark.parametrize(
    "odd", [pytest.param("no time", marks=pytest.mark.sqlite), None, 4_000_000_000_000]
)
def test_a_lag_is_the_age_of_the_first_event_that_has_one(database: Database, odd: Any) -> None:
    database.insert("A-1", {"type": "anything"}, created_at=odd)
    alone = json.loads(run(database, "status", "--json"))["projections"][0]
    readable = run(database, "status")
    database.created("A-2")
    beside = json.loads(run(database, "status", "--json"))["projections"][0]

    assert (alone["lag_events"], alone["lag_seconds"]) == (1, None)
    assert "1 event, no valid time" in readable
    assert beside["lag_events"] == 2
    assert beside["lag_seconds"] > 1_000_000


def test_the_database_comes_from_flag_environment_or_folder(tmp_path: Path) -> None:
    environment = {"PROJECTOR_DATABASE": str(tmp_path / "env.db")}
    projector("db", "setup", env=environment, cwd=tmp_path)
    projector("db", "setup", "-d", "sqlite://" + str(tmp_path / "flag.db"), env=environment)
    projector("db", "setup", cwd=tmp_path, env={})

    assert {"env.db", "flag.db", "local.db"} == {entry.name for entry in tmp_path.glob("*.db")}


def test_a_database_of_an_engine_that_is_not_there_is_a_usage_error() -> None:
    assert "mysql" in projector("status", "-d", "mysql://h/d", check=2).stderr


@pytest.mark.parametrize(
    "arguments", [["--nope"], ["session"], ["session", "view"], ["session", "list", "-f", "xml"]]
)
def test_wrong_words_are_exit_2(arguments: list[str]) -> None:
    projector(*arguments, check=2)


def test_version_and_help() -> None:
    assert projector("--version").stdout.strip()
    assert "quarantine" in projector("--help").stdout


@pytest.mark.parametrize("project", ["a  b", " lead", "日本\u3000語"])
def test_the_id_that_queue_prints_is_the_sessions_id(database: Database, project: str) -> None:
    done = projector("session", "queue", "-p", project, "x", "-d", database.url, check=None)

    if done.returncode == 0:
        session_id = done.stdout.removesuffix("\n")
        said = '[{"role": "user", "content": "y"}]'
        run(database, "session", "append", session_id, "-m", said)
        assert session_id == f"{project}-1"
    else:
        assert done.returncode == 2
        assert database.log() == []


@pytest.mark.once
@pytest.mark.parametrize("project", ["", "a\nb", "a\tb", "\x1b[31m", "\u202e"])
def test_a_project_that_cannot_be_seen_is_a_usage_error(database: Database, project: str) -> None:
    refused(database, "session", "queue", "-p", project, "x", code=2)


def test_a_row_that_another_program_wrote_is_said_to_be_one(database: Database) -> None:
    database.created("A-1", "x")
    fold(database)
    for data in ({"id": "A-1"}, {"sessionId": "A-1"}, {"id": "A-1", "messages": [1]}):
        database.sql("UPDATE view SET data = ?", msgpack.packb(data))
        for command in (["session", "view", "A-1"], ["session", "status", "A-1"]):
            assert "not written by projector" in refused(database, *command, code=4)


def test_status_says_when_the_log_is_not_the_one_that_was_folded(database: Database) -> None:
    database.created("A-1")
    fold(database)
    database.sql("UPDATE checkpoint SET position = 999")

    said = run(database, "status")
    assert "truncated or replaced: checkpoints sessions@999, session_index@999 do not match" in said


@pytest.mark.parametrize(
    ("path", "code"),
    [("loop/x.db", 4), ("x" * 300, 4), ("", 2), (b"\xff.db", 4), ("/", 4), ("/dev/null", 4)],
)
def test_odd_paths_are_refused_without_a_traceback(
    tmp_path: Path, path: str | bytes, code: int
) -> None:
    (tmp_path / "loop").symlink_to("loop")

    for command in (["status"], ["run"], ["session", "list"]):
        projector(*command, "-d", os.fsdecode(path), cwd=tmp_path, check=code)


def test_a_database_by_a_name_that_is_not_utf8_works(tmp_path: Path) -> None:
    for command in (["db", "setup"], ["run", "--once"], ["status"]):
        subprocess.run([*PROJECTOR, *command, "-d", b"\xff?#%.db"], cwd=tmp_path, check=True)


@pytest.mark.once
def test_output_that_cannot_be_written_is_said_without_a_traceback(database: Database) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROJECTOR, "status", "-d", database.url],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr.splitlines() == ["projector: standard output: No space left on device"]


@pytest.mark.once
@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_closed_streams_take_nothing_but_what_is_said_there(
    database: Database, tmp_path: Path, closed: str
) -> None:
    database.created("A-1")

    def closing(*arguments: str | Path) -> tuple[int, str]:
        program = ["bash", "-c", f'exec "$@" {closed}', "bash", *PROJECTOR]
        done = subprocess.run([*program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        return done.returncode, done.stdout

    code, said = closing("run", "--once", "-d", database.url)
    assert (code, said.count("up to event 1")) == (0, 2)
    assert closing("session", "list", "-d", database.url)[1].count("A-1") == 1
    assert closing("status", "-d", tmp_path / "absent.db") == (4, "")


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_machine_without_devices_is_no_traceback(database: Database) -> None:
    status = shlex.join([*PROJECTOR, "status", "-d", database.url])
    script = f"mount -t tmpfs tmpfs /dev || exit 77; {status}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"may not mount a tmpfs: {done.stderr}")

    assert done.returncode == 1
    assert done.stderr == "projector: /dev/null: No such file or directory\n"


def test_the_command_that_a_mistyped_path_is_told_works(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "local.db"
    told = projector("run", "--once", "-d", path, check=4).stderr

    command = f"mkdir -p {path.parent} && projector db setup -d {path}"
    assert f"create it with `{command}`" in told
    assert shell(command).returncode == 0
    projector("run", "--once", "-d", path)


@pytest.mark.once
def test_deep_json_and_closed_input_are_no_traceback(database: Database) -> None:
    run(database, "event", "check", stdin="[" * 100_000, check=1)
    closed = subprocess.run(
        ["bash", "-c", f"{' '.join(PROJECTOR)} event check <&-"], capture_output=True, check=False
    )
    assert closed.returncode == 2


def test_list_reads_the_index_alone(database: Database) -> None:
    database.created("A-1", "First\nthing", project="A")
    fold(database)
    database.sql("DELETE FROM view")

    (listed,) = json.loads(run(database, "session", "list", "--json"))

    assert [*listed] == [*SessionIndex.table.columns]
    assert (listed["session_id"], listed["title"]) == ("A-1", "First thing")
    assert (listed["last_role"], listed["last_seq"]) == ("user", 1)


def test_watch_prints_a_line_for_each_change_as_it_becomes_visible(database: Database) -> None:
    database.created("B-1", project="B")
    with daemon(database.url) as running:
        running.wait_until_at(1)
        command = [*PROJECTOR, "session", "watch", "-p", "A", "-d", database.url]
        with (
            subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as watching,
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as read_by_people,
            ExitStack() as at_last,
        ):
            at_last.callback(watching.terminate)
            at_last.callback(read_by_people.terminate)
            assert read_by_people.stdout is not None
            assert watching.stdout is not None
            seq = 1
            while True:  # until it watches, what is written goes by unseen
                seq = database.created(f"A-{seq}", project="A")
                running.wait_until_at(seq)
                outputs = [watching.stdout, read_by_people.stdout]
                if len(select.select(outputs, [], [], 0.2)[0]) == 2:
                    break
            first = json.loads(watching.stdout.readline())
            database.created("B-2", project="B")
            database.appended(first["session_id"], "more")
            lines = iter(watching.stdout.readline, "")
            last = next(one for one in map(json.loads, lines) if one["message_count"])
            said = next(line for line in read_by_people.stdout if "1 message" in line)

    assert first["project"] == "A"
    assert last["session_id"] == first["session_id"]
    assert re.fullmatch(rf"\S+  ready  {first['session_id']}  A  1 message\n", said)


JSON_OF = {
    "session_id": ("session list", "session why A-1", "session diff A-1 1 2"),
    "id": ("session view A-1", "session history A-1", "quarantine list", "quarantine show 2"),
    "reason": ("quarantine list --summary",),
    "projection": ("verify", "replay --dry-run"),
    "name": ("projection list", "db status"),
    "check": ("doctor",),
    "newest": ("status",),
    "healthy": ("health",),
    "results": ("search one",),
}
"""Commands by a field that their JSON has."""


@pytest.mark.once
def test_each_command_prints_json_under_one_option_and_names_in_snake_case(
    database: Database,
) -> None:
    database.created("A-1", "one")
    database.insert("A-1", b"\xc1")
    run(database, "run", "--once", "--with", "search")

    for name, commands in JSON_OF.items():
        for words in commands:
            printed = run(database, *words.split(), "--json", check=None)
            lines = words.startswith(("verify", "replay"))
            found = [*map(json.loads, printed.splitlines())] if lines else json.loads(printed)
            for one in found if isinstance(found, list) else [found]:
                assert name in one, words
                camel = {key for key in one if not re.fullmatch("[a-z]+(_[a-z]+)*", key)}
                assert camel == (
                    {"createdAt", "updatedAt"} if words == "session view A-1" else set()
                )


@pytest.mark.once
def test_health_says_the_same_in_json(database: Database) -> None:
    ill = json.loads(run(database, "health", "--json", check=1))
    with daemon(database.url) as running:
        running.wait_for("started")
        well = json.loads(run(database, "health", "--json"))

    assert (ill["healthy"], ill["message"]) == (False, "no daemon is alive")
    assert ill["hint"] == f"start one: `projector run -d {database.named}`"
    assert (well["healthy"], well["hint"]) == (True, "")


def test_a_quarantined_event_is_told_in_json(database: Database) -> None:
    database.created("A-1")
    text, binary = '{"type": 5}', b"\x81\xa4type\xc1"
    database.insert("A-1", text, id="text")
    database.insert("A-1", binary, id="binary")
    database.appended("A-1", "folded")
    fold(database)
    run(database, "quarantine", "dismiss", "3", "--note", "a test")

    first, second = (json.loads(run(database, "quarantine", "show", n, "--json")) for n in "23")

    assert (first["seq"], first["id"], first["data"]) == (2, "text", text)
    assert first["reasons"]["sessions"].startswith("type is")
    assert (first["dismissed"], second["dismissed"]) == (None, "a test")
    assert (second["data"], second["decoded"]) == ("gaR0eXBlwQ==", {"type": "…"})


def test_projection_list_and_drop(database: Database) -> None:
    database.created("A-1", "x")
    database.insert("A-1", b"\xc1")
    fold(database)
    before = database.everything()
    listed = json.loads(run(database, "projection", "list", "--json"))
    kept = [database.sql("SELECT * FROM view"), database.log()]

    unsure = projector(
        "projection", "drop", "session_index", "-d", database.url, stdin="n\n", check=1
    )
    assert database.everything() == before
    said = run(database, "projection", "drop", "session_index", "--yes")

    assert [(row["name"], row["rows"], row["position"]) for row in listed] == [
        ("sessions", 1, 2),
        ("session_index", 1, 2),
    ]
    for text in (unsure.stdout, said):
        assert "drops 1 row of session_index, 1 of quarantine, and the checkpoint" in text
    assert [database.sql("SELECT * FROM view"), database.log()] == kept
    assert database.sql("SELECT DISTINCT projection FROM quarantine") == [("sessions",)]
    fold(database)
    assert database.everything() == before


def test_projections_that_have_not_begun_are_listed_at_position_0(database: Database) -> None:
    database.created("A-1")

    listed = json.loads(run(database, "projection", "list", "--json"))

    assert [(row["name"], row["position"], row["rows"]) for row in listed] == [
        ("sessions", 0, 0),
        ("session_index", 0, 0),
    ]


def test_dropping_what_is_not_there_or_in_use_is_refused(database: Database) -> None:
    assert "no projection nope" in refused(database, "projection", "drop", "nope", code=1)
    with daemon(database.url) as running:
        running.wait_for("started")
        database.created("A-1")
        running.wait_until_at(1)
        assert f"stop the daemon first: `kill {running.process.pid}`" in refused(
            database, "projection", "drop", "sessions", "--yes", code=1
        )


def test_dropping_sessions_leaves_rows_of_other_programs(database: Database) -> None:
    database.sql("INSERT INTO view VALUES ('1', 'project:A', x'80', 'e', 1, 1)")
    database.created("A-1")
    fold(database)

    run(database, "projection", "drop", "sessions", "--yes")

    assert database.sql("SELECT key FROM view") == [("project:A",)]


def test_what_a_projection_that_is_gone_left_behind_can_be_dropped(database: Database) -> None:
    database.sql('CREATE TABLE "a""b" (k TEXT)')
    fold(database)
    before = database.everything()
    for name in ("gone", "none"):
        row = "INSERT INTO checkpoint VALUES (?, 1, 5, 0, 'x', 0, ?, 'k', '')"
        database.sql(row, name, name)
    listed = json.loads(run(database, "projection", "list", "--json"))

    for name in ("gone", "none"):
        run(database, "projection", "drop", name, "--yes")

    assert {"gone", "none"} < {row["name"] for row in listed}
    assert database.everything() == before


def test_a_checkpoint_that_no_projection_can_have_is_made_sound_by_the_command_that_is_named(
    database: Database,
) -> None:
    fold(database)
    before = database.everything()
    for name, table, prefix in (("odd", 'a"b', ""), ("gone", "gone", "p:")):
        row = "INSERT INTO checkpoint VALUES (?, 1, 5, 0, 'x', 0, ?, 'k', ?)"
        database.sql(row, name, table, prefix)

    refused = projector("projection", "list", "-d", database.url, check=4)
    projector("db", "setup", "-d", database.url)
    for name in ("odd", "gone"):
        run(database, "projection", "drop", name, "--yes")

    assert f"`projector db setup -d {database.named}`" in refused.stderr
    assert database.everything() == before


@pytest.mark.once
@pytest.mark.parametrize(
    ("named", "told"), [(True, "No module named 'absent'"), (False, "No module named 'mine'")]
)
def test_the_command_that_shows_why_a_projection_does_not_load_runs_nothing_else(
    database: Database, tmp_path: Path, *, named: bool, told: str
) -> None:
    folder, package = tmp_path / "it's here", tmp_path / "mine-1.dist-info"
    folder.mkdir()
    (folder / "json.py").write_text("raise OSError('a module of the working folder')")
    if named:
        (folder / "mine.py").write_text("import json, absent")
    else:
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
        (package / "entry_points.txt").write_text("[projector.projections]\nx = mine:X\n")
        (folder / "mine.py").write_text("raise OSError('a module of the working folder')")
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(tmp_path)]))
    options = ["--projection", "mine:X"] * named
    surroundings: dict[str, Any] = {"cwd": folder, "env": os.environ | {"PYTHONPATH": paths}}
    command = ["run", "--once", *options, "-d", database.url]

    said = projector(*command, check=2 if named else 0, **surroundings).stderr
    hints = [json.loads(line)["hint"] for line in said.splitlines()]
    (hint,) = {found for hint in hints for found in re.findall("`(.* -c .*)`", hint)}
    done = subprocess.run(["bash", "-c", hint], capture_output=True, text=True, **surroundings)

    assert "working folder" not in done.stderr
    assert done.stderr.endswith(f"{told}\n")


def test_who_reads_no_further_gets_no_finding(database: Database) -> None:
    for number in range(2000):  # more than a pipe holds
        database.created(f"session-with-a-long-name-{number}", "x" * 60)
    projector("run", "--once", "-d", database.url)
    read, written = os.pipe()
    os.close(read)
    command = [*PROJECTOR, "session", "list", "-d", database.url]

    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, check=False)

    os.close(written)
    assert (done.returncode, done.stderr) == (141, b"")


def test_status_quotes_a_path_that_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "my data.db"
    projector("db", "setup", "-d", path)

    assert projector("status", "-d", path).stdout.splitlines()[0].endswith(f"  '{path}'")


def test_levels_and_states_are_coloured_where_asked_for(database: Database) -> None:
    database.created("A-1", "\x1b[31mx ready")
    projector("run", "--once", "-d", database.url)
    for words, green in (
        (("session", "list"), "ready"),
        (("doctor",), "ok"),
        (("db", "status"), "applied"),
    ):
        plain = projector(*words, "-d", database.url).stdout
        never = projector("--color", "never", *words, "-d", database.url).stdout
        colored = projector("--color", "always", *words, "-d", database.url).stdout

        free = "[0-9,]+ MiB are free"  # which others change meanwhile
        assert re.sub(free, "", plain) == re.sub(free, "", never)
        assert "\x1b" not in plain
        assert f"\x1b[32m{green}\x1b[0m" in colored
        assert set(re.findall("\x1b..", colored)) == {"\x1b[3", "\x1b[0"}
    none = projector("--color", "always", "status", "-d", database.url).stdout
    assert re.search("daemon +\x1b\\[31mnone is alive\x1b\\[0m\n", none)
    assert (
        "\x1b" not in projector("--color", "always", "status", "--json", "-d", database.url).stdout
    )


@pytest.mark.parametrize(
    ("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_colours_unless_the_environment_says_no(
    database: Database, variables: dict[str, str], colored: bool
) -> None:
    leader, follower = os.openpty()
    environment = {**os.environ, "TERM": "xterm", **variables}
    environment = {
        name: environment[name] for name in environment if name in variables or name != "NO_COLOR"
    }
    command = [*PROJECTOR, "db", "status", "-d", database.url]

    subprocess.run(command, stdout=follower, env=environment, check=True)

    os.close(follower)
    assert (b"\x1b[32mapplied" in os.read(leader, 4096)) == colored
    os.close(leader)


def test_a_session_command_with_an_id_may_be_repeated(database: Database) -> None:
    said = '[{"role": "user", "content": "Go on"}]'
    commands = [
        ("queue", "-p", "P", "Fix it", "--id", "q"),
        ("append", "P-1", "-m", said, "--stop", "--id", "a"),
        ("status", "P-1", "done", "--id", "s"),
    ]

    first = [projector("session", *words, "-d", database.url).stdout for words in commands]
    again = [projector("session", *words, "-d", database.url).stdout for words in commands]

    assert first == again == ["P-1\n", "3\n", "4\n"]
    assert [row[1] for row in database.log()] == ["q", "a", "a/stop", "s"]
    projector("run", "--once", "-d", database.url)
    assert database.contents("P-1") == ["Fix it", "Go on"]
    for words in (
        ("queue", "-p", "P", "Another", "--id", "q"),
        ("queue", "-p", "Q", "Fix it", "--id", "q"),
        ("append", "P-1", "-m", said.replace("Go on", "Stop"), "--id", "a"),
        ("status", "P-1", "review", "--id", "s"),
        ("status", "P-1", "done", "--id", "q"),
    ):
        refused = projector("session", *words, "-d", database.url, check=2).stderr
        assert f"the id {words[-1]} is that of another event" in refused
    assert len(database.log()) == 4
