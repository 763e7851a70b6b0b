"""The PostgreSQL server of the benchmarks, and databases on it.

It is one of their own, in a temporary folder, with the default durability: `fsync` and
`synchronous_commit` are on. PROJECTOR_BENCH_POSTGRES=URL names another one, whose role may create
databases; these are deleted afterwards.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
from workload import Log

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support import postgres

from session_projector.worker.storage import open as storage

DEFAULTS: Final[dict[str, str | int]] = {
    "fsync": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "max_wal_senders": 10,
    "shared_buffers": "128MB",
}
"""What a server has that nobody has configured, and one for tests has not."""
COPY: Final = "COPY event_log (id, key, packed, created_at) FROM STDIN (FORMAT binary)"
GIVEN: Final = os.environ.get("PROJECTOR_BENCH_POSTGRES")
FILE_COPY_SINCE: Final = 150_000
"""The version from which on the pages of a copied database need not be logged."""
_names: Final = (f"projector_bench_{os.getpid()}_{number}" for number in count(1))


class Server:
    """A server, `own` where it is that of the benchmarks."""

    def __init__(self, given: str | None, own: postgres.Server | None) -> None:
        self._given = given
        self.own = own
        self._templates: dict[Log, str] = {}

    def url(self, database: str) -> str:
        if self.own:
            return self.own.url(database)
        return urlsplit(str(self._given))._replace(path=f"/{database}").geturl()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement beside the databases of the benchmarks."""
        url = str(self._given) if self.own is None else self.own.url("postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def filled(self, log: Log) -> str:
        """Return the name of a database with the log, filled once for all benchmarks of a run."""
        if log not in self._templates:
            name = next(_names)
            self.sql(f"CREATE DATABASE {name}")
            self._templates[log] = name
            storage.database(self.url(name)).setup()
            with psycopg.connect(self.url(name), autocommit=True) as connection:
                with connection.cursor().copy(COPY) as copy:
                    copy.set_types(["text", "text", "bytea", "int8"])
                    for row in log.rows():
                        copy.write_row(row)
                connection.execute("VACUUM (ANALYZE)")
        return self._templates[log]

    @contextmanager
    def fresh(self, log: Log) -> Iterator[str]:
        """Give the URL of a database with the log that nobody has folded, written to disk."""
        template, name = self.filled(log), next(_names)
        ((version,),) = self.sql("SELECT current_setting('server_version_num')::int")
        how = "STRATEGY file_copy" if version >= FILE_COPY_SINCE else ""
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} {how}")
        try:
            self.sql("CHECKPOINT")
            yield self.url(name)
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Delete what was filled."""
        for template in self._templates.values():
            with suppress(psycopg.Error):
                self.sql(f"DROP DATABASE {template} WITH (FORCE)")


@contextmanager
def running() -> Iterator[Server]:
    """The server for the block."""
    try:
        own = None if GIVEN else postgres.Server(**DEFAULTS)
    except pytest.skip.Exception as missing:
        raise RuntimeError(str(missing)) from None
    try:
        with closing(Server(GIVEN, own)) as server:
            yield server
    finally:
        if own:
            own.close()


def described() -> str:
    """Say which server it is, in general terms."""
    if GIVEN:
        with psycopg.connect(GIVEN) as connection:
            version = connection.info.server_version
        return f"{version // 10_000}.{version % 10_000}, one that was given"
    try:
        programs = postgres.binaries()
    except pytest.skip.Exception:
        return "none"
    said = subprocess.check_output([programs / "postgres", "--version"], text=True)
    return f"{said.split()[2]}, fsync and synchronous_commit on, 128 MB of shared buffers"
