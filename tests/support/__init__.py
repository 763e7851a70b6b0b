"""Helpers with real files and real processes: `Database` is any process, `projector` runs ours."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGSTOP
from tempfile import TemporaryFile
from typing import IO, Any

import msgpack

from session_projector.worker import linux
from session_projector.worker.errors import quoted
from session_projector.worker.storage import open as storage
from support import forks

PROJECTOR = [sys.executable, "-P", "-m", "session_projector"]
INSERT = "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)"
T0 = 1_700_000_000_000


class Database:
    """A database file, used as any other process would use it: with plain SQL.

    `support.postgres.PostgresDatabase` is one on a server, with the same face.
    """

    engine = "sqlite"
    error: type[Exception] = sqlite3.Error
    """What its statements raise."""
    replace = "INSERT OR REPLACE INTO event_log (seq, id) VALUES (:seq, 'other')"
    """A statement that would replace the event at a position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = self._others = 0

    @property
    def url(self) -> str:
        """For `-d`."""
        return str(self.path)

    @property
    def named(self) -> str:
        """The same as hints name it, quoted for a shell."""
        return quoted(self.url)

    def sql(self, statement: str, *parameters: Any, **named: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            return connection.execute(statement, named or parameters).fetchall()

    def insert(self, key: Any, data: Any, *, id: Any = ..., created_at: Any = T0) -> int:  # noqa: A002
        """Insert one event, encoding a dict as MessagePack; returns its position."""
        self._written += 1
        if isinstance(data, dict):
            data = msgpack.packb(data)
        return self._insert(f"e{self._written}" if id is ... else id, key, data, created_at)

    def _insert(self, *row: Any) -> int:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            return connection.execute(INSERT, row).lastrowid or 0

    def insert_many(self, rows: Iterable[tuple[Any, ...]]) -> int:
        """Insert events (id, key, data, created_at) in one transaction; returns the newest
        position."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.executemany(INSERT, rows)
            return int(connection.execute("SELECT max(seq) FROM event_log").fetchone()[0])

    def insert_log(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Insert events with their positions, as a backup of a log does."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.executemany("INSERT INTO event_log VALUES (?, ?, ?, ?, ?)", rows)

    def another(self) -> "Database":
        """A fresh database on the same engine, set up."""
        self._others += 1
        path = self.path.with_name(f"{self.path.stem}-{self._others}.db")
        storage.database(str(path)).setup()
        return Database(path)

    def renewed(self) -> "Database":
        """The same with nothing in it, for the next example of a test."""
        return self.another()

    def copied(self) -> "Database":
        """A backup."""
        copy = self.another()
        copy.restore(self)
        return copy

    def restore(self, backup: "Database") -> None:
        """Make all as it is in a backup, in place, under whoever has the database open."""
        copy(backup.path, self.path)

    def close(self) -> None:
        """Delete it, if nothing else does."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For the block nobody else can write."""
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A connection of another program whose reads are all of one moment."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            yield connection

    def is_pinned(self) -> bool:
        """Whether somebody's read keeps alive what is outdated."""
        return bool(self.sql("PRAGMA wal_checkpoint(TRUNCATE)")[0][0])

    def on(self, event: str, table: str, statement: str, *, when: str = "") -> None:
        """Create a trigger, such as of `AFTER UPDATE`."""
        self.sql(
            f"CREATE TRIGGER on_{event.split()[-1]} {event} ON {table}"
            f"{f' WHEN {when}' if when else ''} BEGIN {statement}; END"
        )

    def refuse(self, table: str, why: str) -> None:
        """Let a trigger refuse rows of a table."""
        self.on("BEFORE INSERT", table, f"SELECT RAISE (ABORT, '{why}')")

    def admit(self, table: str) -> None:
        """Drop that trigger."""
        self.sql("DROP TRIGGER on_INSERT")

    def triggers(self) -> set[str]:
        """The names of those that `on` created."""
        names = self.sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        return {name for (name,) in names if name.startswith("on_")}

    def writer(self, number: int | str) -> subprocess.Popen[bytes]:
        """A process that writes 300 events, each on a connection of its own."""
        return subprocess.Popen([sys.executable, "-c", WRITER, str(self.path), str(number)])

    def created(self, session_id: str, *messages: str, project: str = "P") -> int:
        said = [{"role": "user", "content": text} for text in messages]
        data = {"project": project, "messages": said}
        return self.insert(f"session:{session_id}", event("session_created", data))

    def appended(self, session_id: str, *messages: str) -> int:
        said = [{"role": "assistant", "content": text} for text in messages]
        return self.insert(f"session:{session_id}", event("session_append", {"messages": said}))

    def log(self) -> list[tuple[Any, ...]]:
        return self.sql("SELECT seq, id, key, data, created_at FROM event_log ORDER BY seq")

    def views(self) -> dict[str, tuple[Any, ...]]:
        rows = self._stored("SELECT * FROM view WHERE key >= 'session:' AND key < 'session;'")
        return {row[1]: row for row in rows}

    def _stored(self, select: str) -> list[tuple[Any, ...]]:
        """Rows that the projector wrote."""
        return self.sql(select)

    def index(self) -> dict[str, tuple[Any, ...]]:
        return {row[0]: row for row in self._stored("SELECT * FROM session_index")}

    def view(self, session_id: str) -> Any:
        return msgpack.unpackb(self.views()[f"session:{session_id}"][2], strict_map_key=False)

    def contents(self, session_id: str) -> list[Any]:
        return [message["content"] for message in self.view(session_id)["messages"]]

    def quarantine(self) -> dict[int, str]:
        return dict(self._stored("SELECT seq, reason FROM quarantine ORDER BY seq"))

    def position(self) -> int:
        rows = self.sql("SELECT position FROM checkpoint WHERE name = 'sessions'")
        return rows[0][0] if rows else 0

    def everything(self) -> list[list[tuple[Any, ...]]]:
        """Return everything that a fold leaves, with every column except the generation."""
        checkpoints = "SELECT name, version, position, digest, skipped FROM checkpoint ORDER BY 1"
        return [
            self._stored("SELECT * FROM view ORDER BY key, id"),
            self._stored("SELECT * FROM session_index ORDER BY session_id"),
            self._stored("SELECT * FROM quarantine ORDER BY projection, seq"),
            self._stored(checkpoints),
        ]


def event(kind: str, data: Any, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "data": data, "timestamp": T0, **fields}


def projector(
    *arguments: str | Path,
    stdin: str | bytes = b"",
    check: int | None = 0,
    cwd: Path | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
    code: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must exit with the code `check`. `more` is what it has in its
    environment besides, `code` what runs instead of the program, where that is imported already."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    command = [*map(str, arguments)]
    if env is not None or not forks.is_as_it_was():
        program = [sys.executable, "-P", "-c", code] if code else PROJECTOR
        done = subprocess.run(
            [*program, *command],
            input=data,
            capture_output=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **more} if more else env,
            timeout=timeout,
        )
    else:
        done = _forked(command, data, timeout, folder=cwd and str(cwd), code=code, more=more)
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
    assert "Traceback" not in result.stderr, result.stderr
    if check is not None:
        assert result.returncode == check, result
    return result


def started(*arguments: str | Path, code: str = "") -> forks.Forked:
    """The program in the background; nobody reads what it says."""
    with Path(os.devnull).open("r+b", buffering=0) as null:
        return forks.Forked([*map(str, arguments)], *[null.fileno()] * 3, code=code)


def shell(
    commands: str, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run what is pasted into a shell; the program in it is forked, as `projector` does it."""
    asked, ask = os.pipe()
    answer, told = os.pipe()
    ours = (  # a redirection of `printf` or `read` would change the streams of the shell itself
        "projector() { local code shell=$BASHPID;"
        f' (printf \'%s\\0\' $# $shell "$PWD" "$@" >&{ask}); read -r -u {answer} code;'
        " return $code; }\n"
    )
    with TemporaryFile("a+b") as stdout, TemporaryFile("a+b") as stderr:
        running = subprocess.Popen(
            ["bash", "-euc", ours + commands],
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            pass_fds=[ask, answer],
        )
        os.close(ask)
        os.close(answer)
        with os.fdopen(asked, "rb") as requests, os.fdopen(told, "wb", buffering=0) as answers:
            while count := _word(requests):
                pid, folder, *command = [_word(requests) for _ in range(int(count) + 2)]
                answers.write(b"%d\n" % (_forked_for(pid, folder, command) % 256))
        code = running.wait()
        stdout.seek(0)
        stderr.seek(0)
        said = stdout.read().decode(), stderr.read().decode()
        return subprocess.CompletedProcess(commands, code, *said)


def _word(file: IO[bytes]) -> str:
    """What stands before the next zero."""
    return os.fsdecode(b"".join(iter(lambda: file.read(1).strip(b"\0"), b"")))


def _forked_for(pid: str, folder: str, command: list[str]) -> int:
    """Run a command with the streams of a process."""
    written = os.O_WRONLY | os.O_APPEND
    modes = enumerate((os.O_RDONLY, written, written))
    streams = [os.open(f"/proc/{pid}/fd/{number}", mode) for number, mode in modes]
    process = forks.Forked(command, *streams, folder=folder)
    for stream in streams:
        os.close(stream)
    return process.wait()


def _forked(
    command: list[str], data: bytes, timeout: float | None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(data)
        stdin.seek(0)
        numbers = [stream.fileno() for stream in (stdin, stdout, stderr)]
        process = forks.Forked(command, *numbers, **options)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


class Daemon:
    """A `projector run` process; tests wait for its log lines."""

    def __init__(
        self, url: str | Path, *, program: list[str], options: Sequence[str] = (), code: str = ""
    ) -> None:
        command = ["run", "-d", str(url), *options]
        self.process: subprocess.Popen[str] | forks.Forked
        if program is PROJECTOR and forks.is_as_it_was():
            ours, theirs = os.pipe()
            self.process = forks.Forked(command, 0, 1, theirs, code=code)
            os.close(theirs)
            self.process.stderr = os.fdopen(ours)
        else:
            self.process = subprocess.Popen([*program, *command], stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []

    def wait_for(self, name: str, **fields: Any) -> dict[str, Any]:
        """Wait for the next log line with this name and these fields."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            if not text.startswith("{"):
                raise AssertionError(text + self.process.stderr.read())
            line = json.loads(text)
            self.lines.append(line)
            if line["event"] == name and fields.items() <= line.items():
                return line
        raise AssertionError(f"the daemon ended without {name} {fields}: {self.lines}")

    def wait_until_at(self, position: int) -> None:
        while self.wait_for("batch_committed")["position"] < position:
            pass

    def suspend(self) -> None:
        """Send SIGSTOP, and wait until it takes effect."""
        self.process.send_signal(SIGSTOP)
        while not linux.is_stopped(self.process.pid):
            time.sleep(0.001)

    def stop(self, signal: int) -> int:
        """Send a signal and wait for the process to end; returns the exit code."""
        self.process.send_signal(signal)
        self.process.communicate(timeout=30)
        return self.process.returncode


@contextmanager
def daemon(
    url: str | Path,
    *,
    program: list[str] = PROJECTOR,
    options: Sequence[str] = (),
    code: str = "",
) -> Iterator[Daemon]:
    """Run a daemon that does not outlive the block; `code` is what runs it in another way."""
    running = Daemon(url, program=program, options=options, code=code)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


WRITER = f"""
import json, sqlite3, sys, time
path, number = sys.argv[1:]
for n in range(300):
    kind, data = "session_append", {{"messages": [{{"role": "user", "content": str(n)}}]}}
    if n < 5:
        kind, data = "session_created", {{"project": "W"}}
    event = json.dumps({{"type": kind, "data": data}})
    connection = sqlite3.connect(path, timeout=30)
    with connection:
        key = f"W-{{number}}-{{n % 5}}"
        connection.execute("{INSERT}", (f"{{number}}-{{n}}", key, event, {T0}))
    connection.close()
    time.sleep(0.002)
"""


def fill(database: Database, *, sessions: int, events: int, first: int = 0) -> None:
    """Insert many small events in one transaction."""
    rows = []
    for number in range(first, first + events):
        kind, data = "session_append", {"messages": [{"role": "user", "content": str(number)}]}
        if number < sessions:
            kind, data = "session_created", {"project": "F"}
        rows.append((f"f{number}", f"F-{number % sessions}", msgpack.packb(event(kind, data)), T0))
    if rows:
        database.insert_many(rows)


def copy(source: Path, target: Path) -> None:
    """Copy a whole database in place, as `sqlite3 TARGET '.restore SOURCE'` does."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)
