"""`projector demo`: the real daemon and a few agents on a scratch database."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from tempfile import TemporaryFile
from typing import Annotated, Any, Final, Literal

import typer

from session_projector.worker.cli import demo_picture as picture
from session_projector.worker.cli import output
from session_projector.worker.cli.demo_scene import Scene
from session_projector.worker.cli.inert import printable
from session_projector.worker.errors import UsageError, no_thread, quoted
from session_projector.worker.storage.demo import Scratch
from session_projector.worker.storage.open import database, hide_passwords, scratch

AGENTS: Final = 3
LOOK_EVERY_S: Final = 0.001
DRAW_EVERY_S: Final = 0.1


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
            with _processes() as start, target.open() as store:
                projector = partial(_projector, start, made.url)
                scene = Scene(target.name, store, projector)
                for number in range(AGENTS):
                    start(made.agent, made.url, str(number), str(AGENTS))
                if board:
                    scene.where = _board(projector) or scene.where
                until_s = None if seconds is None else time.monotonic() + seconds
                (_draw if picture.is_drawable() else _print)(scene, until_s)
        except KeyboardInterrupt:
            pass
    _tell_what_is_left(made, printable(quoted(target.name)))


def _draw(scene: Scene, until_s: float | None) -> None:
    """Show it as a picture that is drawn over and over, and do what is asked for by keys."""
    drawn_s = 0.0
    with picture.screen():
        for _ in scene.looks(until_s):
            if time.monotonic() >= drawn_s + DRAW_EVERY_S:
                picture.draw(scene)
                drawn_s = time.monotonic()
            typed = picture.keys(LOOK_EVERY_S)
            if "q" in typed:
                return
            if "v" in typed:
                scene.verify()
            if "k" in typed:
                scene.kill()


def _print(scene: Scene, until_s: float | None) -> None:
    """Show it as lines, one for each change of a session, and what is said of the daemon."""
    said = scene.killed
    for changed in scene.looks(until_s):
        for entry in changed:
            line = f"{entry.session_id} {entry.status}, {entry.message_count} messages"
            print(output.one_line(f"{line}, lag {scene.lag} events"), flush=True)
        if said != scene.killed:
            said = scene.killed
            print(said[0], flush=True)
        time.sleep(LOOK_EVERY_S)


def _tell_what_is_left(made: Scratch, name: str) -> None:
    if not made.shell:
        print("\nThe daemon and the agents have stopped, and the server with its database is gone.")
        return
    print(f"\nThe daemon and the agents have stopped; the database is {name}. Try:\n")
    commands = ("session list", "session view web-1", "status", "verify")
    lines = [f"{_program()} {command} -d {name}" for command in commands]
    if shutil.which(made.shell.partition(" ")[0]):
        look = "SELECT seq, key, substr(data, 1, 60) FROM event_log LIMIT 5"
        lines.append(f"{made.shell} {quoted(look)}")
    for line in (*lines, f"{_program()} run -d {name}"):
        print(f"  {line}")


def _program() -> str:
    """What the shell that started this program calls it."""
    called, found = sys.argv[0], shutil.which("projector")
    if os.path.basename(called) != "projector" or (found and os.path.samefile(called, found)):
        return "projector"
    return printable(quoted(called))


Start = Callable[..., subprocess.Popen[bytes]]


@contextmanager
def _processes() -> Iterator[Start]:
    """What starts processes that end with the block: a group, which the terminal's Ctrl-C does not
    reach, and which an agent ends where this process was killed."""
    running: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        # Where there is a picture, what they say is said after it.
        log = stack.enter_context(TemporaryFile()) if picture.is_drawable() else None

        def start(module: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
            # -P: not a `session_projector` in the working folder.
            command = [sys.executable, "-P", "-m", module, *arguments]
            options = {"stdin": subprocess.DEVNULL, "stderr": log, **options}
            group = running[0].pid if running else 0
            with no_thread():
                running.append(subprocess.Popen(command, process_group=group, **options))
            return running[-1]

        try:
            yield start
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
            if log:
                log.seek(0)
                print(log.read().decode(errors="replace"), end="", file=sys.stderr)


def _projector(
    start: Start, url: str, command: str, *options: str, **how: Any
) -> subprocess.Popen[bytes]:
    """Run a command of this program on the database."""
    return start("session_projector", command, "-d", url, *options, **how)


def _board(projector: Start) -> str:
    """Run the board, in a browser if somebody looks; where it is, '' where that was printed."""
    run = projector("board", "--listen", "127.0.0.1:0", stdout=subprocess.PIPE)
    assert run.stdout
    with run.stdout:
        printed = run.stdout.readline().decode().strip()
    if not printed:
        raise UsageError("the board did not start", "its message is above")
    if not picture.is_drawable():
        print(f"the board is at {printed}", flush=True)
        return ""
    import webbrowser

    from session_projector.worker.cli.board import logins

    address, once = logins(printed.split()[0])
    webbrowser.open(once)
    return address
