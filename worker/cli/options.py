"""Options that several commands share."""

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from session_projector.worker.errors import BadUsage, ProjectorError, naming

_named: list[str] = []


def _remember(url: str) -> str:
    _named[:] = [url]
    return url


Database = Annotated[
    str,
    typer.Option(
        "-d",
        "--database",
        envvar="PROJECTOR_DATABASE",
        callback=_remember,
        help="The database file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until the views hold it, 30 s at most.")]

_SECTIONS = {
    "The daemon": ("run", "health", "status", "wait"),
    "Views against the log": ("verify", "replay", "quarantine", "projection"),
    "Sessions and events": ("session", "event"),
    "The database": ("doctor", "db"),
    "To begin with": ("demo",),
}


class Sections(TyperGroup):
    """The top level's help: commands by what they are for."""

    def list_commands(self, ctx: Any) -> list[str]:
        named = [name for names in _SECTIONS.values() for name in names if name in self.commands]
        return named + [name for name in super().list_commands(ctx) if name not in named]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        for title, names in _SECTIONS.items():
            commands = [(name, self.commands[name]) for name in names if name in self.commands]
            with formatter.section(title):
                formatter.write_dl([(n, c.get_short_help_str(limit=200)) for n, c in commands])


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}


def pasteable(text: str) -> str:
    """Text whose commands of this program, in backticks, name the database of this call.

    So a hint that is pasted never acts on another one.
    """
    from session_projector.worker.storage.open import database

    if not _named:
        return text
    try:
        name = database(_named[0]).name
    except ProjectorError:  # the name itself is what is wrong
        return text
    return naming(name, text)


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


def read_stdin() -> bytes:
    """All of standard input."""
    if sys.stdin is None:
        raise BadUsage("standard input is closed", "pipe something in")
    return sys.stdin.buffer.read()
