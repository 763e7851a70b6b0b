"""What the README and docs/ tell a reader to do, done."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from support import Database, daemon, projector
from support.node_packages import npm_install
from support.snippets import follow, run_snippets, snippets, statements

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
STARTED, READING, WRITING, SEARCH, PROJECTIONS = (
    (ROOT / "docs" / f"{page}.md").read_text()
    for page in ("getting-started", "reading-views", "writing-events", "search", "projections")
)
MARCH_MS = 1_772_366_400_000
WEB_1 = (
    '{"type":"session_created","data":{"project":"web","messages":'
    '[{"role":"user","content":"Fix the login form"}]}}'
)
ANSWERED = {
    "type": "session_append",
    "data": {"messages": [{"role": "assistant", "content": "It loses its state. Mending it."}]},
}
OF_POSTGRES = ("psql", "psycopg", "pg", "psql_wait")
"""What `tests/engines/postgres/test_snippets.py` runs."""
needs_sqlite3 = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs sqlite3's shell")


@needs_sqlite3
def test_every_snippet_does_what_it_says(database: Database) -> None:
    with daemon(database.path) as running:
        running.wait_for("started")
        run_snippets(README, database.path.parent, "bash", "wait", "python")
        running.wait_until_at(2)

    assert database.view("web-1")["project"] == "web"
    assert database.contents("web-1") == ["Fix the login form", "It loses its state. Mending it."]


@needs_sqlite3
def test_a_view_is_read_as_the_page_says(database: Database) -> None:
    database.created("web-1", "one")
    database.created("web-2", "two")
    projector("run", "--once", "-d", database.path)

    printed = run_snippets(READING, database.path.parent, "list", "python", "changed")

    assert printed == "web-2|ready|two\nweb-1|ready|one\nready 1\nweb-2|2\n"


def test_a_view_is_read_from_javascript_as_the_page_says(database: Database) -> None:
    database.created("web-1", "one")
    projector("run", "--once", "-d", database.path)
    npm_install(database.path.parent, "@msgpack/msgpack@3")

    assert run_snippets(READING, database.path.parent, "javascript") == "ready 1\n"


@needs_sqlite3
def test_the_first_steps_make_a_view_and_a_quarantined_event(database: Database) -> None:
    folder, path = database.path.parent, f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with daemon(database.path) as running:
        running.wait_for("started")
        run_snippets(STARTED, folder, "bash")
        running.wait_until_at(1)
        follow(STARTED, folder, "view")
        run_snippets(STARTED, folder, "more", PATH=path)
        running.wait_until_at(3)
        looked = run_snippets(STARTED, folder, "look", "broken", PATH=path)
        running.wait_until_at(4)
        follow(STARTED, folder, "quarantine")

    assert database.contents("hello") == ["Hello", "Hello yourself"]
    assert list(database.quarantine()) == [4]
    assert "hello|done|Hello\n" in looked
    assert "sessions: 0 of 1 views differ" in looked


def test_looking_back_prints_what_the_readme_shows(database: Database) -> None:
    for event_id, time_ms, data in (
        ("bash-1", 0, WEB_1),
        ("5f0c9a54", 4_120, json.dumps(ANSWERED)),
        ("77d3c8c1", 191_402, '{"type":"session_status_update","data":{"status":"review"}}'),
        ("0be11b2e", 195_000, '{"type": "session_append", "data": {"messages": "text"}}'),
    ):
        database.insert("session:web-1", data, id=event_id, created_at=MARCH_MS + time_ms)
    projector("run", "--once", "-d", database.path)

    follow(README, database.path.parent, "looking")


def test_an_event_is_checked_as_the_page_shows(database: Database) -> None:
    follow(WRITING, database.path.parent, "check")


@needs_sqlite3
def test_words_are_found_in_sql_as_the_page_says(database: Database) -> None:
    database.created("web-1", "the login page")
    projector("run", "--once", "--with", "search", "-d", database.path)

    printed = run_snippets(SEARCH, database.path.parent, "whole", "words")

    assert printed == "web-1|the login page\n"


@pytest.mark.parametrize("page", [README, WRITING], ids=["README", "writing-events"])
def test_what_pages_say_in_sql_can_be_asked(database: Database, page: str) -> None:
    asked = statements(page)

    assert asked
    with closing(sqlite3.connect(database.path)) as connection:
        for statement in asked:
            connection.execute(f"EXPLAIN {statement}", [None] * statement.count("?"))


def test_the_test_of_a_projection_passes_as_the_page_shows_it() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PROJECTIONS, re.DOTALL)
    code = f"from projector_tokens import TokensPerDay\n{block}"

    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs" / "example", check=True)


@needs_sqlite3
def test_every_recipe_writes_a_session_that_folds(database: Database) -> None:
    with daemon(database.path) as running:
        running.wait_for("started")
        names = ("bash", "wait", "session", "python", "javascript")
        run_snippets(WRITING, database.path.parent, *names)
        running.wait_until_at(9)

    statuses = {
        name: database.view(name)["status"] for name in ("deploy-42", "review-7", "triage-3")
    }
    assert statuses == {"deploy-42": "done", "review-7": "review", "triage-3": "done"}
    assert database.contents("deploy-42") == ["Ship Tuesday's build", 'Built. It is "green".']
    assert database.quarantine() == {}


@needs_sqlite3
def test_a_recipe_with_ids_of_its_own_may_be_run_again(database: Database) -> None:
    for _ in range(2):
        run_snippets(WRITING, database.path.parent, "bash")

    assert len(database.log()) == 3


@needs_sqlite3
@pytest.mark.parametrize("name", ["bash", "python", "javascript"])
def test_a_recipe_waits_out_a_lock_longer_than_its_busy_timeout(
    database: Database, name: str
) -> None:
    """The busy timeout is made short, so that the test need not wait for 5 s."""
    short = re.sub(r"timeout(=| = | )5(000)?\b", r"timeout\g<1>0", WRITING)

    with closing(sqlite3.connect(database.path, isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor() as pool:
            writing = pool.submit(run_snippets, short, database.path.parent, name)
            time.sleep(0.5)
            assert not writing.done()
            other.execute("COMMIT")
            writing.result()

    assert len(database.log()) == 3


@needs_sqlite3
@pytest.mark.parametrize("name", ["bash", "python", "javascript"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_recipe_does_not_wait_for_a_database_that_is_not_there(
    tmp_path: Path, name: str, empty: bool
) -> None:
    pauses = {"(0.2, 1, 5, None)": "(3600, None)", "[200, 1000, 5000,": "[3600000,"}
    long = WRITING.replace("in 0.2 1 5 ", "in 3600 ")
    for short, hour in pauses.items():
        long = long.replace(short, hour)
    database = tmp_path / "local.db"
    if empty:
        database.touch()

    with pytest.raises(subprocess.CalledProcessError):
        run_snippets(long, tmp_path, name)

    assert database.exists() == empty


def test_every_snippet_is_run() -> None:
    for page, names in (
        (README, {"bash", "python", "wait", "looking"}),
        (STARTED, {"bash", "view", "more", "look", "broken", "quarantine"}),
        (READING, {"list", "python", "javascript", "changed"}),
        (WRITING, {"bash", "python", "javascript", "wait", "session", "check", *OF_POSTGRES}),
    ):
        run = [language for language, _ in snippets(page).values()]
        assert snippets(page).keys() == names
        assert len(re.findall(r"```(bash|python|javascript|console)", page)) == len(
            [language for language in run if language != "sh"]
        )


def test_the_commands_for_a_database_of_ones_own_work(tmp_path: Path) -> None:
    projector("db", "setup", "-d", "local.db", cwd=tmp_path)
    projector("run", "--once", "-d", "local.db", cwd=tmp_path)
