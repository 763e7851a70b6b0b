"""The engines that every law of the port is tried on; one more engine is one more line here."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Final, NamedTuple, Protocol

import psycopg
import pytest
from psycopg import sql


class Outsider(Protocol):
    """Another program at the same database: plain SQL, a connection of its own for each call.

    A text that is not UTF-8 is given, and comes back, as an instance of `Raw`.
    """

    error: type[Exception]
    """What its statements raise."""

    def sql(self, statement: str, *, patience_s: float = 30) -> list[tuple[Any, ...]]:
        """A statement that every engine understands, to its end."""
        ...

    def insert(self, table: str, **columns: Any) -> None:
        """One row of `event_log`, `view` or any other table."""
        ...

    def locking(self) -> Any:
        """A block for as long as which nobody else can write."""
        ...


class Raw(bytes):
    """The bytes of a text, whatever its encoding."""


class Engine(NamedTuple):
    """`place` makes a place for one database, empty as yet, and says its URL. `types` is what its
    messages call the types of columns."""

    name: str
    place: Callable[[pytest.FixtureRequest, str], AbstractContextManager[str]]
    outsider: Callable[[str], Outsider]
    types: dict[str, str]
    capabilities: frozenset[str]


CAPABILITIES: Final = {
    "one writer": "who writes keeps all others from writing, and is told of those who did before",
    "checks of indexes": "what is read by an index is compared with what is there",
    "upgrades": "the schema has changed since the first release",
    "odd values": "event_log keeps a BLOB as id, a text that is not UTF-8, a text as created_at",
    "file": "the database is one file, which can be replaced under the program",
    "processes": "who leads and who waits are processes of this machine",
}


class SqliteOutsider:
    """A program with nothing but SQLite."""

    error = sqlite3.Error

    def __init__(self, url: str) -> None:
        self._path = url

    def sql(self, statement: str, *, patience_s: float = 30) -> list[tuple[Any, ...]]:
        with self._connected(patience_s) as connection:
            return connection.execute(statement).fetchall()

    def insert(self, table: str, **columns: Any) -> None:
        values = ", ".join(
            "CAST(? AS TEXT)" if isinstance(value, Raw) else "?" for value in columns.values()
        )
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"
        with self._connected(30) as connection:
            connection.execute(statement, [*columns.values()])

    @contextmanager
    def locking(self) -> Iterator[None]:
        with self._connected(30) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    @contextmanager
    def _connected(self, patience_s: float) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=patience_s, isolation_level=None)
        with closing(connection):
            yield connection


class PostgresOutsider:
    """A program with nothing but psycopg, and all rights."""

    error = psycopg.Error

    def __init__(self, url: str) -> None:
        self._url = url

    def sql(self, statement: str, *, patience_s: float = 30) -> list[tuple[Any, ...]]:
        with self._connected(patience_s) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, **columns: Any) -> None:
        if table == "event_log" and isinstance(columns["data"], bytes):
            columns["packed"] = columns.pop("data")
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
        )
        with self._connected(30) as connection:
            connection.execute(statement, [*columns.values()])

    @contextmanager
    def locking(self) -> Iterator[None]:
        tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        with self._connected(30) as connection, connection.transaction(force_rollback=True):
            found = connection.execute(f"{tables} WHERE schemaname = 'public'".encode()).fetchall()
            every = ", ".join(name for (name,) in found)
            connection.execute(f"LOCK TABLE {every} IN EXCLUSIVE MODE".encode())
            yield

    @contextmanager
    def _connected(self, patience_s: float) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            patience = max(1, round(patience_s * 1000))  # 0 would be for ever
            connection.execute(f"SET lock_timeout = {patience}".encode())
            yield connection


@contextmanager
def _file(request: pytest.FixtureRequest, name: str) -> Iterator[str]:
    yield f"{request.getfixturevalue('tmp_path')}/{name}.db"


def _on_server(request: pytest.FixtureRequest, _: str) -> AbstractContextManager[str]:
    database: AbstractContextManager[str] = request.getfixturevalue("postgres").database()
    return database


ENGINES: Final = [
    Engine(
        "sqlite",
        _file,
        SqliteOutsider,
        {"TEXT": "TEXT", "INTEGER": "INTEGER"},
        frozenset(CAPABILITIES),
    ),
    Engine(
        "postgresql",
        _on_server,
        PostgresOutsider,
        {"TEXT": "text", "INTEGER": "bigint"},
        frozenset(),
    ),
]
