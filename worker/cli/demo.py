"""`projector demo`: the real daemon and a few agents on a scratch database."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from session_projector.projections.session_index import Entry
from session_projector.worker.cli import output
from session_projector.worker.cli.inert import printable
from session_projector.worker.errors import TransientError, no_thread, quoted
from session_projector.worker.operations.status import status
from session_projector.worker.sessions.read import sessions
from session_projector.worker.storage.open import database
from session_projector.worker.storage.port import Database

AGENTS: Final = 3
AGENT: Final = "session_projector.worker.storage.sqlite.demo_agent"


def demo(
    seconds: Annotated[
        float | None, typer.Option(help="Stop after this time instead of on Ctrl-C.", min=1)
    ] = None,
) -> None:
    """Watch a daemon fold what a few agents write, in a scratch database."""
    path = Path(tempfile.mkdtemp(prefix="projector-demo-")) / "local.db"
    scratch = database(str(path))
    scratch.setup()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            quiet = ("--log-level", "warning")
            daemon = stack.enter_context(
                _python("session_projector", "run", "-d", str(path), *quiet)
            )
            for number in range(AGENTS):
                of = (str(path), str(number), str(AGENTS), str(daemon.pid))
                stack.enter_context(_python(AGENT, *of))
            _show(scratch, daemon, seconds)
    except KeyboardInterrupt:
        pass
    name = printable(quoted(path))
    print(f"\nThe daemon and the agents have stopped; the database is {name}. Try:\n")
    for command in (
        f"projector session list -d {name}",
        f"projector session view web-1 -d {name}",
        f"projector status -d {name}",
        f"sqlite3 {name} 'SELECT seq, key, substr(data, 1, 60) FROM event_log LIMIT 5'",
        f"projector run -d {name}",
    ):
        print(f"  {command}")


@contextmanager
def _python(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ignores the terminal's Ctrl-C and ends with the block."""
    # -P: not a `session_projector` in the working folder.
    command = [sys.executable, "-P", "-m", module, *arguments]
    with no_thread():
        process = subprocess.Popen(command, start_new_session=True)
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
            raise TransientError("the daemon of the demo has ended", "its last log lines are above")
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
    """Draw the picture over the last one, cut to the size of the terminal."""
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
        "Ctrl-C stops it",
    ]
    picture = "".join(f"{line[:columns]}\x1b[K\n" for line in lines[: height - 1])
    # To the terminal itself, as the commands' own standard output takes no escape sequences.
    print(f"\x1b[H{picture}\x1b[J", end="", flush=True, file=sys.__stdout__)
