"""The pages' modules by themselves: their types, and their functions as Node runs them."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.node_packages import BROWSER, node_packages
from support.snippets import NODE

from session_projector.projections.event import TEXT_PARTS
from session_projector.worker.sessions.content import _KINDS

STATIC = Path(__file__).parents[2] / "worker" / "board" / "static"
OWN = sorted([*STATIC.glob("*.js"), *STATIC.glob("lib/*.js")])


def test_types_are_right() -> None:
    program = node_packages() / ".bin" / "tsc"
    done = subprocess.run(
        [NODE, program.resolve(), "-p", BROWSER / "tsconfig.json"], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_functions() -> None:
    files = sorted(BROWSER.glob("*.test.js"))
    done = subprocess.run(
        [NODE, "--no-warnings", "--test", "--test-reporter=tap", *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_page_knows_each_part_of_a_message_that_the_command_line_knows() -> None:
    kinds = _KINDS.keys() - {*TEXT_PARTS, "summary_text", "refusal"}
    known = ({"type": kind, "thinking": "t", "toolInvocation": {}} for kind in sorted(kinds))
    parts = (STATIC / "lib" / "parts.js").as_uri()
    script = f"""import {{ parts }} from {json.dumps(parts)};
        const isUnknown = (one) => parts({{ content: [one] }})[0]?.kind === "json";
        console.log(JSON.stringify({json.dumps([*known])}.filter(isUnknown)));"""
    done = subprocess.run(
        [NODE, "--no-warnings", "--input-type=module", "-e", script], capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [], done.stderr


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_no_string_becomes_html_or_code(file: Path) -> None:
    found = re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|DOMParser|document\.write|dangerously|\beval\b"
        r"|new Function|setHTML|createContextualFragment|\.style\b|style=",
        file.read_text(),
    )
    assert not found


def test_each_page_has_its_script_and_no_other() -> None:
    for page in STATIC.glob("*.html"):
        scripts = re.findall(r"<script[^>]*>", page.read_text())
        wanted = f'<script type="module" src="/static/{page.stem}.js">'
        assert scripts == ([] if page.stem == "login" else [wanted]), page


def test_each_page_asks_at_once_for_all_that_its_script_imports() -> None:
    for page in STATIC.glob("*.html"):
        asked = re.findall(r'modulepreload" href="/static/(.*)"', page.read_text())
        script = page.with_suffix(".js")
        found = imported(script) if script.exists() else set()
        assert asked == sorted(str(file.relative_to(STATIC)) for file in found), page


def imported(script: Path) -> set[Path]:
    """The modules that a module imports, and those that they do."""
    if script.parent.name == "vendor":
        return set()
    paths = re.findall(r'from "(\..*)"', script.read_text())
    files = {(script.parent / path).resolve() for path in paths}
    return files.union(*map(imported, files))


def test_each_vendored_module_has_a_licence() -> None:
    licences = (STATIC / "vendor" / "LICENSES.txt").read_text()
    assert {file.stem for file in STATIC.glob("vendor/*.js")} == {
        "preact",
        "markdown-it",
        "lowlight",
    }
    for name in ("preact", "htm", "markdown-it", "lowlight", "highlight.js", "linkify-it"):
        assert re.search(rf"^{re.escape(name)} \d+\.", licences, re.MULTILINE), name
