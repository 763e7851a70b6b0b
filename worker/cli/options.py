"""Options that several commands share."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from session_projector.worker import linux
from session_projector.worker.errors import ProjectorError, UsageError, about, naming
from session_projector.worker.storage.open import act_as_owner, database, hide_passwords

_named: list[str] = []


def heed_other(url: str) -> str:
    """Be careful with a database that is named beside the one that hints are about."""
    hide_passwords(url)
    act_as_owner(url)
    return url


def heed(url: str) -> str:
    return heed_other(heed_name(url))


def heed_name(url: str) -> str:
    """Let hints be about a database that is named and not opened."""
    hide_passwords(url)
    _named[:] = [url]
    return url


@contextmanager
def hints_about(url: str) -> Iterator[None]:
    """Let hints in the block, and those of what goes wrong in it, be about a database."""
    before = [*_named]
    _named[:] = [url]
    try:
        with about(database(url).name):
            yield
    finally:
        _named[:] = before


Database = Annotated[
    str,
    typer.Option(
        "-d",
        "--database",
        envvar="PROJECTOR_DATABASE",
        callback=heed,
        help="Database file or URL.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def pasteable(text: str) -> str:
    """Add the database of this call to this program's commands in a text, which are in backticks.

    So a pasted hint never acts on another database.
    """
    try:
        for url in _named:
            named = database(url)
            text = naming(named.name, text, named.owner_name)
    except ProjectorError:  # the name itself is what is wrong
        return text
    if linux.was_root():  # a database of another user's may hold what makes the shell run commands
        as_user = f"{linux.run_as(os.geteuid(), os.getegid())} sqlite3 "
        text = text.replace("`sqlite3 ", f"`{as_user}").replace("| sqlite3 ", f"| {as_user}")
    return text


def read_stdin() -> bytes:
    """Read all of standard input."""
    if sys.stdin is None:
        raise UsageError("standard input is closed", "pipe something in")
    return sys.stdin.buffer.read()
