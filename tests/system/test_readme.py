"""What the README and docs/ tell a reader to do, done."""

import json
import re
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from support import Database, daemon, projector, served
from support.board import board
from support.node_packages import npm_install
from support.snippets import blocks, follow, needs, run_snippets, snippets, statements
from support.transcripts import CLAUDE_1, CODEX_NEW, FILES, SESSION, written

ROOT = Path(__file__).parents[2]
PAGES = {
    path.stem: path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"))
}
README, STARTED, READING = PAGES["README"], PAGES["getting-started"], PAGES["reading-views"]
WRITING, SEARCH, OPERATING = PAGES["writing-events"], PAGES["search"], PAGES["operating"]
MARCH_MS = 1_772_366_400_000
WEB_1 = (
    '{"type":"session_created","data":{"project":"web","messages":'
    '[{"role":"user","content":"Fix the login form"}]}}'
)
ANSWERED = {
    "type": "session_append",
    "data": {"messages": [{"role": "assistant", "content": "It loses its state. Mending it."}]},
}
RUN = {
    "README": "own server bash python command wait verify looking",
    "board": "sessions changes",
    "getting-started": "own bash view more look broken quarantine",
    "importing": "first",
    "operating": "backup restore aside log broken doctor",
    "postgresql": "server roles rights idle dump restore move back without",
    "projections": "new install testing",
    "python-api": "client errors projection testing",
    "reading-views": "list command python javascript changed",
    "search": "search whole words",
    "writing-events": "bash python javascript psql psycopg pg check command wait session psql_wait",
}
"""The names of the snippets that a test runs, here or in the tests of what a page is about."""
NOT_RUN = {
    "python3 -m venv .venv": "`.ci/run` installs and runs the demo and the suite, as these do",
    ".venv/bin/ruff format": "`.ci/run` does it",
    "pip wheel": "test_packaging.py makes the wheel, and installs it",
    "projector board": "runs until Ctrl-C; the tests of the board run it",
    "$ pip install '.[board]'": "runs until Ctrl-C; the tests of the board run it",
    "projector import claude-code --follow": "runs until Ctrl-C; test_import.py follows",
    "systemctl status": "needs systemd; deploy/try-systemd asks it the same",
    "systemctl stop projector\n/opt": "needs systemd; deploy/try-systemd installs and starts it",
    "litestream": "is no package of Debian's",
    ".venv/bin/pip install -e '.[dev,benchmarks]'": "measures for minutes; test_benchmarks.py",
    "$ projector status\nnewest event  4812": "needs 75 s; the tests of PostgreSQL's doctor",
    "package main": "Go needs 500 MB; tried with Go 1.26, go-sqlite3 1.14.52, msgpack 5.4, pgx 5.9",
    "use rusqlite": "Rust needs 600 MB; tried with Rust 1.63 and rusqlite 0.28, 1.95 and 0.40",
}
"""How the blocks begin that no test runs, and why none does."""
NO_PROGRAM = {"", "json", "yaml", "nginx"}
needs_sqlite3 = needs("sqlite3")


@needs_sqlite3
def test_every_snippet_does_what_it_says(database: Database) -> None:
    with daemon(database.path) as running:
        running.wait_for("started")
        page = README.replace("wait 1041", "wait 3")
        names = ("bash", "wait", "python", "command", "verify")
        printed = run_snippets(page, database.path.parent, *names)

    said = ["Fix the login form", "It loses its state. Mending it.", "Go on"]
    assert database.view("web-1")["project"] == "web"
    assert database.contents("web-1") == said
    verified = re.findall("sessions: 0 of 1 views (.*)", printed)
    assert verified == ["differ", "would change", "were fixed"]


@needs("sqlite3", "jq")
def test_a_view_is_read_as_the_page_says(database: Database) -> None:
    database.created("web-1", "one")
    database.created("web-2", "two")
    projector("run", "--once", "-d", database.path)

    printed = run_snippets(READING, database.path.parent, "list", "python", "changed")
    told = run_snippets(READING, database.path.parent, "command")

    assert printed == "web-2|ready|two\nweb-1|ready|one\nready 1\nweb-2|2\n"
    assert told.startswith("# web-1\n")
    assert "\nuser\n[" in told


def test_a_view_is_read_from_javascript_as_the_page_says(database: Database) -> None:
    database.created("web-1", "one")
    projector("run", "--once", "-d", database.path)
    npm_install(database.path.parent, "@msgpack/msgpack@3")

    assert run_snippets(READING, database.path.parent, "javascript") == "ready 1\n"


@needs_sqlite3
def test_the_first_steps_make_a_view_and_a_quarantined_event(database: Database) -> None:
    folder = database.path.parent
    with daemon(database.path) as running:
        running.wait_for("started")
        run_snippets(STARTED, folder, "bash")
        running.wait_until_at(1)
        follow(STARTED, folder, "view")
        run_snippets(STARTED, folder, "more")
        running.wait_until_at(3)
        looked = run_snippets(STARTED, folder, "look", "broken")
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
def test_words_are_found_as_the_page_says(database: Database) -> None:
    database.created("web-1", "deploying the login page", project="web")

    page = SEARCH.replace("2025-06-01", "2023-06-01")
    found = run_snippets(page, database.path.parent, "search")
    printed = run_snippets(SEARCH, database.path.parent, "whole", "words")

    assert found.count("web-1") == 2
    assert printed == "web-1|deploying the login page\n"


