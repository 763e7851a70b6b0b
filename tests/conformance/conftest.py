"""What the laws are tried with: a fresh database of each engine, a store on it, an outsider."""

from collections.abc import Iterator

import pytest
from conformance.engines import CAPABILITIES, ENGINES, Engine, Outsider

from session_projector.worker.storage import open as storage
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Database, Store


def pytest_configure(config: pytest.Config) -> None:
    said = "needs(capability): a law for the engines that have this capability"
    config.addinivalue_line("markers", said)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        marks = metafunc.definition.iter_markers("needs")
        needed = {capability for mark in marks for capability in mark.args}
        assert needed <= CAPABILITIES.keys()
        able = [engine for engine in ENGINES if needed <= engine.capabilities]
        metafunc.parametrize("engine", able, ids=lambda engine: engine.name)


@pytest.fixture
def url(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a database can be made."""
    with engine.place(request, "local") as url:
        yield url


@pytest.fixture
def empty_url(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where another one could be, and none is."""
    with engine.place(request, "empty") as url:
        yield url


@pytest.fixture
def database(url: str) -> Database:
    """A fresh database, set up, whose calls read little at once and do not wait long."""
    limits = Limits(
        page_events=4,
        range_events=3,
        page_bytes=1000,
        page_keys=3,
        view_bytes=50_000,
        busy_timeout_s=0.01,
    )
    database = storage.database(url, limits)
    database.setup()
    return database


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with database.open(writable=True) as store:
        yield store


@pytest.fixture
def other(database: Database) -> Iterator[Store]:
    """A second store on the same database."""
    with database.open(writable=True) as store:
        yield store


@pytest.fixture
def outside(engine: Engine, url: str) -> Outsider:
    return engine.outsider(url)
