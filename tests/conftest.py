"""What every test file shares."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import Database
from support.postgres import PostgresDatabase, Server

from session_projector.worker.storage.sqlite.schema import migrate as schema

settings.register_profile(
    "projector",
    deadline=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),  # what lands must not hang on chance
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("few", settings.get_profile("projector"), max_examples=10)
settings.load_profile("projector")

# A shell's background job ignores it, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

BOTH = ("daemon", "replay", "commands", "board")
"""The folders of tests that run on every engine."""


def pytest_configure(config: pytest.Config) -> None:
    for said in (
        "sqlite: what only SQLite has, or what is said in its words; on SQLite alone",
        "once: it says nothing of databases, or takes long, so that SQLite is enough",
    ):
        config.addinivalue_line("markers", said)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.definition.path.parent.name
    if "database" in metafunc.fixturenames and folder in BOTH:
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kept = [item for item in items if not _is_left_out(item)]
    # What takes longest comes first, or at the end all wait for it.
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("timeout") is None)


def _is_left_out(item: pytest.Item) -> bool:
    """Of a test on SQLite alone the run on another engine; it is not one that was skipped."""
    alone = any(map(item.get_closest_marker, ("sqlite", "once")))
    call = getattr(item, "callspec", None)
    return alone and call is not None and call.params.get("database") == "postgresql"


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh database of ours; in the folders of `BOTH` one of each engine."""
    if getattr(request, "param", "sqlite") == "postgresql":
        database: Database = PostgresDatabase.fresh(request.getfixturevalue("postgres"))
    else:
        database = Database(tmp_path / "local.db")
        schema.setup(database.path)
    with closing(database):
        yield database


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server, one for each process that runs tests, and started by the first that
    asks for it."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = 1
