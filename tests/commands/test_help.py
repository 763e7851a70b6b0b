"""Help and completion of the command line, which imports a command only when it is called."""

import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support import projector

from session_projector.worker.cli.commands import HELP, command, load
from session_projector.worker.cli.examples import EXAMPLES

SCRIPT = Path(sys.executable).parent / "projector"


@pytest.mark.parametrize("name", HELP)
def test_the_list_of_commands_says_of_each_what_its_own_help_says(name: str) -> None:
    loaded = load(name)

    own = loaded.info.help if isinstance(loaded, typer.Typer) else inspect.getdoc(loaded)
    assert own.split("\n")[0] == HELP[name]


def parameters(name: str, found: Any) -> Iterator[tuple[str, str, str | None]]:
    """Each argument and option of a command and those below it, and its help."""
    for parameter in found.params:
        yield name, parameter.name, getattr(parameter, "help", None)
    for below, inner in getattr(found, "commands", {}).items():
        yield from parameters(f"{name} {below}", inner)


@pytest.mark.parametrize("name", HELP)
def test_each_argument_and_option_has_a_help_text(name: str) -> None:
    assert [found for found in parameters(name, command(name)) if not found[2]] == []


def imported(*arguments: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = (
        "import atexit, sys; from session_projector.__main__ import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    call = [sys.executable, "-P", "-c", code, *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_the_list_of_commands_imports_none_of_them() -> None:
    ours = {name for name in imported("--help") if name.startswith("session_projector.worker.")}

    assert {name.removeprefix("session_projector.worker.") for name in ours} == {
        "cli",
        "cli.color",
        "cli.commands",
        "cli.inert",
        "cli.main",
        "errors",
    }


def test_a_command_imports_no_other_and_nothing_that_draws_tracebacks() -> None:
    found = imported("status", "--help")

    commands = {name for name in HELP if f"session_projector.worker.cli.{name}" in found}
    assert commands == {"status"}
    assert not found & {"rich", "rich.console", "anyio", "prometheus_client"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("projector st", ["status"]),
        ("projector session wa", ["watch"]),
        ("projector run --log-", ["--log-level", "--log-format"]),
        ("projector session list -f m", ["markdown"]),
    ],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    words = typed.split()
    asked = {
        "_PROJECTOR_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }

    done = subprocess.run(
        [SCRIPT], env=os.environ | asked, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == offered


@pytest.mark.parametrize(
    ("instruction", "words", "at"),
    [
        ("nonsense", "", ""),
        ("complete_nonsense", "", ""),
        ("complete_bash", None, None),
        ("complete_bash", "projector st", None),
        ("complete_bash", "projector st", "one"),
        ("complete_bash", "projector 'st", "-7"),
        ("complete_bash", "projector \udcff", "1" * 5000),
    ],
)
def test_odd_variables_of_a_completion_are_told_in_a_sentence(
    instruction: str, words: str | None, at: str | None
) -> None:
    given = {"_PROJECTOR_COMPLETE": instruction, "COMP_WORDS": words, "COMP_CWORD": at}
    asked = {name: value for name, value in given.items() if value is not None}

    done = subprocess.run([SCRIPT], env=os.environ | asked, capture_output=True, text=True)

    assert done.returncode in (0, 1, 2)
    assert (done.returncode == 0) == (done.stderr == "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rebuild", "replay"),
        ("create", "db setup"),
        ("init", "db setup"),
        ("migrate", "db setup"),
        ("tail", "run"),
        ("sessions", "session list"),
        ("projections", "projection list"),
        ("events", "event check"),
        ("statu", "status"),
    ],
)
def test_a_word_that_is_no_command_is_told_which_is_meant(typed: str, meant: str) -> None:
    said = projector(typed, check=2).stderr

    assert said == (f"projector: there is no command {typed}; did you mean: `projector {meant}`\n")
    assert projector(*meant.split(), "--help").stdout


@pytest.mark.parametrize("words", ["", "run", "session", "session list", "db setup"])
def test_a_short_option_asks_for_help_too(words: str) -> None:
    assert projector(*words.split(), "-h").stdout == projector(*words.split(), "--help").stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_ends_with_examples_that_the_program_understands(name: str) -> None:
    told = projector(*name.split(), "--help").stdout
    lines = told.partition("Examples:\n")[2].splitlines()

    assert [line.strip() for line in lines] == [*EXAMPLES[name]]
    for line in lines:
        words = [word for word in shlex.split(line, comments=True) if word[0] != "<"]
        assert words[: len(name.split()) + 1] == ["projector", *name.split()]
        projector(*words[1:], "--help")