@pytest.mark.parametrize("page", [README, WRITING], ids=["README", "writing-events"])
def test_what_pages_say_in_sql_can_be_asked(database: Database, page: str) -> None:
    asked = statements(page)

    assert asked
    with closing(sqlite3.connect(database.path)) as connection:
        for statement in asked:
            connection.execute(f"EXPLAIN {statement}", [None] * statement.count("?"))


def test_the_test_of_a_projection_passes_as_the_page_shows_it() -> None:
    _, block = snippets(PAGES["projections"])["testing"]
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


@pytest.mark.parametrize("page", [README, STARTED], ids=["README", "getting-started"])
def test_a_database_of_ones_own_is_set_up_and_followed(tmp_path: Path, page: str) -> None:
    run_snippets(page, tmp_path, "own")

    assert Database(tmp_path / "local.db").log() == []


def test_transcripts_are_imported_as_the_page_says(tmp_path: Path) -> None:
    written(tmp_path / ".claude" / "projects" / "-p" / f"{SESSION}.jsonl", CLAUDE_1)
    written(tmp_path / ".codex" / "sessions" / FILES["codex, old"][0], CODEX_NEW)

    home = {"HOME": str(tmp_path), "CLAUDE_CONFIG_DIR": "", "CODEX_HOME": ""}
    run_snippets(PAGES["importing"], tmp_path, "first", **home)

    assert len(Database(tmp_path / "local.db").index()) == 3


@needs("curl")
def test_a_script_asks_a_board_as_the_page_says(database: Database, tmp_path: Path) -> None:
    database.created("web-1", "one")
    projector("run", "--once", "-d", database.path)

    with board(database, tmp_path / ".local" / "state") as running:
        page = PAGES["board"].replace("127.0.0.1:9188", running.host).replace("0-1041", "0-0")
        page = page.replace("curl -N", "! timeout 2 curl -N")  # it never ends by itself
        home = {"HOME": str(tmp_path), "TOKEN": running.token}
        printed = run_snippets(page, tmp_path, "sessions", "changes", **home)

    assert '"sessions":[{"id":"web-1",' in printed
    assert "event: messages\n" in printed


@needs_sqlite3
def test_a_backup_is_made_and_restored_as_the_page_says(database: Database) -> None:
    folder = database.path.parent
    (folder / "backup").mkdir()
    database.created("A-1", "one")
    projector("run", "--once", "-d", database.path)

    run_snippets(_operating(folder), folder, "backup")
    database.created("A-2", "two")
    (backup,) = (folder / "backup").iterdir()
    backup.rename(backup.with_name("local-2026-03-01.db"))
    restored = run_snippets(_operating(folder), folder, "restore")

    assert "sessions: 0 of 1 views differ" in restored
    assert len(database.log()) == 1


@needs_sqlite3
def test_a_wal_that_nobody_reads_is_moved_aside_as_the_page_says(database: Database) -> None:
    folder = database.path.parent
    for name in ("local.db-wal", "local.db-shm", "local.db-shm.aside"):
        (folder / name).write_text(name)

    run_snippets(_operating(folder), folder, "aside")

    kept = {path.name: path.read_text() for path in folder.glob("local.db-*")}
    assert kept.pop("local.db-shm.aside.~1~") == "local.db-shm.aside"
    assert kept == {f"local.db-{name}.aside": f"local.db-{name}" for name in ("wal", "shm")}


def _operating(folder: Path) -> str:
    """The page for a daemon in a folder, as it is for one that systemd has stopped."""
    page = OPERATING.replace("/var/lib/projector", str(folder)).replace("/backup/", "backup/")
    page = re.sub(r"^(systemctl|fuser|chown) ", ": ", page, flags=re.MULTILINE)
    return page.replace("--group projector", "")


@needs("sqlite3", "curl")
def test_a_quarantined_event_is_seen_in_the_metrics_as_the_page_says(database: Database) -> None:
    with daemon(database.path, options=served.HTTP) as running:
        page = OPERATING.replace("127.0.0.1:9187", served.address(running))
        printed = run_snippets(page, database.path.parent, "broken")

    assert "projector_lag_events" in printed


def test_the_doctor_says_what_the_page_shows(database: Database) -> None:
    database.sql("DROP TRIGGER event_log_no_update")

    follow(_operating(database.path.parent), database.path.parent, "doctor")


def test_every_snippet_is_run_or_it_is_said_why_not() -> None:
    assert {name: {*snippets(page)} for name, page in PAGES.items() if snippets(page)} == {
        name: {*names.split()} for name, names in RUN.items()
    }
    unnamed = {
        text
        for page in PAGES.values()
        for name, language, text in blocks(page)
        if not name and language not in {*NO_PROGRAM, "sql"}
    }
    assert {text for text in unnamed if not text.startswith((*NOT_RUN,))} == set()
    assert {begin for begin in NOT_RUN if not any(t.startswith(begin) for t in unnamed)} == set()
    in_sql = {name for name, page in PAGES.items() if statements(page)}
    assert in_sql == {"README", "writing-events", "postgresql", "reading-views"}
