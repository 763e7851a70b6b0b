"""The pages hold together: generated ones are current, links resolve, tables name what there is."""

import json
import re
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from support import Database, projector
from typer.main import get_command

from session_projector.worker.cli.commands import HELP, command
from session_projector.worker.cli.main import app
from session_projector.worker.telemetry.metrics import StateCollector
from session_projector.worker.telemetry.state import DaemonState

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
OPERATING = (ROOT / "docs" / "operating.md").read_text()
CODE = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))


def test_the_reference_is_current() -> None:
    stands = (ROOT / "docs" / "reference.md").read_text()

    assert stands == REFERENCE["reference"](), "write it anew: python docs/reference.py"


def test_the_reference_names_every_option_as_the_program_takes_it() -> None:
    told = {
        name.removeprefix("projector").strip(): {
            spelling
            for parameter, _, info in REFERENCE["parameters"](does)
            if isinstance(info, REFERENCE["OptionInfo"])
            for spelling in REFERENCE["options"](parameter, info)
        }
        for name, does in REFERENCE["commands"]()
    }

    assert told == _taken()


def _taken() -> dict[str, set[str]]:
    """Of every command, its options by what the command line itself says."""
    taken = {"": get_command(app)}
    for name in HELP:
        loaded = command(name)
        inner = getattr(loaded, "commands", None)
        taken |= {f"{name} {word}": one for word, one in inner.items()} if inner else {name: loaded}
    return {
        name: {one for p in taken[name].params for one in p.opts if one.startswith("-")}
        - {"--help", "--install-completion", "--show-completion"}
        for name in taken
    }


def test_the_script_writes_the_page_wherever_it_is_run(tmp_path: Path) -> None:
    copy = tmp_path / "reference.py"
    copy.write_bytes((ROOT / "docs" / "reference.py").read_bytes())
    narrow = {"COLUMNS": "20", "PATH": "", "PROJECTOR_DATABASE": "elsewhere.db"}

    command = [sys.executable, "-c", f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r});"]
    command[-1] += f" runpy.run_path({str(copy)!r}, run_name='__main__')"
    subprocess.run(command, check=True, env=narrow, cwd=tmp_path)

    written = (tmp_path / "reference.md").read_text()
    assert written == (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text()))

    lost = [link for link in links if not re.match("https?:", link) and not _leads(page, link)]
    assert lost == []


def _leads(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    return not anchor or (target.is_file() and anchor in _anchors(target.read_text()))


def _anchors(text: str) -> set[str]:
    """Of the headings, as a forge makes them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_table_of_log_events_names_each_with_its_levels() -> None:
    there: dict[str, set[str]] = {}
    for file in (ROOT / "worker").glob("**/*.py"):
        for call in re.finditer(
            r"log\.(\w+)(?: if \w+ else log\.(\w+)\))?\(\s*\"(\w+)\"", file.read_text()
        ):
            there.setdefault(call[3], set()).update(filter(None, call.groups()[:2]))
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|", _section("Logs"), re.MULTILINE)

    assert {name: set(levels.split(", ")) for name, levels in rows} == there


def test_the_table_of_metrics_names_each() -> None:
    endings = {CounterMetricFamily: "_total", InfoMetricFamily: "_info"}
    collected = StateCollector(DaemonState(), {}, lambda: 0).collect()
    there = {family.name + endings.get(type(family), "") for family in collected}

    assert set(re.findall(r"^\| `(\w+)", _section("Metrics"), re.MULTILINE)) == there


def _section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", OPERATING, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def _section_rows(title: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(.+?)` \| (.+) \|$", _section(title), re.MULTILINE)


@pytest.mark.parametrize(("statements", "fails"), _section_rows("Doctor"))
def test_a_database_broken_as_told_is_found(
    database: Database, statements: str, fails: str
) -> None:
    database.created("A-1")
    projector("run", "--once", "-d", database.path)
    with closing(sqlite3.connect(database.path)) as connection:
        connection.executescript(statements)

    done = projector("doctor", "--json", "-d", database.path, check=1)

    found = {one["check"] for one in json.loads(done.stdout) if one["level"] == "fail"}
    assert found == set(fails.split(", and "))


def test_what_the_pages_tell_to_type_is_a_command() -> None:
    there = _taken().keys()
    groups = {name.split()[0] for name in there if " " in name}
    text = "\n".join(page.read_text() for page in PAGES if page.name != "CHANGELOG.md")
    code = [
        *(block[0] for block in CODE.finditer(text)),
        *re.findall(r"`[^`\n]+`", CODE.sub("", text)),
    ]
    typed = re.findall(
        r"(?:^|[\s/`])projector ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*))?", "\n".join(code), re.MULTILINE
    )

    assert {f"{one} {two}" if one in groups else one for one, two in typed} <= there
