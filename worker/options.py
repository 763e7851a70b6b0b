"""Options that several commands share."""

from enum import StrEnum
from typing import Annotated, Any

import typer

Database = Annotated[
    str,
    typer.Option("-d", "--database", envvar="PROJECTOR_DATABASE", help="The database file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

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
