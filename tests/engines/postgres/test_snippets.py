"""What pages tell to do on PostgreSQL, done; what writers are told, with a writer's role."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgpack
import psycopg
import pytest
from support import Database, projector
from support.node_packages import npm_install
from support.postgres import Server
from support.snippets import needs, run_snippets, statements

from session_projector.worker.storage import open as storage

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
WRITING = (DOCS / "writing-events.md").read_text()
WRITERS = {"psql": "deploy-42", "psycopg": "review-7", "pg": "triage-3"}
FIRST_ID = {
    "psql": "deploy-42-start",
    "psycopg": "review-7-start",
    "pg": "triage-3-start",
}
FULL = "too many connections for role"


class Log:
    """A database that is set up, and what a writer of it has: a role, a folder, programs."""

    def __init__(self, server: Server, url: str, folder: Path) -> None:
        self.server, self.url, self.folder = server, url, folder
        self.writers_url = url.replace("//postgres@", "//agent@")
        storage.database(url).setup(writer="agent")

    def write(self, *names: str, page: str = WRITING) -> list[str]:
        path = f"{self.server.binaries}:/usr/bin:/bin"
        url = self.writers_url
        return run_snippets(page, self.folder, *names, PATH=path, DATABASE_URL=url).split()

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def log(postgres: Server, tmp_path: Path) -> Iterator[Log]:
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'agent'"):
        postgres.sql("CREATE ROLE agent LOGIN")
    with postgres.database(template=postgres.template) as url:
        yield Log(postgres, url, tmp_path)
        postgres.sql("ALTER ROLE agent CONNECTION LIMIT -1")


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `npm install pg` makes."""
    folder = tmp_path_factory.mktemp("npm")
    npm_install(folder, "pg@8")
    return folder / "node_modules"


@pytest.fixture(params=WRITERS)
def name(request: pytest.FixtureRequest, log: Log) -> str:
    """The name of a snippet that writes."""
    if request.param == "pg":
        modules: Path = request.getfixturevalue("modules")
        (log.folder / "node_modules").symlink_to(modules)
    return str(request.param)


def with_ids_of_its_own(page: str) -> str:
    """The page, where the first event of each writer has an id of its own, as that of psql has."""
    for told, first in (
        ('"messages": [question]}', '"messages": [question]}, "review-7-start"'),
        ('"Why is the export slow?" }],\n}', '"Why is the export slow?" }],\n}, "triage-3-start"'),
    ):
        assert told in page
        page = page.replace(told, first)
    return page


@pytest.mark.parametrize("page", ["postgresql.md", "reading-views.md"])
def test_what_pages_ask_in_sql_is_answered(log: Log, page: str) -> None:
    asked = statements((DOCS / page).read_text())

    assert asked
    for statement in asked:
        log.sql(statement)


def test_each_writes_a_session_that_folds(log: Log, name: str) -> None:
    printed = log.write(name)

    projector("run", "--once", "-d", log.url)
    assert printed[-1] == "3"
    assert log.sql("SELECT count(*) FROM quarantine") == [(0,)]
    ((key, status, messages),) = log.sql(
        "SELECT session_id, status, message_count FROM session_index"
    )
    assert (key, messages) == (WRITERS[name], 2)
    assert status in ("done", "review")


def test_what_was_written_is_waited_for(log: Log) -> None:
    log.write("psql")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(log.write, "psql_wait")
        projector("run", "--once", "-d", log.url)
        waiting.result()

    ((data,),) = log.sql("SELECT data FROM view WHERE key = 'session:deploy-42'")
    assert isinstance(data, bytes)
    contents = [message["content"] for message in msgpack.unpackb(data)["messages"]]
    assert contents == ["Ship Tuesday's build", 'Built. It is "green".']


