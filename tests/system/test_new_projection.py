"""What `projector projection new` writes works as it stands; docs/projections.md begins with it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from support import Database, projector, shell
from support.snippets import needs, run_snippets

PAGE = Path(__file__).parents[2] / "docs" / "projections.md"


def test_it_folds_passes_its_test_and_is_announced(database: Database, tmp_path: Path) -> None:
    database.created("A-1", "x")
    database.appended("A-1", "y")

    said = projector(
        "projection", "new", "per_day", cwd=tmp_path, more={"PROJECTOR_DATABASE": database.url}
    ).stdout

    package, options = tmp_path / "per_day", ("--projection", "per_day:PerDay", "-d", database.path)
    test, fold, install = re.findall("`(.+)`", said)
    done = shell(f"{test}\n{fold}", cwd=tmp_path)  # one after the other, in the same folder
    assert "1 passed" in done.stdout, done
    assert database.sql("SELECT * FROM per_day") == [("2023-11-14", 2)]
    assert install == f"{sys.executable} -m pip install ./per_day"
    projector("verify", *options, cwd=package)
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"projector.projections": {"per_day": "per_day:PerDay"}}
    assert "`per_day`" in (package / "README.md").read_text()


@needs("sqlite3")
def test_the_page_begins_with_it_and_installs_it(database: Database, tmp_path: Path) -> None:
    database.created("A-1", "x")
    site = tmp_path / "site"
    offline = f"pip install --no-deps --no-build-isolation --no-index --target {site} ."
    page = PAGE.read_text().replace("pip install .", offline).replace("drop", "drop --yes")

    made = run_snippets(page, tmp_path, "new")
    settings = {"PYTHONPATH": str(site), "PROJECTOR_DATABASE": database.url}
    told = run_snippets(page, tmp_path / "messages_per_day", "install", **settings)

    assert "1 passed" in made
    assert made.endswith("2023-11-14|1\n")
    assert "messages_per_day" in told
    assert ("messages_per_day",) not in database.sql("SELECT name FROM sqlite_master")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("My-Name", "not a small letter"),
        ("../x", "not a small letter"),
        ("x\n", "not a small letter"),
        ("class", "a word of Python's"),
        ("search", "of that name"),
        ("session_index", "of that name"),
        ("event_log", "belongs to another program"),
        ("json", "a Python module"),
        ("pytest", "a Python module"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(name: str, why: str, tmp_path: Path) -> None:
    refused = projector("projection", "new", name, cwd=tmp_path, check=2).stderr

    assert "cannot be the name of a projection" in refused
    assert why in refused
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_there_is_left_as_it_is(folder: bool, tmp_path: Path) -> None:
    there = tmp_path / "per_day"
    there.mkdir() if folder else there.write_text("mine")

    refused = projector("projection", "new", "per_day", cwd=tmp_path, check=1).stderr

    assert "per_day is there already" in refused
    assert there.is_file() or [*there.iterdir()] == []
