"""What every test file shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import Database
from support.postgres import Server

from session_projector.worker.storage.sqlite.schema import migrate as schema

settings.register_profile(
    "projector",
    deadline=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),  # what lands must not hang on chance
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("projector")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A fresh database of ours."""
    path = tmp_path / "local.db"
    schema.setup(path)
    return Database(path)


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
