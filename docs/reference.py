"""Writes docs/reference.md and docs/api.md from the program: `python docs/reference.py`.

For the commands it walks the functions behind them, not what `--help` prints, so that neither the
width of a terminal nor a version of typer shows in it. For the API it reads the source, as each
version of Python would print a type in another way.
"""

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.models import OptionInfo

from session_projector.worker.cli.commands import HELP, load
from session_projector.worker.cli.main import app

FOLDER = Path(__file__).parent
_HEAD = """\
# Commands

Written by `python docs/reference.py` from the program; change the program, not this page.

What the exit codes mean: [operating](operating.md#exit-codes). Every command has `-h`, too.
"""
_API_HEAD = """\
# API reference

Written by `python docs/reference.py` from the docstrings; change these, not this page.

How it is used, with examples: [your own projections](projections.md), [Python API](python-api.md).
"""
_API = {
    "session_projector": (
        *("projections.event", "projections.projection", "worker.client", "worker.errors"),
    ),
    "session_projector.testing": ("projections.testing",),
}
"""Where the public names are imported from, and the modules that define them."""
_PLAIN = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def reference() -> str:
    """The page as it should be."""
    found = dict(sorted(commands()))
    contents = [
        _item(f"[`{name}`](#{name.replace(' ', '-')})", _about(name, does).partition("\n\n")[0])
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
        return str(info.metavar).removeprefix("[").replace("]", "")
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


def api() -> str:
    """The page of all that projections and other programs import, as it should be."""
    public = {name for module in _API for name in import_module(module).__all__}
    lines = [_API_HEAD]
    for name, parts in _API.items():
        modules = [import_module(f"session_projector.{part}") for part in parts]
        lines += [f"## {name}", ""]
        lines += [inspect.getdoc(modules[0]) or "", ""] if len(modules) == 1 else []
        for module in modules:
            tree = ast.parse(inspect.getsource(module))
            aliases = {
                node.targets[0].id: node.value
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            told = _Told(vars(module), {one: aliases[one] for one in aliases.keys() - public})
            for head, text in told.members(tree.body, lambda name: name in public):
                title = re.search(r"\w+", head.removeprefix("class "))
                lines += [f"### {title and title[0]}", "", f"    {head}", "", text, ""]
    return "\n".join(lines)


class _Told(ast.NodeTransformer):
    """The definitions of a module, in words: `aliases` are types to be written out."""

    def __init__(self, namespace: dict[str, Any], aliases: dict[str, ast.expr]) -> None:
        self._namespace = namespace
        self._aliases = aliases

    def members(
        self, body: list[ast.stmt], wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, str]]:
        """The head and the text of each definition that is wanted and, if a function, has a
        docstring."""
        for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if wanted(node.target.id):
                    value = f" = {self._value(node.value)}" if node.value else ""
                    yield f"{node.target.id}: {self._type(node.annotation)}{value}", _text(after)
            elif isinstance(node, ast.FunctionDef) and wanted(node.name):
                if text := ast.get_docstring(node):
                    yield self._signature(node), text
            elif isinstance(node, ast.ClassDef) and wanted(node.name):
                bases = ", ".join(map(ast.unparse, node.bases)).replace("msgspec.Struct", "")
                inner = self.members(node.body, lambda name: not name.startswith("_"))
                listed = [
                    textwrap.indent(f"- `{h}`\n{text}".strip(), "  ")[2:] for h, text in inner
                ]
                doc = ast.get_docstring(node) or ""
                head = f"class {node.name}" + f"({bases})" * bool(bases)
                yield head, "\n".join([doc, "", *listed]).strip()

    def _signature(self, node: ast.FunctionDef) -> str:
        if any(ast.unparse(one) == "property" for one in node.decorator_list):
            return f"{node.name}: {self._type(node.returns)}"
        given = node.args
        given.args = [one for one in given.args if one.arg != "self"]
        for one in (*given.args, *given.kwonlyargs):
            one.annotation = one.annotation and self.visit(one.annotation)
        given.kw_defaults = [one and ast.Name(self._value(one)) for one in given.kw_defaults]
        return f"{node.name}({ast.unparse(given)}) -> {self._type(node.returns)}"

    def _type(self, node: ast.expr | None) -> str:
        return ast.unparse(self.visit(node)).strip("'") if node else ""

    def _value(self, node: ast.expr) -> str:
        """A default as it is, not where it comes from; a set in order."""
        value = eval(ast.unparse(node), self._namespace)
        return str(sorted(value) if isinstance(value, frozenset) else value.__repr__())

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._aliases.get(node.id, node)


def _text(node: ast.stmt) -> str:
    """The text that stands alone below a definition."""
    stands = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return inspect.cleandoc(str(node.value.value)) if stands else ""


PAGES = {"reference.md": reference, "api.md": api}

if __name__ == "__main__":
    for file, text in PAGES.items():
        (FOLDER / file).write_text(text())
