"""`projector board`: the sessions in a browser, live."""

import os
import pwd
import sys
from pathlib import Path
from typing import Annotated

import typer

from session_projector.worker import linux
from session_projector.worker.cli.options import Database
from session_projector.worker.doctor.examine import examine
from session_projector.worker.errors import UsageError, pip_install, quoted
from session_projector.worker.storage import open as storage


def board(
    database: Database = "local.db",
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            envvar="PROJECTOR_BOARD_LISTEN",
            help="Where it listens; unix:PATH for a Unix socket.",
        ),
    ] = "127.0.0.1:9188",
    allow_actions: Annotated[
        bool,
        typer.Option("--allow-actions", help="Let it resubmit and dismiss quarantined events."),
    ] = False,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Let any user of this machine in; not beyond it."),
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Show the sessions in a browser, live."""
    try:
        from session_projector.worker.board import address as addresses
        from session_projector.worker.board.app import Board
        from session_projector.worker.board.server import serve
        from session_projector.worker.board.token import kept
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"the board needs {error.name}, which is not installed",
            f"install it: {pip_install('starlette>=0.46', 'uvicorn>=0.34')}",
        ) from None
    address = addresses.parsed(listen)
    if no_token and not address.is_loopback:
        raise UsageError(
            f"--no-token would let everybody in who reaches {listen}",
            "leave --no-token out, or listen on 127.0.0.1",
        )
    target = storage.database(database)
    with target.open(writable=allow_actions):
        pass  # what is wrong with it is said now, not in the browser
    if allow_actions and (owner := target.owner_name()) != target.name:
        raise UsageError(
            f"{target.name}: this role may not resubmit or dismiss events",
            f"leave --allow-actions out, or name who may: `projector board --allow-actions"
            f" -d {quoted(owner)}`",
        )
    token, file = (None, None) if no_token else kept(_state_folder())
    with addresses.listening(address) as (opened, address):
        _tell(address.url, token, file)
        if not address.is_loopback:
            print(
                "projector: others can read what is sent: put a proxy with TLS in front, or listen"
                " on 127.0.0.1 and use `ssh -L`",
                file=sys.stderr,
            )
        if open_page:
            import webbrowser

            from session_projector.worker.board.token import ticket

            webbrowser.open(f"{address.url}/login?once={ticket(token)}" if token else address.url)
        serve(Board(target, examine, actions=allow_actions), opened, address, token)


def logins(url: str) -> tuple[str, str]:
    """The addresses that let this user in: the one to show them, and the one to start a browser
    with, which is one for a minute."""
    from session_projector.worker.board.token import kept, ticket

    token, _ = kept(_state_folder())
    return f"{url}/login?token={token}", f"{url}/login?once={ticket(token)}"


def _tell(url: str, token: str | None, file: Path | None) -> None:
    """Say where the board is; the token only on a terminal, as others may read a log."""
    if token and sys.stdout.isatty() and url.startswith("http"):
        print(f"{url}/login?token={token}", flush=True)
    else:
        print(url + (f"  (its token is in {file})" if token else ""), flush=True)


def _state_folder() -> Path:
    """Where this user's programs keep what is theirs."""
    if given := os.environ.get("STATE_DIRECTORY"):  # systemd's
        return Path(given.partition(":")[0])
    home = pwd.getpwuid(os.geteuid()).pw_dir if linux.was_root() else os.path.expanduser("~")
    state = "" if linux.was_root() else os.environ.get("XDG_STATE_HOME", "")
    state = state if os.path.isabs(state) else ""  # as its specification says
    return Path(state or f"{home}/.local/state") / "projector"
