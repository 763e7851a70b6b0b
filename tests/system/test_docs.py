"""The pages hold together: generated ones are current, links resolve, tables name what there is."""

import ast
import json
import re
import runpy
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from support import Database, projector
from typer.main import get_command

import session_projector
import session_projector.testing
from session_projector.worker.cli.commands import HELP, command
from session_projector.worker.cli.main import app
from session_projector.worker.telemetry.metrics import StateCollector
from session_projector.worker.telemetry.state import DaemonState

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
OPERATING = (ROOT / "docs" / "operating.md").read_text()
CODE = re.compile(r"^(```+).*?^\1", re.MULTILINE | re.DOTALL)
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))


@pytest.mark.parametrize("page", REFERENCE["PAGES"])
def test_a_page_that_is_made_of_the_program_is_current(page: str) -> None:
    stands = (ROOT / "docs" / page).read_text()

    assert stands == REFERENCE["PAGES"][page](), "write it again: python docs/reference.py"


def test_the_api_reference_has_each_public_name_with_a_text() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    told = dict(re.findall(r"^### (\w+)\n\n    .+\n\n(.*)", page, re.MULTILINE))

    assert told.keys() == {*session_projector.__all__, *session_projector.testing.__all__}
    assert all(told.values())


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

    for page in REFERENCE["PAGES"]:
        assert (tmp_path / page).read_text() == (ROOT / "docs" / page).read_text()


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


def test_what_pages_and_hints_tell_to_type_is_understood() -> None:
    told = [*_told_by_pages(), *_told_by_the_program()]
    typed = {
        line
        for text in told
        for line in re.findall(r"(?:^|[\s/`])projector ([a-z][^`\n]*)", text, re.M)
    }

    assert {line: why for line in typed if (why := _fault(line))} == {}
    assert len(typed) > 120


def test_nothing_is_told_to_be_installed_by_a_name_that_no_index_has() -> None:
    files = [*PAGES, *ROOT.glob("deploy/**/*"), *ROOT.glob("worker/**/*.py")]
    text = "\n".join(file.read_text() for file in files if file.is_file())

    assert re.findall(r"pip install.*session-projector.*", text) == []


def test_a_hint_installs_what_the_extra_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, file in (("board", "cli/board.py"), ("postgres", "storage/open.py")):
        needs = ", ".join(map(repr, project["optional-dependencies"][extra]))
        assert f"pip_install({needs})" in (ROOT / "worker" / file).read_text()


def _told_by_pages() -> Iterator[str]:
    """Code in pages, in blocks and between backticks; the changelog may tell of what is gone, and
    the reference is made of the program."""
    for page in PAGES:
        if page.name not in ("CHANGELOG.md", "reference.md"):
            text = page.read_text()
            yield from (block[0] for block in CODE.finditer(text))
            yield from re.findall(r"`([^`]+)`", CODE.sub("", text))


def _told_by_the_program() -> Iterator[str]:
    """What is between backticks in texts of the program; a value that is put in is X."""
    for file in (ROOT / "worker").glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [str(one.value) if isinstance(one, ast.Constant) else "X" for one in parts]
            yield from re.findall(r"`([^`]+)`", re.sub(r"(?<=[a-z])X\b", "", "".join(texts)))


def _fault(typed: str) -> str:
    """Why the command line refuses what is typed after `projector`, '' if it does not."""
    lexer = shlex.shlex(typed, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = [*takewhile(lambda word: word[0] not in "|&;<>…", lexer)]
    if words[0] not in HELP:
        return f"there is no command {words[0]}"
    found, rest = command(words[0]), words[1:]
    if inner := getattr(found, "commands", None):
        if not rest or rest[0] == "X":
            return ""
        if rest[0] not in inner:
            return f"there is no command {rest[0]}"
        found, rest = inner[rest[0]], rest[1:]
    try:
        _, left, _ = found.make_parser(found.context_class(found)).parse_args(rest)
    except Exception as error:  # a page may name an option without its value
        return "" if "requires an argument" in str(error) else str(error)
    left = [word for word in left if word != "X"]
    return f"too much: {left}" if left else ""
