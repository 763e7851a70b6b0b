"""What other Python programs import, and the page that tells of it."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as settled
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgpack
import pytest
from support import T0, Database, daemon, event
from support.folding import catch_up
from support.snippets import snippets

import session_projector
from session_projector import (
    CheckFailed,
    InterventionRequired,
    TransientError,
    UsageError,
    append,
    read,
    testing,
    wait,
)

PAGE = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text()
USER = {"role": "user", "content": "Fix the login form"}


def test_the_page_does_what_it_says(database: Database) -> None:
    script = database.path.with_name("page.py")
    script.write_text("\n".join(text for _, text in snippets(PAGE).values()))

    with daemon(database.path) as running:
        running.wait_for("started")
        done = subprocess.run(
            [sys.executable, script], cwd=script.parent, capture_output=True, text=True, check=False
        )

    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == "web ready Review the login form"
    assert last.startswith("the id review-7-status is that of another event: position 3 in ")
    assert last.endswith("(exit code 2); nothing was written; a new event needs a new id")
    assert database.view("review-7")["status"] == "review"


def test_every_name_is_there_and_on_the_page() -> None:
    for module in (session_projector, testing):
        for name in module.__all__:
            assert hasattr(module, name), name
            assert re.search(rf"`{name}\b|import .*\b{name}\b", PAGE), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = session_projector.nothing


def test_the_package_alone_imports_nothing_of_its_own() -> None:
    """The command's start would pay for it."""
    code = (
        "import sys, session_projector; print([m for m in sys.modules if m.startswith('session_')])"
    )

    said = subprocess.check_output([sys.executable, "-P", "-c", code], text=True)

    assert said == "['session_projector']\n"


def test_an_event_is_appended_waited_for_and_read(database: Database) -> None:
    url = f"sqlite://{database.path}"

    assert read(database.path, "A-1") is None
    assert append(database.path, "A-1", "session_created", {"project": "web"}) == 1
    assert append(url, "A-1", "session_append", {"messages": [USER]}, timestamp=T0) == 2
    assert read(str(database.path), "A-1") is None
    catch_up(database)
    wait(url, 2)
    wait(url, 2, projection="sessions")

    assert read(url, "A-1") == {
        "id": "A-1",
        "project": "web",
        "messages": [USER],
        "status": "ready",
        "createdAt": database.log()[0][4],
        "updatedAt": T0,
    }
    assert [row[2] for row in database.log()] == ["session:A-1"] * 2
    assert len({row[1] for row in database.log()}) == 2


