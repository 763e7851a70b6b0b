"""`projector import`: what other tools keep of their sessions, as events."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PROJECTOR, Database, projector, started
from support.folding import catch_up, target
from support.transcripts import (
    CLAUDE_1,
    CLAUDE_2,
    CODEX_NEW,
    CODEX_OLD,
    FILES,
    ROLLOUT,
    SESSION,
    SUBAGENT,
    call,
    claude,
    encoded,
    returned,
    text,
    tool,
    written,
)

from session_projector.projections.event import MAX_EVENT_BYTES
from session_projector.worker.importing.importer import Importer, Report, patient, writing
from session_projector.worker.storage.limits import Limits

OLD_NAME = FILES["codex, old"][0]


def run(database: Database, name: str, path: Path, *options: str, code: int = 0) -> Any:
    return projector("import", name, path, "-d", database.url, *options, check=code)


def imported(database: Database, name: str, path: Path, code: int = 0) -> dict[str, Any]:
    """What an import says in JSON; the log is folded after it."""
    found: dict[str, Any] = json.loads(run(database, name, path, "--json", code=code).stdout)
    catch_up(database)
    return found


def report(database: Database, name: str, *places: Path) -> Report:
    """Import within this process."""
    with target(database.url).open(writable=True) as store:
        return Importer(name, places, write=writing(store)).run()


def events(database: Database, session_id: str) -> list[dict[str, Any]]:
    return [msgpack.unpackb(data) for _, _, key, data, _ in database.log() if key[8:] == session_id]


def kinds(database: Database, session_id: str) -> list[str]:
    return [event["type"] for event in events(database, session_id)]


def lines_of(database: Database, session_id: str, key: str) -> list[dict[str, Any]]:
    """The lines of a session, as its events have them; `key` is that of a message in its line."""
    found = []
    for event in events(database, session_id):
        data = event["data"]
        if event["type"].endswith("_line"):
            found.append(data)
        elif event["type"] == "session_append":
            (message,) = data["messages"]
            found.append({**data["line"], key: message} if "line" in data else message)
    return found


def statuses(database: Database, session_id: str) -> list[str]:
    found = (event["data"].get("status") for event in events(database, session_id))
    return [status for status in found if status]


# Claude Code


def test_a_session_of_claude_code_1_is_readable_and_nothing_is_lost(
    database: Database, tmp_path: Path
) -> None:
    path = written(tmp_path / "p" / f"{SESSION}.jsonl", CLAUDE_1)

    done = imported(database, "claude-code", path)

    main = [line for line in CLAUDE_1 if not line.get("isSidechain")]
    shown = [line["message"] for line in main[3:]]
    view = database.view(SESSION)
    assert view["messages"] == shown
    assert (view["project"], view["status"]) == ("web", "ready")
    assert (view["createdAt"], view["updatedAt"]) == (1_754_049_601_250, 1_754_049_612_250)
    assert statuses(database, SESSION) == [
        *("in-progress", "ready", "in-progress", "ready")
    ]  # where no stop_reason says more, a text ends the turn
    assert database.index()[SESSION][3] == "Fix the login form"
    side = database.view(f"{SESSION}.agent-00000009")
    assert [message["role"] for message in side["messages"]] == ["user", "assistant"]
    assert (side["project"], side["status"]) == ("web", "done")
    assert lines_of(database, SESSION, "message") == main
    assert done["new_events"] == len(database.log())
    assert (done["lines"], done["sessions"], done["unknown"]) == (13, 2, {})
    assert database.quarantine() == {}


def test_a_session_of_claude_code_2_has_its_subagents_beside_it(
    database: Database, tmp_path: Path
) -> None:
    written(tmp_path / "p" / f"{SESSION}.jsonl", CLAUDE_2)
    written(tmp_path / "p" / SESSION / "subagents" / "agent-ab12.jsonl", SUBAGENT)

    done = imported(database, "claude-code", tmp_path)

    assert database.contents(SESSION) == [
        line["message"]["content"] for line in CLAUDE_2 if "message" in line
    ]
    assert database.view(SESSION)["status"] == "ready"
    assert kinds(database, SESSION).count("claude_code_line") == 6  # both equal ones of `mode`
    assert done["unknown"] == {"brand-new": 1}
    assert lines_of(database, SESSION, "message") == CLAUDE_2
    assert database.contents(f"{SESSION}.agent-ab12") == ["Count", text("Three.")]
    titles = {key: row[3] for key, row in database.index().items()}
    assert titles == {SESSION: "Make it blue", f"{SESSION}.agent-ab12": "Count"}


def test_a_line_of_an_answer_that_does_not_end_the_turn_leaves_it_working(
    database: Database, tmp_path: Path
) -> None:
    lines = [
        claude("user", 1, "Go"),
        claude("assistant", 2, text("I look."), stop="tool_use"),
        claude("assistant", 3, call("Bash", command="ls"), stop="tool_use"),
        claude("user", 4, "<local-command-stdout></local-command-stdout>"),
    ]
    report(database, "claude-code", written(tmp_path / f"{SESSION}.jsonl", lines))

    assert statuses(database, SESSION) == ["in-progress"]


def test_a_line_twice_is_one_message(database: Database, tmp_path: Path) -> None:
    lines = [claude("user", 1, "Go")] * 3
    done = imported(database, "claude-code", written(tmp_path / f"{SESSION}.jsonl", lines))

    assert database.contents(SESSION) == ["Go"]
    assert done["new_events"] == 3  # created, the message, the status


def test_a_resumed_file_is_a_session_of_its_own(database: Database, tmp_path: Path) -> None:
    resumed = SESSION.replace("0001", "0009")
    written(tmp_path / f"{SESSION}.jsonl", [claude("user", 1, "Go")])
    lines = [claude("user", 1, "Go"), claude("user", 2, "On", sessionId=resumed)]
    written(tmp_path / f"{resumed}.jsonl", lines)
    imported(database, "claude-code", tmp_path)

    assert database.contents(SESSION) == ["Go"]
    assert database.contents(resumed) == ["Go", "On"]


# Codex


@pytest.mark.parametrize("lines", [CODEX_OLD, CODEX_NEW], ids=["old", "new"])
def test_a_session_of_codex_is_readable_and_nothing_is_lost(
    database: Database, tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    written(tmp_path / "2025" / OLD_NAME, lines)

    done = imported(database, "codex", tmp_path)

    shown = SHOWN[lines is CODEX_NEW]
    view = database.view(ROLLOUT)
    assert view["messages"] == [lines[at].get("payload", lines[at]) for at in shown]
    assert view["project"] == "api"
    assert lines_of(database, ROLLOUT, "payload") == lines
    assert done["lines"] == len(lines)
    assert done["unknown"] == ({"item hologram": 1} if lines is CODEX_NEW else {})
    assert database.quarantine() == {}


SHOWN = (range(3, 11), (5, 7, 8, 9, 10, 13))
"""The lines of CODEX_OLD and of CODEX_NEW that are messages."""


def test_the_turn_of_codex_ends_where_it_says_so(database: Database, tmp_path: Path) -> None:
    report(database, "codex", written(tmp_path / OLD_NAME, CODEX_NEW))

    assert statuses(database, ROLLOUT) == ["in-progress", "ready"]
    assert kinds(database, ROLLOUT)[-2:] == ["codex_line", "session_status_update"]


def test_the_turn_of_an_old_codex_ends_with_what_it_says(
    database: Database, tmp_path: Path
) -> None:
    report(database, "codex", written(tmp_path / OLD_NAME, CODEX_OLD))

    assert statuses(database, ROLLOUT) == [*["in-progress", "ready"] * 2, "in-progress"]
    assert {row[4] for row in database.log()} == {1_746_638_661_500}  # the time of the first line


def test_a_subagent_of_codex_waits_for_nobody(database: Database, tmp_path: Path) -> None:
    meta = {**CODEX_NEW[0], "payload": {**CODEX_NEW[0]["payload"], "source": {"subagent": "r"}}}
    imported(database, "codex", written(tmp_path / OLD_NAME, [meta, *CODEX_NEW[1:]]))

    assert database.view(ROLLOUT)["status"] == "done"


def test_what_cannot_be_read_of_reasoning_takes_no_room(database: Database, tmp_path: Path) -> None:
    imported(database, "codex", written(tmp_path / OLD_NAME, CODEX_NEW))

    shown = projector("session", "view", ROLLOUT, "-d", database.url).stdout
    assert "(thinking, encrypted)" in shown
    assert "encrypted_content" not in shown
    assert "## assistant\n\n→ apply_patch *" in shown
    assert "## tool\n\n← ok" in shown


# Again, and what is odd


@pytest.mark.once
@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_file_that_is_cut_anywhere_gives_the_same_log_in_the_end(
    database: Database, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    file, lines = FILES[name]
    whole = encoded(lines) + b'{"type": "us\n\n[1]\n' + encoded(lines[:3])
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=4))
    at_once, by_and_by = database.renewed(), database.renewed()
    path = tmp_path / file
    path.write_bytes(whole)
    report(at_once, tool(name), path)

    with target(by_and_by.url).open(writable=True) as store:
        going_on = Importer(tool(name), [path], write=writing(store))
        for at in sorted(cuts):
            path.write_bytes(whole[:at])
            if data.draw(st.booleans()):
                going_on.run()
            else:
                report(by_and_by, tool(name), path)
    path.write_bytes(whole)
    report(by_and_by, tool(name), path)

    assert by_and_by.log() == at_once.log()
    assert report(by_and_by, tool(name), path).new == {}


def test_a_second_import_adds_nothing_and_says_so(database: Database, tmp_path: Path) -> None:
    path = written(tmp_path / f"{SESSION}.jsonl", CLAUDE_1)
    first = run(database, "claude-code", path)
    log = database.log()
    assert f"{len(log)} new events in 2 sessions" in first.stdout
    assert f"`projector run -d {database.named}`" in first.stdout
    assert f"`projector session list -d {database.named}`" in first.stdout
    projector("session", "status", SESSION, "done", "-d", database.url)

    second = run(database, "claude-code", path)

    assert "2 sessions, 10 messages in 1 file: 0 new events" in second.stdout
    assert database.log()[:-1] == log


def test_a_line_that_was_taken_out_of_a_file_changes_no_event(
    database: Database, tmp_path: Path
) -> None:
    path = written(tmp_path / f"{SESSION}.jsonl", CLAUDE_1)
    report(database, "claude-code", path)
    log = database.log()

    written(path, [*CLAUDE_1[:5], *CLAUDE_1[6:], claude("user", 20, "Thanks")])
    report(database, "claude-code", path)

    assert database.log()[: len(log)] == log
    added = [msgpack.unpackb(row[3])["type"] for row in database.log()[len(log) :]]
    assert added == ["session_append", "session_status_update"]


def test_invalid_and_unfinished_lines_are_named(database: Database, tmp_path: Path) -> None:
    path = tmp_path / f"{SESSION}.jsonl"
    lines = [claude("user", 1, "Go"), claude("user", 2, "On")]
    path.write_bytes(encoded(lines[:1]) + b'{"half\n\xff\n' + encoded(lines[1:])[:-1])
    other = written(tmp_path / "other.jsonl", [{"type": "summary", "summary": "s"}])

    done = imported(database, "claude-code", tmp_path)
    told = run(database, "claude-code", tmp_path)

    assert done["invalid"] == [f"{path}:2", f"{path}:3"]
    assert (done["unfinished"], done["waiting"]) == ([str(path)], [str(other)])
    assert database.contents(SESSION) == ["Go"]
    assert f"2 lines not JSON, left out:\n  {path}:2\n" in told.stderr


HUGE = "x" * (MAX_EVENT_BYTES + 10)
ODD: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "too large": (
        claude("user", 2, returned(HUGE)),
        lambda shown: 20_000 < len(shown[0]["content"]) < 30_000,
    ),
    "half a character": (claude("user", 2, "cut \ud83d"), lambda shown: shown == "cut ?"),
    "a number of 70 bits": (
        claude("user", 2, [{"type": "text", "text": "n", "n": 2**70}]),
        lambda shown: "which the log has in pieces" in shown,
    ),
    "very many lists": (
        claude("user", 2, [{"type": "text", "text": "n", "n": [[]] * 100_001}]),
        lambda shown: "which the log has in pieces" in shown,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_no_event_can_hold_is_kept_in_pieces(
    database: Database, tmp_path: Path, name: str
) -> None:
    line, is_shown = ODD[name]
    path = tmp_path / f"{SESSION}.jsonl"
    lines = [claude("user", 1, "Go"), line, claude("assistant", 3, text("Well."))]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))

    done = imported(database, "claude-code", path)
    again = imported(database, "claude-code", path)

    first, shown, last = database.contents(SESSION)
    assert (first, last) == ("Go", text("Well."))
    assert is_shown(shown)
    assert done["shortened"] == [f"{path}:2"]
    pieces = [event["data"] for event in events(database, SESSION) if "piece" in event["data"]]
    assert json.loads("".join(data["text"] for data in pieces)) == line
    assert [data["of"] for data in pieces] == [len(pieces)] * len(pieces)
    assert database.quarantine() == {}
    assert again["new_events"] == 0


# Where the files are


def test_the_folders_of_the_tools_are_found(database: Database, tmp_path: Path) -> None:
    written(tmp_path / ".claude" / "projects" / "-p" / f"{SESSION}.jsonl", CLAUDE_1)
    written(tmp_path / ".codex" / "sessions" / "2025" / "05" / "07" / OLD_NAME, CODEX_OLD)
    elsewhere = ROLLOUT.replace("aaaa", "bbbb")
    archived = f"rollout-2025-05-07T17-24-21-{elsewhere}.jsonl"
    written(tmp_path / "c" / "archived_sessions" / archived, CODEX_NEW)

    for name, more in (
        ("claude-code", {"HOME": str(tmp_path), "CLAUDE_CONFIG_DIR": ""}),
        ("codex", {"HOME": str(tmp_path), "CODEX_HOME": ""}),
        ("codex", {"CODEX_HOME": str(tmp_path / "c")}),
        ("claude-code", {"HOME": "/", "CLAUDE_CONFIG_DIR": str(tmp_path / ".claude")}),
    ):
        projector("import", name, "-d", database.url, more=more)
    catch_up(database)

    assert {*database.index()} == {SESSION, f"{SESSION}.agent-00000009", ROLLOUT, elsewhere}


@pytest.mark.once
def test_nothing_to_import_is_told(database: Database, tmp_path: Path) -> None:
    assert "there is no" in run(database, "codex", tmp_path / "away", code=2).stderr
    told = run(database, "codex", tmp_path, code=1).stderr
    assert f"there is no rollout-*.jsonl in {tmp_path}" in told
    assert f"`projector import codex PATH -d {database.named}`" in told


# Following


@contextmanager
def following(database: Database, path: Path) -> Iterator[Any]:
    process = started("import", "claude-code", path, "--follow", "-d", database.url)
    try:
        yield process
    finally:
        process.kill()


def wait_until(reached: Callable[[], bool]) -> None:
    while not reached():
        os.sched_yield()


def test_following_goes_on_with_new_lines_and_files(database: Database, tmp_path: Path) -> None:
    path = written(tmp_path / f"{SESSION}.jsonl", [claude("user", 1, "Go")])
    second = encoded([claude("user", 2, "On")])

    def has(words: str) -> Callable[[], bool]:
        return lambda: any(words.encode() in row[3] for row in database.log())

    with following(database, tmp_path) as process:
        wait_until(has("Go"))
        with path.open("ab", buffering=0) as file:
            file.write(second[:-20])
            written(tmp_path / "more" / "agent-ab12.jsonl", SUBAGENT)
            wait_until(has("Three."))
            assert not has("On")()
            file.write(second[-20:])
        wait_until(has("On"))
        written(path, [claude("user", 3, "Anew")])  # shorter than it was
        wait_until(has("Anew"))
        process.send_signal(SIGINT)
        assert process.wait() == 0
    catch_up(database)

    assert database.contents(SESSION) == ["Go", "On", "Anew"]


def test_following_names_a_session_with_news_and_says_once_which_file_waits(
    database: Database, tmp_path: Path
) -> None:
    path = written(tmp_path / f"{SESSION}.jsonl", [claude("user", 1, "Go")])
    other = written(tmp_path / "other.jsonl", [{"type": "summary", "summary": "s"}])
    command = [*PROJECTOR, "import", "claude-code", tmp_path, "--follow", "-d", database.url]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    with subprocess.Popen(command, **how) as process:
        assert process.stdout
        assert process.stderr
        first = [process.stdout.readline() for _ in range(2)]
        said = []
        for second in (2, 3):
            with path.open("ab") as file:
                file.write(encoded([claude("user", second, "On")]))
            said.append(process.stdout.readline())
        process.send_signal(SIGINT)
        errors = process.stderr.read()

    assert SESSION not in first[0]
    assert said == [f"1 session, 1 message in 1 file: 1 new event in 1 session: {SESSION}\n"] * 2
    assert errors.count(str(other)) == 1


def test_files_that_have_not_changed_since_a_time_are_left_out(
    database: Database, tmp_path: Path
) -> None:
    old = written(tmp_path / f"{SESSION}.jsonl", CLAUDE_1)
    written(tmp_path / "agent-ab12.jsonl", SUBAGENT)
    os.utime(old, (1_700_000_000, 1_700_000_000))

    since = ("--since", "2023-11-14T22:13:21Z")
    run(database, "claude-code", tmp_path, *since)
    none = run(database, "claude-code", old, *since, code=1).stderr
    catch_up(database)

    assert {*database.index()} == {f"{SESSION}.agent-ab12"}
    assert "there is no *.jsonl that changed since 2023-11-14T22:13:21Z in" in none
    for wrong in ("7", "yesterday"):
        told = run(database, "claude-code", old, "--since", wrong, code=2).stderr
        assert f"{wrong} is no time" in told


def test_following_waits_for_a_database_that_is_locked(database: Database, tmp_path: Path) -> None:
    path = written(tmp_path / f"{SESSION}.jsonl", [claude("user", 1, "Go")])
    limits = Limits(busy_timeout_s=0.01)
    told: list[str] = []

    with ExitStack() as stack:
        store = stack.enter_context(target(database.url, limits).open(writable=True))
        locked = stack.enter_context(ExitStack())
        locked.enter_context(database.locked())

        def tell(why: str) -> None:
            told.append(why)
            locked.close()

        Importer("claude-code", [path], write=patient(writing(store), tell)).run()
    catch_up(database)

    assert database.contents(SESSION) == ["Go"]
    assert told
