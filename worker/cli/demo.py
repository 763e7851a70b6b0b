"""`projector demo`: the real daemon and a few agents on a scratch database."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Final, Literal

import typer

from session_projector.projections.session_index import Entry
from session_projector.worker.cli import output
from session_projector.worker.cli.inert import printable
from session_projector.worker.errors import TransientError, UsageError, no_thread, quoted
from session_projector.worker.operations.status import status
from session_projector.worker.sessions.read import sessions
from session_projector.worker.storage.open import database, hide_passwords, scratch
from session_projector.worker.storage.port import Database

AGENTS: Final = 3


def demo(
    seconds: Annotated[
        float | None, typer.Option(help="Stop after this time instead of on Ctrl-C.", min=1)
    ] = None,
    engine: Annotated[
        Literal["sqlite", "postgresql"],
        typer.Option(help="postgresql: on the server of -d, else one that is started for it."),
    ] = "sqlite",
    server: Annotated[
        str | None,
        typer.Option("-d", metavar="URL", help="A server, for a schema of its own on it."),
    ] = None,
    board: Annotated[bool, typer.Option("--board", help="Show it in a browser, too.")] = False,
) -> None:
    """Watch a daemon fold what a few agents write, in a scratch database."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    if server is not None:
        hide_passwords(server)
    with ExitStack() as outer:
        made = outer.enter_context(scratch(server, engine))
        target = database(made.url)
        target.setup()
        try:
            with ExitStack() as stack:
                quiet = ("--log-level", "warning")
                daemon = stack.enter_context(
                    _python("session_projector", "run", "-d", made.url, *quiet)
                )
                for number in range(AGENTS):
                    of = (made.url, str(number), str(AGENTS), str(daemon.pid))
                    stack.enter_context(_python(made.agent, *of))
                address = stack.enter_context(_board(made.url)) if board else ""
                _show(target, daemon, seconds, address)
        except KeyboardInterrupt:
            pass
    name = printable(quoted(target.name))
    if not made.shell:
        print("\nThe daemon and the agents have stopped, and the server with its database is gone.")
        return
    print(f"\nThe daemon and the agents have stopped; the database is {name}. Try:\n")
    look = "SELECT seq, key, substr(data, 1, 60) FROM event_log LIMIT 5"
    for command in (
        f"projector session list -d {name}",
        f"projector session view web-1 -d {name}",
        f"projector status -d {name}",
        f"{made.shell} {quoted(look)}",
        f"projector run -d {name}",
    ):
        print(f"  {command}")


@contextmanager
def _board(url: str) -> Iterator[str]:
    """Run the board, in a browser if somebody looks; where it is."""
    listen = ("--listen", "127.0.0.1:0")
    with _python("session_projector", "board", "-d", url, *listen, stdout=subprocess.PIPE) as run:
        assert run.stdout
        with run.stdout:
            printed = run.stdout.readline().decode().strip()
            if not printed:
                raise UsageError("the board did not start", "its message is above")
            if not sys.stdout.isatty():
                print(f"the board is at {printed}", flush=True)
                yield ""
                return
            import webbrowser

            from session_projector.worker.cli.board import logins

            address, once = logins(printed.split()[0])
            webbrowser.open(once)
            yield address


@contextmanager
def _python(module: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ignores the terminal's Ctrl-C and ends with the block."""
    # -P: not a `session_projector` in the working folder.
    command = [sys.executable, "-P", "-m", module, *arguments]
    with no_thread():
        process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _show(
    target: Database, daemon: subprocess.Popen[bytes], seconds: float | None, board: str
) -> None:
    terminal = sys.stdout.isatty()
    deadline = None if seconds is None else time.monotonic() + seconds
    seen: dict[str, Entry] = {}
    while deadline is None or time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise TransientError("the daemon of the demo has ended", "its last log lines are above")
        with target.open() as store:
            entries = list(sessions(store))
        now = status(target)
        lag = now.projections[0].lag_events
        if terminal:
            head = f"{now.newest} events, {len(entries)} sessions, lag {lag} events"
            _draw(head, board or target.name, entries)
        else:
            for entry in entries:
                if entry != seen.get(entry.session_id):
                    line = f"{entry.session_id} {entry.status}, {entry.message_count} messages"
                    print(output.one_line(f"{line}, lag {lag} events"), flush=True)
        seen = {entry.session_id: entry for entry in entries}
        time.sleep(0.2)


def _draw(head: str, where: str, entries: list[Entry]) -> None:
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
        output.one_line(where),
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
