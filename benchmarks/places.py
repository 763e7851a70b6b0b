"""Databases of either engine as any other program uses them: with plain SQL."""

import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support import INSERT, Database

Row = Sequence[Any]
"""Of `event_log`, as SQLite has it: id, key, data, created_at."""
LEADING: Final = (
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND classid = 1886547819 AND mode = 'ExclusiveLock'"
)


class Place(Database):
    """A file; `name` is what follows `-d`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = str(path)

    def insert_all(self, rows: Sequence[Row]) -> bool:
        """Insert the rows in one transaction; returns False if they are to be tried again."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            try:
                with connection:
                    connection.executemany(INSERT, rows)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_SCHEMA,
                ):
                    raise
                return False
        return True

    def insert_at(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert the rows of another log, each at its position."""
        places = "INSERT INTO event_log (seq, id, key, data, created_at) VALUES (?, ?, ?, ?, ?)"
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.executemany(places, rows)

    def led(self) -> bool:
        """Whether a daemon has begun to lead."""
        return self.path.with_name(self.path.name + "-projector.lock").exists()

    def unlock(self) -> None:
        """Let a second daemon lead beside the first."""
        self.path.with_name(self.path.name + "-projector.lock").unlink(missing_ok=True)

    def damage(self, *, adopted: bool) -> None:
        """Write rows as another program would, some of them damaged; if asked, as after an
        adoption."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            _damage(connection.execute, adopted, number="rowid", blob="x'80'")


class ServerPlace(Place):
    """A database on a PostgreSQL server. What it says has SQLite's types and texts."""

    def __init__(self, url: str) -> None:
        self.name = url

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        import psycopg  # SQLite needs none

        with psycopg.connect(self.name, autocommit=True) as connection:
            cursor = connection.execute(statement.replace("?", "%s").encode(), parameters)
            return [tuple(map(_unescaped, row)) for row in cursor] if cursor.description else []

    def log(self) -> list[tuple[Any, ...]]:
        rows = self.sql("SELECT seq, id, key, data, packed, created_at FROM event_log ORDER BY seq")
        return [(*row[:3], row[4] if row[3] is None else row[3], row[5]) for row in rows]

    def insert_all(self, rows: Sequence[Row]) -> bool:
        """Insert the rows in one transaction; returns False if they are to be tried again, as where
        the server was killed: some of them may be there."""
        import psycopg

        try:
            with psycopg.connect(self.name) as connection:
                for row in rows:
                    insert(connection, row)
        except (psycopg.OperationalError, psycopg.errors.UniqueViolation):
            return False
        return True

    def led(self) -> bool:
        return bool(self.leading())

    def leading(self) -> set[int]:
        """The daemons that lead any projection, by process id."""
        return {int(name.rpartition(":")[2]) for (name,) in self.sql(LEADING)}

    def damage(self, *, adopted: bool) -> None:
        import psycopg

        number = "(hashtext(key) & 1023)"
        while True:
            try:
                with psycopg.connect(self.name) as connection:
                    _damage(connection.execute, adopted, number=number, blob=r"'\x80'")
                return
            except psycopg.errors.DeadlockDetected:
                pass  # with a commit


def place_of(name: str) -> Place:
    return ServerPlace(name) if "://" in name else Place(Path(name))


def _damage(execute: Callable[[Any], Any], adopted: bool, *, number: str, blob: str) -> None:
    if adopted:
        execute("UPDATE checkpoint SET position = 0, digest = '', skipped = 0")
    execute(f"UPDATE view SET data = {blob} WHERE {number} % 3 = 0")
    execute(f"DELETE FROM view WHERE {number} % 5 = 0")
    execute("DELETE FROM session_index WHERE last_seq % 3 = 0")
    execute("UPDATE session_index SET title = 'other' WHERE last_seq % 5 = 0")
    execute(
        f"INSERT INTO view VALUES ('gone', 'session:gone', {blob}, 'x', 1, 1)"
        " ON CONFLICT DO NOTHING"
    )


def insert(connection: Any, row: Row) -> None:
    """Insert one row on a PostgreSQL server, in whose texts there can be no NUL."""
    column = "data" if isinstance(row[2], str) else "packed"
    values = [value.replace("\0", " ") if isinstance(value, str) else value for value in row]
    connection.execute(
        f"INSERT INTO event_log (id, key, {column}, created_at) VALUES (%s, %s, %s, %s)", values
    )


def _unescaped(value: Any) -> Any:
    if isinstance(value, str):  # see worker/storage/postgres/text.py
        return value.replace("\0010", "\0").replace("\0011", "\1")
    return value
