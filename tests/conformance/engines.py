"""The engines that every law of the port is tried on; one more engine is one more line here."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol


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
    """`url` makes a place for one database in a folder, empty as yet, and says its URL."""

    name: str
    url: Callable[[Path], str]
    outsider: Callable[[str], Outsider]
    capabilities: frozenset[str]


CAPABILITIES: Final = {
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


ENGINES: Final = [
    Engine("sqlite", lambda at: f"{at}/local.db", SqliteOutsider, frozenset(CAPABILITIES)),
]
