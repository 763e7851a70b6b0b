"""Helpers with real files and real processes: `Database` is any process, `projector` runs ours."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack

PROJECTOR = [sys.executable, "-P", "-m", "session_projector"]
INSERT = "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)"
T0 = 1_700_000_000_000


class Database:
    """A database file, used as any other process would use it: with plain SQL."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def insert(self, key: Any, data: Any, *, id: Any = ..., created_at: Any = T0) -> int:  # noqa: A002
        """Insert one event, encoding a dict as MessagePack; returns its position."""
        self._written += 1
        if isinstance(data, dict):
            data = msgpack.packb(data)
        event_id = f"e{self._written}" if id is ... else id
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            return connection.execute(INSERT, (event_id, key, data, created_at)).lastrowid or 0

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
        rows = self.sql("SELECT * FROM view WHERE key >= 'session:' AND key < 'session;'")
        return {row[1]: row for row in rows}

    def index(self) -> dict[str, tuple[Any, ...]]:
        return {row[0]: row for row in self.sql("SELECT * FROM session_index")}

    def view(self, session_id: str) -> Any:
        return msgpack.unpackb(self.views()[f"session:{session_id}"][2], strict_map_key=False)

    def contents(self, session_id: str) -> list[Any]:
        return [message["content"] for message in self.view(session_id)["messages"]]

    def quarantine(self) -> dict[int, str]:
        return dict(self.sql("SELECT seq, reason FROM quarantine ORDER BY seq"))

    def position(self) -> int:
        rows = self.sql("SELECT position FROM checkpoint WHERE name = 'sessions'")
        return rows[0][0] if rows else 0

    def everything(self) -> list[list[tuple[Any, ...]]]:
        """Return everything that a fold leaves, with every column except the generation."""
        return [
            self.sql("SELECT * FROM view ORDER BY key, id"),
            self.sql("SELECT * FROM session_index ORDER BY session_id"),
            self.sql("SELECT * FROM quarantine ORDER BY projection, seq"),
            self.sql("SELECT name, version, position, digest, skipped FROM checkpoint ORDER BY 1"),
        ]


def event(kind: str, data: Any, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "data": data, "timestamp": T0, **fields}


def projector(
    *arguments: str | Path, stdin: str | bytes = b"", check: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must exit with the code `check`."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*PROJECTOR, *map(str, arguments)], input=data, capture_output=True, check=False, **options
    )
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
    assert "Traceback" not in result.stderr, result.stderr
    if check is not None:
        assert result.returncode == check, result
    return result


class Daemon:
    """A `projector run` process; tests wait for its log lines."""

    def __init__(self, path: Path, *, program: list[str], options: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*program, "run", "-d", str(path), *options], stderr=subprocess.PIPE, text=True
        )
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

    def stop(self, signal: int) -> int:
        """Send a signal and wait for the process to end; returns the exit code."""
        self.process.send_signal(signal)
        self.process.communicate(timeout=30)
        return self.process.returncode


@contextmanager
def daemon(
    path: Path, *, program: list[str] = PROJECTOR, options: Sequence[str] = ()
) -> Iterator[Daemon]:
    """Run a daemon that does not outlive the block."""
    running = Daemon(path, program=program, options=options)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


WRITER = f"""
import json, sqlite3, sys, time
path, number = sys.argv[1:]
for n in range(600):
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
    with closing(sqlite3.connect(database.path)) as connection, connection:
        for number in range(first, first + events):
            kind, data = "session_append", {"messages": [{"role": "user", "content": str(number)}]}
            if number < sessions:
                kind, data = "session_created", {"project": "F"}
            row = (f"f{number}", f"F-{number % sessions}", msgpack.packb(event(kind, data)), T0)
            connection.execute(INSERT, row)


def copy(source: Path, target: Path) -> None:
    """Copy a whole database in place, as `sqlite3 TARGET '.restore SOURCE'` does."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)
