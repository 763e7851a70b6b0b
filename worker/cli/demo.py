"""`projector demo`: a scratch database, the real daemon, a few agents, and what they do to it."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from session_projector.projections.session_index import Entry
from session_projector.worker.cli import output
from session_projector.worker.errors import RetryLater
from session_projector.worker.sessions import read as readers
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.schema import migrate as schema

INSERT: Final = "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)"
AGENTS: Final = 3
_TASKS: Final = (
    ("web", "The login form loses what was typed when the session expires."),
    ("web", "Make the board readable on a phone."),
    ("api", "Add a rate limit to POST /tokens, with a test."),
    ("api", "Why does the nightly export take 40 minutes?"),
    ("infra", "Upgrade the base image and see what breaks."),
    ("infra", "Alert when the disk has less than 10 % left."),
)
_STEPS: Final = (
    ("Bash", {"command": "git grep -n 'session' | head"}, "12 places; two of them look relevant."),
    ("Read", {"file_path": "src/app.py", "limit": 80}, "The state is kept in the closure."),
    ("Edit", {"file_path": "src/app.py", "old_string": "state", "new_string": "saved"}, "Edited."),
    ("Bash", {"command": "pytest -q", "timeout": 120}, "41 passed in 3.2s"),
    ("Bash", {"command": "git diff --stat"}, "2 files changed, 14 insertions(+), 3 deletions(-)"),
)


def run(seconds: float | None) -> None:
    """Until Ctrl-C, SIGTERM or the end of `seconds`; then says where the database is."""
    path = Path(tempfile.mkdtemp(prefix="projector-demo-")) / "local.db"
    schema.setup(path)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            daemon = stack.enter_context(_process("run", "-d", str(path), "--log-level", "warning"))
            for agent in range(AGENTS):
                stack.enter_context(_agent(path, agent, daemon.pid))
            _show(path, daemon, seconds)
    except KeyboardInterrupt:
        pass
    name = output.printable(str(path))
    print(f"\nThe daemon and its writers have ended; the database is {name}. Try:\n")
    for command in (
        f"projector session list -d {name}",
        f"projector session view web-1 -d {name}",
        f"projector status -d {name}",
        f"sqlite3 {name} 'SELECT seq, key, substr(data, 1, 60) FROM event_log LIMIT 5'",
        f"projector run -d {name}",
    ):
        print(f"  {command}")


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`projector …` as its own process, out of reach of the terminal's Ctrl-C, ended with us."""
    with _python("-m", "session_projector", *arguments) as process:
        yield process


@contextmanager
def _agent(path: Path, number: int, daemon: int) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; from worker import demo; demo.write(sys.argv[1], *map(int, sys.argv[2:]))"
    with _python("-c", code, str(path), str(number), str(daemon)) as process:
        yield process


