"""Which commands there are. The help of all of them imports none: each is imported when called."""

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

SETTINGS: Final[dict[str, Any]] = {"no_args_is_help": True, "rich_markup_mode": None}
SECTIONS: Final = {
    "The daemon": {
        "run": "Fold the log into views, and go on as events come.",
        "health": "Say in a line whether a daemon keeps up; exit 1 if not.",
        "status": "Position, lag, views, quarantine, and whether a daemon is alive.",
        "wait": "Wait until views hold an event, the newest where no SEQ is given.",
    },
    "Views against the log": {
        "verify": "Fold the log again and report where views differ from it; changes nothing.",
        "replay": "Fold the log again and fix what differs, while daemon, readers and writers"
        " continue.",
        "quarantine": "Events that could not be folded, and the way back.",
        "projection": "The projections of a database.",
    },
    "Sessions and events": {
        "session": "Read sessions, and write events about them.",
        "event": "Look at single events.",
    },
    "The database": {
        "doctor": "Check a database and all around it; exit 1 if something is wrong.",
        "db": "Make, upgrade and look at a database.",
    },
    "To begin with": {
        "demo": "Watch a daemon fold what a few agents write, in a scratch database.",
    },
}
"""The commands by what they are for, with the first line of each one's own help."""
HELP: Final = {name: line for lines in SECTIONS.values() for name, line in lines.items()}
_ELSEWHERE: Final = {"verify": "replay"}
"""The module of a command that has none of its own name."""


class Commands(TyperGroup):
    """The top level. A command stands in it by its name and help until it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, line in HELP.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, command(name) if name else None, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        for title, lines in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([*lines.items()])


def load(name: str) -> Any:
    """The function of a command, or the Typer of a group of commands."""
    from session_projector.worker.cli import logging  # noqa: F401  before whatever else logs

    module = import_module(f"session_projector.worker.cli.{_ELSEWHERE.get(name, name)}")
    return getattr(module, name)


def command(name: str) -> Any:
    """A command or a group as click has it."""
    loaded, holder = load(name), typer.Typer(**SETTINGS)
    if isinstance(loaded, typer.Typer):
        holder.add_typer(loaded, name=name)
    else:
        holder.command(name)(loaded)
    return get_group(holder).commands[name]
