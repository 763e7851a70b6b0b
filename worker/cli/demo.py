"""`projector demo`: a scratch database, the real daemon, a few agents, and what they do to it."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from session_projector.projections.session_index import Entry
from session_projector.worker.cli import output
from session_projector.worker.errors import RetryLater
from session_projector.worker.operations.status import status
from session_projector.worker.sessions.read import sessions
from session_projector.worker.storage.open import database
from session_projector.worker.storage.port import Database

AGENTS: Final = 3
AGENT: Final = "session_projector.worker.storage.sqlite.demo_agent"


def run(seconds: float | None) -> None:
    """Until Ctrl-C, SIGTERM or the end of `seconds`; then says where the database is."""
    path = Path(tempfile.mkdtemp(prefix="projector-demo-")) / "local.db"
    scratch = database(str(path))
    scratch.setup()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            daemon = stack.enter_context(_process("run", "-d", str(path), "--log-level", "warning"))
            for agent in range(AGENTS):
                stack.enter_context(_agent(path, agent, daemon.pid))
            _show(scratch, daemon, seconds)
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
    arguments = (str(path), str(number), str(AGENTS), str(daemon))
    with _python("-m", AGENT, *arguments) as process:
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


def _show(scratch: Database, daemon: subprocess.Popen[bytes], seconds: float | None) -> None:
    terminal = sys.stdout.isatty()
    deadline = None if seconds is None else time.monotonic() + seconds
    seen: dict[str, Entry] = {}
    while deadline is None or time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise RetryLater("the daemon of the demo has ended", "its last words stand above")
        with scratch.open() as store:
            entries = list(sessions(store))
        now = status(scratch)
        lag = now.projections[0].lag_events
        if terminal:
            head = f"{now.newest} events, {len(entries)} sessions, lag {lag} events"
            _draw(head, scratch.name, entries)
        else:
            for entry in entries:
                if entry != seen.get(entry.session_id):
                    line = f"{entry.session_id} {entry.status}, {entry.message_count} messages"
                    print(output.one_line(f"{line}, lag {lag} events"), flush=True)
        seen = {entry.session_id: entry for entry in entries}
        time.sleep(0.2)


def _draw(head: str, name: str, entries: list[Entry]) -> None:
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
        output.one_line(name),
        "",
        head,
        "",
        *output.table(("session", "status", "messages", "changed", "title"), rows).split("\n"),
        "",
        "Ctrl-C ends it",
    ]
    picture = "".join(f"{line[:columns]}\x1b[K\n" for line in lines[: height - 1])
    print(f"\x1b[H{picture}\x1b[J", end="", flush=True)
