"""Writes docs/reference.md from the program: `python docs/reference.py`.

It walks the functions behind the commands, not what `--help` prints, so that neither the width of a
terminal nor a version of typer shows in it.
"""

import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.models import OptionInfo

from session_projector.worker.cli.commands import HELP, load
from session_projector.worker.cli.main import app

PAGE = Path(__file__).with_suffix(".md")
_HEAD = """\
# Commands

Written by `python docs/reference.py` from the program; change the program, not this page.

What the exit codes mean: [operating](operating.md#exit-codes). Every command has `-h`, too.
"""
_PLAIN = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def reference() -> str:
    """The page as it should be."""
    found = dict(sorted(commands()))
    contents = [
        _item(f"[`{name}`](#{name.replace(' ', '-')})", _about(name, does))
        for name, does in found.items()
    ]
    return "\n".join(
        [_HEAD, *contents, *(_section(name, does) for name, does in found.items()), ""]
    )


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each command by its whole name, and the function behind it."""
    if app.registered_callback and app.registered_callback.callback:
        yield "projector", app.registered_callback.callback
    for name in HELP:
        loaded = load(name)
        if not isinstance(loaded, typer.Typer):
            yield f"projector {name}", loaded
            continue
        for command in loaded.registered_commands:
            if command.callback and not command.hidden:
                yield f"projector {name} {command.name}", command.callback


def options(parameter: inspect.Parameter, info: OptionInfo) -> list[str]:
    """`-d`, `--database`: as they are typed; typer keeps the first of them as the default."""
    names = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
    return names or [f"--{parameter.name.replace('_', '-')}"]


def parameters(does: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    """Each parameter, its plain type, and what typer knows of it."""
    hints = typing.get_type_hints(does, include_extras=True)
    for parameter in inspect.signature(does).parameters.values():
        if hints[parameter.name] is typer.Context:
            continue
        kind, info = typing.get_args(hints[parameter.name])
        if get_origin(kind) in (types.UnionType, typing.Union):
            (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
        yield parameter, typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind, info


def _section(name: str, does: Callable[..., Any]) -> str:
    usage, told = [name], []
    for parameter, kind, info in parameters(does):
        required = parameter.default is inspect.Parameter.empty
        if isinstance(info, OptionInfo):
            value = "" if kind is bool else f" {_value(parameter, kind, info)}"
            names = options(parameter, info)
            head = ", ".join([*(f"`{one}`" for one in names[:-1]), f"`{names[-1]}{value}`"])
            if required:
                usage.append(f"{names[0]}{value}")
        else:
            value = _value(parameter, kind, info)
            head = f"`{value}`"
            usage.append(value if required else f"[{value}]")
        told.append(_item(head, " ".join(_facts(parameter, info, required))))
    usage.append("COMMAND" if name == "projector" else "[OPTIONS]")
    return "\n".join(
        ["", f"## {name}", "", f"    {' '.join(usage)}", "", _about(name, does), "", *told]
    )


def _about(name: str, does: Callable[..., Any]) -> str:
    return (app.info.help if name == "projector" else inspect.getdoc(does)) or ""


def _value(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    if info.metavar:
        return str(info.metavar).strip("[]")
    if not isinstance(info, OptionInfo):
        return parameter.name.upper()
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return _PLAIN[kind]


def _facts(parameter: inspect.Parameter, info: Any, required: bool) -> Iterator[str]:
    """What a list item says after the name."""
    if info.help:
        yield info.help if info.help.endswith(".") else f"{info.help}."
    if info.min is not None:
        yield f"At least {info.min:g}."
    if required and isinstance(info, OptionInfo):
        yield "Required."
    elif parameter.default not in (None, False, inspect.Parameter.empty):
        yield f"Default: `{parameter.default}`."
    if info.envvar:
        yield f"Environment: `{info.envvar}`."


def _item(head: str, facts: str) -> str:
    text = f"- {head}: {facts}" if facts else f"- {head}"
    return textwrap.fill(
        text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    PAGE.write_text(reference())