def test_a_repeated_call_writes_nothing_and_returns_the_position_that_is_there(
    database: Database,
) -> None:
    def again(**changed: Any) -> int:
        call = {"session_id": "A-1", "type": "note", "data": {"text": "x"}, "id": "e"} | changed
        return append(database.path, **call)

    assert again() == 1
    assert append(database.path, "A-2", "note", {}) == 2
    database.insert("session:A-3", database.log()[0][3], id="misplaced")
    log = database.log()

    assert again() == 1
    for changed in ({"session_id": "A-2"}, {"type": "x"}, {"data": {}}, {"timestamp": 5}):
        with pytest.raises(UsageError, match="the id e is that of another event: position 1"):
            again(**changed)
    with pytest.raises(UsageError, match="the id misplaced is that of another event"):
        again(id="misplaced")
    assert database.log() == log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("A-1", "session_append", {}), "messages is missing"),
        (("A-1", "session_append", {"messages": []}), "messages is empty"),
        (("A-1", "session_created", {}), "project is missing"),
        (("A-1", "note", []), "data is a list"),
        (("A-1", "note", MappingProxyType({})), "mappingproxy"),
        (("A-1", "note", {"x": object()}), "object"),
        (("A-1", "note", {"x": 2**64}), "2\\*\\*64"),
        (("A-1", "note", {"x": "\udcff"}), "surrogates"),
        (("A-1", "note", {"x": "x" * 2**24}), "larger than 16777216 bytes"),
        (("A-1", 5, {}), "type is a number"),
        (("", "note", {}), "session id is empty"),
        (("A-\udcff", "note", {}), "surrogates"),
    ],
)
def test_an_event_that_is_wrong_in_itself_is_not_written(
    database: Database, arguments: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        append(database.path, *arguments)

    assert caught.value.hint == "nothing was written"
    assert database.log() == []


def test_binary_and_integer_keys_come_back_as_they_were(database: Database) -> None:
    message = {"role": "user", "content": b"\xff", "n": {1: [2**63, -0.5, None, True]}}
    append(database.path, "A-1", "session_created", {"project": "P", "messages": [message]})
    extended = event("session_append", {"messages": [{"x": msgpack.ExtType(5, b"a")}]})
    database.insert("A-1", extended)
    catch_up(database)

    view = read(database.path, "A-1")

    assert view is not None
    assert view["messages"][0] == message
    assert (view["messages"][1]["x"].code, view["messages"][1]["x"].data) == (5, b"a")


def test_a_lock_is_waited_for_and_an_event_refused_after_5_s_may_be_repeated(
    database: Database,
) -> None:
    def write(event_id: str) -> int:
        return append(database.path, "A-1", "note", {}, id=event_id)

    with (
        closing(sqlite3.connect(database.path, isolation_level=None)) as other,
        ThreadPoolExecutor() as pool,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientError, match="is locked by another process"):
            write("e1")
        waiting = pool.submit(write, "e1")
        settled([waiting], timeout=0.2)
        assert not waiting.done()
        other.execute("COMMIT")
        assert waiting.result() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda path: append(path, "A-1", "note", {}),
        lambda path: wait(path, 1),
        lambda path: read(path, "A-1"),
    ],
)
def test_an_absent_database_is_not_made(tmp_path: Path, call: Callable[[Path], Any]) -> None:
    with pytest.raises(InterventionRequired, match="there is no database at") as caught:
        call(tmp_path / "local.db")

    assert f"projector db setup -d {tmp_path}/local.db" in caught.value.hint
    assert [*tmp_path.iterdir()] == []


def test_a_wait_that_takes_too_long_says_how_far_it_is(database: Database) -> None:
    append(database.path, "A-1", "session_created", {"project": "P"})

    with pytest.raises(
        CheckFailed, match=r"not reached within 0\.05 s: sessions is at 0"
    ) as caught:
        wait(database.path, 1, timeout_s=0.05)
    with pytest.raises(CheckFailed, match="0 s: session_index is at 0; no daemon is alive"):
        wait(database.path, 1, timeout_s=0, projection="session_index")
    with pytest.raises(UsageError, match="there is no projection x"):
        wait(database.path, 1, projection="x")

    assert caught.value.exit_code == 1
    assert caught.value.hint.startswith("start one: `projector run")


def test_a_view_that_somebody_else_wrote_is_not_returned(database: Database) -> None:
    append(database.path, "A-1", "session_created", {"project": "P"})
    catch_up(database)
    database.sql("UPDATE view SET data = x'80' WHERE key = 'session:A-1'")

    with pytest.raises(InterventionRequired, match="was not written by projector"):
        read(database.path, "A-1")


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), -1])
def test_a_wait_that_could_not_end_is_refused(database: Database, timeout_s: float) -> None:
    with pytest.raises(UsageError, match="cannot wait") as refused:
        wait(database.path, 1, timeout_s=timeout_s)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("session_id", "data", "why"),
    [
        (None, {"project": "P"}, "the session id is None, not a text"),
        ("A-1", {"project": "P", "x": object()}, "MessagePack cannot hold the event"),
        ("A-1", {"project": "P", "x": 2**64}, "MessagePack cannot hold the event"),
    ],
)
def test_an_event_that_cannot_be_written_is_refused(
    database: Database, session_id: Any, data: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        append(database.path, session_id, "session_created", data)
    assert database.log() == []