def test_what_is_written_again_is_there_once_and_has_its_first_position(
    log: Log, name: str
) -> None:
    page = with_ids_of_its_own(WRITING)
    log.write(name, page=page)

    log.write(name, page=page)

    ((seq, count),) = log.sql(
        f"SELECT min(seq), count(*) FROM event_log WHERE id = '{FIRST_ID[name]}'"
    )
    assert (seq, count) == (1, 1)


def test_another_attempt_that_is_still_open_is_waited_out(log: Log, name: str) -> None:
    page = with_ids_of_its_own(WRITING)
    log.write(name, page=page)
    log.sql("CREATE TABLE first AS SELECT * FROM event_log WHERE seq = 1")
    log.sql(
        "SET session_replication_role = replica; ALTER TABLE event_log DISABLE TRIGGER USER;"
        " DELETE FROM event_log; ALTER TABLE event_log ENABLE ALWAYS TRIGGER event_log_insert"
    )
    insert = (
        "INSERT INTO event_log (id, key, data, created_at)"
        " SELECT id, key, data, created_at FROM first"
    )
    with psycopg.connect(log.url) as other, ThreadPoolExecutor() as pool:
        other.execute(insert)
        writing = pool.submit(log.write, name, page=page)
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
        while log.sql(blocked) == [(0,)]:
            assert not writing.done()
        other.commit()
        writing.result()

    assert log.sql("SELECT count(*), count(DISTINCT id) FROM event_log") == [(3, 3)]


def test_a_server_that_takes_no_connection_is_waited_for(log: Log, name: str) -> None:
    said = log.server.log.count(FULL)
    log.server.sql("ALTER ROLE agent CONNECTION LIMIT 0")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(log.write, name)
        while log.server.log.count(FULL) == said:
            assert not writing.done()
        log.server.sql("ALTER ROLE agent CONNECTION LIMIT -1")
        writing.result()

    assert log.sql("SELECT count(*) FROM event_log") == [(3,)]


def test_a_different_event_under_a_known_id_is_refused(log: Log, name: str) -> None:
    log.sql(f"INSERT INTO event_log (id, key, data) VALUES ('{FIRST_ID[name]}', 'other', '{{}}')")

    with pytest.raises(subprocess.CalledProcessError):
        log.write(name, page=with_ids_of_its_own(WRITING))

    assert log.sql("SELECT count(*) FROM event_log") == [(1,)]


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs snippets as a superuser of a server, which stands for db.example."""
    with closing(Server()) as server:
        path = f"{server.binaries}:{os.environ['PATH']}"
        settings = {"PGHOST": str(server.socket), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        settings["DATABASE_URL"] = "postgresql://agent@/agents"

        def run(page: Path, *names: str, database: str = "agents") -> str:
            text = re.sub(r"-h db\.example\.com |db\.example(\.com)?", "", page.read_text())
            text = re.sub(r"\bagents\b", database, text).replace("\\password", "\\echo")
            text = text.replace("1041", "2")
            return run_snippets(text, tmp_path, *names, PATH=path, **settings)

        yield run


def test_a_server_is_set_up_saved_and_restored_as_the_pages_say(
    operator: Callable[..., str],
) -> None:
    page = DOCS / "postgresql.md"

    operator(page, "roles", "rights", "server", "idle")
    operator(DOCS / "writing-events.md", "psql")
    operator(ROOT / "README.md", "server")

    assert "sessions: 0 of 1 views differ" in operator(page, "dump", "restore")


@needs("sqlite3")
def test_a_log_is_moved_to_a_server_and_back_as_the_page_says(
    operator: Callable[..., str], database: Database
) -> None:
    page = DOCS / "postgresql.md"
    database.created("A-1", "one")
    projector("run", "--once", "-d", database.path)
    operator(page, "roles", database="others")

    operator(page, "move", "back")
    database.insert("A-1", 5)
    operator(page, "without")

    laptop, without = (database.path.with_name(f"{name}.db") for name in ("laptop", "without"))
    assert Database(laptop).views() == Database(without).views() == database.views()
    assert len(Database(without).log()) == 1
