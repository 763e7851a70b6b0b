"""Options that several commands share."""

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from worker.errors import BadUsage

Database = Annotated[
    str,
    typer.Option("-d", "--database", envvar="PROJECTOR_DATABASE", help="The database file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until the views hold it, 30 s at most.")]

SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


def read_stdin() -> bytes:
    """All of standard input."""
    if sys.stdin is None:
        raise BadUsage("standard input is closed", "pipe something in")
    return sys.stdin.buffer.read()