@contextmanager
def _python(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    # -P: a folder named `worker` where the demo is started is not ours.
    process = subprocess.Popen([sys.executable, "-P", *arguments], start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _show(path: Path, daemon: subprocess.Popen[bytes], seconds: float | None) -> None:
    terminal = sys.stdout.isatty()
    deadline = None if seconds is None else time.monotonic() + seconds
    seen: dict[str, Entry] = {}
    while deadline is None or time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise RetryLater("the daemon of the demo has ended", "its last words stand above")
        with Client.reading(path) as client:
            entries = list(readers.sessions(client))
        state = readers.status(path)
        lag = state["projections"][0]["lag_events"]
        if terminal:
            head = f"{state['newest']} events, {len(entries)} sessions, lag {lag} events"
            _draw(head, path, entries)
        else:
            for entry in entries:
                if entry != seen.get(entry.session_id):
                    line = f"{entry.session_id} {entry.status}, {entry.message_count} messages"
                    print(output.one_line(f"{line}, lag {lag} events"), flush=True)
        seen = {entry.session_id: entry for entry in entries}
        time.sleep(0.2)


def _draw(head: str, path: Path, entries: list[Entry]) -> None:
    """The whole picture over the last one, each line cleared to its end, cut to the terminal."""
    columns, height = shutil.get_terminal_size()
    newest = sorted(entries, key=lambda entry: entry.last_seq)[-max(height - 8, 1) :]
    now = time.time() * 1000
    rows = [
        (
            entry.session_id,
            entry.status,
            entry.message_count,
            f"{max(now - entry.updated_at, 0) / 1000:.1f} s ago",
            entry.title or "",
        )
        for entry in sorted(newest, key=lambda entry: (entry.project, entry.created_at))
    ]
    lines = [
        "projector demo: agents INSERT events, a daemon folds them, this reads the views",
        output.one_line(str(path)),
        "",
        head,
        "",
        *output.table(("session", "status", "messages", "changed", "title"), rows).split("\n"),
        "",
        "Ctrl-C ends it",
    ]
    picture = "".join(f"{line[:columns]}\x1b[K\n" for line in lines[: height - 1])
    print(f"\x1b[H{picture}\x1b[J", end="", flush=True)


# The writers: each in a process of its own, none of them using anything of projector.


def write(path: str, agent: int, daemon: int) -> None:
    """Work on one task after the other, as agent number `agent`, as long as the demo lives."""
    demo = os.getppid()
    chance = random.Random(agent)
    insert = _insert_as_shell if agent == 0 else _insert_as_library
    for turn in range(1_000_000):
        project, task = _TASKS[(agent + turn * AGENTS) % len(_TASKS)]
        session_id = f"{project}-{agent + 1 + turn * AGENTS}"
        now = time.time_ns() // 1_000_000
        for step, (kind, data) in enumerate(_work(project, task, chance)):
            event = {"type": kind, "sessionId": session_id, "data": data, "timestamp": now}
            if os.getppid() != demo:  # it was killed, and could end nobody
                with suppress(ProcessLookupError):
                    os.kill(daemon, signal.SIGTERM)
                return
            insert(path, f"session:{session_id}", event)
            time.sleep(chance.uniform(0.05, 0.2) if step == 0 else chance.uniform(0.2, 1.2))
            now = time.time_ns() // 1_000_000


def _work(project: str, task: str, chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "session_created", {"project": project, "messages": [{"role": "user", "content": task}]}
    yield "session_status_update", {"status": "in-progress"}
    for tool, use, answer in chance.sample(_STEPS, k=chance.randint(3, len(_STEPS))):
        call = {"type": "tool_use", "id": uuid.uuid4().hex[:8], "name": tool, "input": use}
        said = [{"type": "text", "text": f"I will use {tool}."}, call]
        yield "session_append", {"messages": [{"role": "assistant", "content": said}]}
        yield "session_append", {"messages": [{"role": "user", "content": answer}]}
    yield "session_append", {"messages": [{"role": "assistant", "content": "Done. Please review."}]}
    yield "session_status_update", {"status": chance.choice(("review", "done"))}


def _insert_as_library(path: str, key: str, event: dict[str, Any]) -> None:
    """Any language's way: MessagePack in a BLOB."""
    connection = sqlite3.connect(path, timeout=5)
    with connection:
        row = (uuid.uuid4().hex, key, msgspec.msgpack.encode(event), event["timestamp"])
        connection.execute(INSERT, row)
    connection.close()


def _insert_as_shell(path: str, key: str, event: dict[str, Any]) -> None:
    """The `sqlite3` shell's way, where there is one: JSON in a TEXT, the SQL written out."""
    values = (uuid.uuid4().hex, key, json.dumps(event), event["timestamp"])
    quoted = ", ".join("'" + str(value).replace("'", "''") + "'" for value in values)
    sql = f"INSERT INTO event_log (id, key, data, created_at) VALUES ({quoted})"
    if shell := shutil.which("sqlite3"):
        subprocess.run([shell, "-cmd", ".timeout 5000", path, sql], check=True)
        return
    connection = sqlite3.connect(path, timeout=5)
    with connection:
        connection.execute(sql)
    connection.close()
