"""The command line: the only reader of the environment; results on stdout, logs on stderr."""

import os
import signal
import sys
from io import TextIOWrapper
from typing import Annotated, Final, NoReturn, TextIO, cast

import typer

from session_projector.worker.cli import color
from session_projector.worker.cli.commands import SETTINGS, Commands
from session_projector.worker.cli.inert import InertStream
from session_projector.worker.errors import (
    CheckFailed,
    OutputFailed,
    ProjectorError,
    no_memory,
    run_out,
)

CLOSED: Final = 128 + signal.SIGPIPE
"""The exit code where nobody reads standard output any more, as of any program."""

app = typer.Typer(
    cls=Commands,
    help="Tail an event log in SQLite or PostgreSQL and fold it into session views.",
    pretty_exceptions_enable=False,
    **SETTINGS,
)


def main() -> NoReturn:
    """Run a command; an error that a user can cause ends in one line, a hint and an exit code."""
    try:
        _fill_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        if sys.stdout:
            sys.stdout = cast(TextIO, InertStream(sys.stdout))
        app()
        sys.stdout.flush()
    except OutputFailed as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter reports it again
        if error.closed:  # as by `| head`
            sys.exit(CLOSED)
        _fail(error)
    except ProjectorError as error:
        _fail(error)
    except MemoryError:
        _fail(no_memory())
    except OSError as error:
        if told := run_out(error):
            _fail(told)
        _fail(CheckFailed(f"{error.filename or 'the operating system'}: {error.strerror}"))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fill_closed_streams() -> None:
    """Open standard streams that the caller closed, or a file of ours would get the number of one
    and messages would be written into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _fail(error: ProjectorError) -> NoReturn:
    from session_projector.worker.cli import logging
    from session_projector.worker.cli.options import pasteable
    from session_projector.worker.cli.output import one_line

    if logging.ends_in_json():
        logging.tell_end(error)
        sys.exit(error.exit_code)
    print(f"projector: {one_line(error)}", file=sys.stderr)
    if error.hint:
        print(f"  {one_line(pasteable(error.hint))}", file=sys.stderr)
    sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("session-projector"))
        raise typer.Exit


@app.callback()
def _app(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    colors: Annotated[
        color.When,
        typer.Option("--color", help="Colour for levels and states; auto: on a terminal."),
    ] = "auto",
) -> None:
    from session_projector.worker.cli import logging

    color.choose(colors)
    of_daemon = context.invoked_subcommand == "run"  # which logs more
    logging.configure("warning", "auto", of_daemon=of_daemon)
