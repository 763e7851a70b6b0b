"""The list of commands. A command is imported when it is called, so that `--help` imports none."""

import signal
from importlib import import_module
from keyword import iskeyword
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from session_projector.worker.errors import UsageError

SETTINGS: Final[dict[str, Any]] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
SECTIONS: Final = {
    "The daemon": {
        "run": "Run the daemon: catch up, then follow the log.",
        "health": "Check that a daemon keeps up, in one line; exit 1 if not.",
        "status": "Show position, lag, views, quarantine and daemon.",
        "wait": "Wait until the views include an event, by default the newest.",
    },
    "Verify and rebuild views": {
        "verify": "Fold the log again and report where views differ; changes nothing.",
        "replay": "Fold the log again and fix what differs, while everything else keeps running.",
        "quarantine": "List, show, resubmit or dismiss events that could not be folded.",
        "projection": "Begin a projection of your own; list those of a database, or drop one.",
    },
    "Sessions and events": {
        "session": "Read sessions and write events about them.",
        "search": "Find messages by their words, newest first.",
        "event": "Check an event before it is written, or count the written ones by type.",
        "import": "Import the sessions that Claude Code or Codex keeps.",
    },
    "In the browser": {
        "board": "Show the sessions in a browser, live.",
    },
    "The database": {
        "doctor": "Check a database and its surroundings; exit 1 if a check fails.",
        "db": "Create, upgrade or inspect a database.",
        "copy": "Copy a log into another database, on any engine, fold it there and compare the"
        " views.",
    },
    "Getting started": {
        "demo": "Watch a daemon fold what a few agents write, in a scratch database.",
        "deploy": "Print units, a compose file, a dashboard or alerts, with this machine's paths.",
    },
}
"""The commands by purpose, each with the first line of its own help."""
HELP: Final = {name: line for lines in SECTIONS.values() for name, line in lines.items()}
_ELSEWHERE: Final = {"verify": "replay"}
"""The modules of commands that are not in a module of the same name."""
_MEANT: Final = {
    **dict.fromkeys(("create", "init", "migrate", "setup", "upgrade"), "db setup"),
    **dict.fromkeys(("rebuild", "repair"), "replay"),
    **dict.fromkeys(("tail", "start", "daemon"), "run"),
    "sessions": "session list",
    "projections": "projection list",
    "events": "event check",
    "help": "--help",
}
"""What people type in place of a command."""


class Commands(TyperGroup):
    """The top level, which knows only the names and help of commands until one is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, line in HELP.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args[0] not in self.commands and args[0][:1] != "-":
            raise _no_command(args[0])
        name, _, rest = super().resolve_command(ctx, args)
        found = command(name) if name else None
        heed_interrupts()
        return name, found, rest

    def invoke(self, ctx: Any) -> Any:
        from session_projector.worker.cli import logging

        try:
            return super().invoke(ctx)
        except Exception as error:
            if logging.ends_in_json() and hasattr(error, "format_message"):  # of a wrong option
                hint = "see which options there are: `projector run --help`"
                raise UsageError(error.format_message(), hint) from None
            raise

    def _main_shell_completion(self, *arguments: Any, **named: Any) -> None:
        try:
            super()._main_shell_completion(*arguments, **named)
        except (LookupError, ValueError) as error:
            raise UsageError(
                f"the shell's variables for completion cannot be read: {error!r}",
                "unset the variable whose name ends in _COMPLETE, and run the command again",
            ) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        for title, lines in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([*lines.items()])


def _no_command(typed: str) -> UsageError:
    from difflib import get_close_matches

    near = get_close_matches(typed, HELP, n=1)
    meant = _MEANT.get(typed) or (near[0] if near else "")
    if meant:
        return UsageError(f"there is no command {typed}; did you mean: `projector {meant}`")
    return UsageError(f"there is no command {typed}", "see which there are: `projector --help`")


def heed_interrupts() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt`, unless it is ignored: a command may clean up."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def load(name: str) -> Any:
    """Import a command: its function, or the Typer of a group of commands."""
    from session_projector.worker.cli import logging  # noqa: F401  before structlog

    word = f"{name}_" if iskeyword(name) else name
    module = import_module(f"session_projector.worker.cli.{_ELSEWHERE.get(name, word)}")
    return getattr(module, word)


def command(name: str) -> Any:
    """Import a command or a group, as a click command."""
    from session_projector.worker.cli.examples import epilog

    loaded, holder = load(name), typer.Typer(**SETTINGS)
    if isinstance(loaded, typer.Typer):
        holder.add_typer(loaded, name=name)
    else:
        holder.command(name)(loaded)
    found = get_group(holder).commands[name]
    for words, one in {name: found, **_below(name, found)}.items():
        one.epilog = epilog(words)
    return found


def _below(name: str, found: Any) -> dict[str, Any]:
    return {f"{name} {word}": one for word, one in getattr(found, "commands", {}).items()}
