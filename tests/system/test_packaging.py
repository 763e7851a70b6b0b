"""The wheel in virtual environments: it gets along with whatever a user has beside it."""

import base64
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "PROJECTOR_DATABASE")
}
BALANCE = """
    from session_projector import Event, Projection, Table, Unfoldable
    from worker.jobs import CURRENCY


    class Balance(Projection[tuple[str, int]]):
        name = "balance"
        version = 1
        table = Table("balance", {"account": "TEXT", CURRENCY: "INTEGER"}, "account")

        def key_of(self, event: Event) -> str:
            return event.session_id

        def fold(self, view: tuple[str, int] | None, event: Event) -> tuple[str, int]:
            return event.session_id, 1 + (view[1] if view else 0)
"""
PROJECT = {
    "worker/__init__.py": "",
    "worker/jobs.py": "CURRENCY = 'euros'",
    "migrations/__init__.py": "",
    "migrations/0001-accounts.sql": "CREATE TABLE accounts (id TEXT)",
    "projections/__init__.py": "",
    "projections/balance.py": BALANCE,
}
"""What a user's project may well have at its top."""


def run(*command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    return done


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    return folder


def build(source: Path, folder: Path, *options: str) -> Path:
    options = (*options, "--no-isolation", "-o", str(folder), str(source))
    run(sys.executable, "-m", "build", *options, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment with our dependencies, and some more packages, but without us.

    What is installed into it stands in its own site-packages; the dependencies are links to those
    of the environment that runs the tests.
    """

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.python = folder / "bin" / "python"
        self.projector = folder / "bin" / "projector"
        (self.site,) = folder.glob("lib/*/site-packages")
        beside = folder / "dependencies"
        beside.mkdir()
        for path in {path for name in required(*more) for path in tops(name)}:
            (beside / path.name).symlink_to(path)
        (self.site / "dependencies.pth").write_text(f"{beside}\n")

    def pip(self, *arguments: str | Path) -> None:
        command = (sys.executable, "-m", "pip", "--python", self.python, "-q", *arguments)
        run(*command, cwd=self.folder)

    def install(self, *what: str | Path) -> None:
        self.pip("install", "--no-index", "--no-build-isolation", *what)

    def uninstall(self, name: str) -> None:
        self.pip("uninstall", "-y", name)

    def is_whole(self, name: str) -> bool:
        """Whether each file of a distribution is there, as it was installed."""
        (found,) = metadata.distributions(name=name, path=[str(self.site)])
        assert found.files
        listed = [file for file in found.files if file.hash]
        return all(file.locate().is_file() and sound(file) for file in listed)


def sound(file: metadata.PackagePath) -> bool:
    assert file.hash
    digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=") == file.hash.value


def required(*names: str) -> set[str]:
    """The distributions that ours and some others need, and these others."""
    found: set[str] = set()
    asked = ["session-projector", *names]
    while asked:
        name = asked.pop()
        needs = map(Requirement, metadata.requires(name) or ())
        wanted = {one.name for one in needs if not one.marker or one.marker.evaluate({"extra": ""})}
        asked += wanted - found
        found |= wanted
    return found | {*names}


def tops(name: str) -> Iterator[Path]:
    """What a distribution has at the top of site-packages."""
    distribution = metadata.distribution(name)
    for file in distribution.files or ():
        if file.parts[0] not in ("..", "__pycache__"):
            yield Path(str(distribution.locate_file(file.parts[0])))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's distribution with packages of its own called as our folders are."""
    source = write(
        tmp_path_factory.mktemp("shop"),
        PROJECT
        | {
            "pyproject.toml": """
                [build-system]
                requires = ["hatchling"]
                build-backend = "hatchling.build"
                [project]
                name = "shop"
                version = "1.0"
                [project.entry-points."projector.projections"]
                balance = "projections.balance:Balance"
                [tool.hatch.build.targets.wheel]
                packages = ["worker", "migrations", "projections"]
            """
        },
    )
    return build(source, tmp_path_factory.mktemp("dist"), "--wheel")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


def use(environment: Environment, folder: Path) -> None:
    """Every kind of command, in a new database."""
    projector = environment.projector
    run(projector, "db", "setup", cwd=folder)
    session = run(projector, "session", "queue", "-p", "P", "x", cwd=folder).stdout.strip()
    run(projector, "run", "--once", cwd=folder)
    view = run(projector, "session", "view", session, "--json", cwd=folder).stdout
    assert json.loads(view)["project"] == "P"
    for command in (
        ("replay",),
        ("verify",),
        ("wait",),
        ("quarantine", "list"),
        ("session", "history", session),
        ("doctor",),
    ):
        run(projector, *command, cwd=folder)


def running(environment: Environment, folder: Path) -> list[str]:
    """The projections that `python -m session_projector` finds."""
    program = (environment.python, "-m", "session_projector")
    listed = json.loads(run(*program, "projection", "list", "--json", cwd=folder).stdout)
    return [one["name"] for one in listed]


def test_the_wheel_holds_one_import_package_with_the_sql_and_the_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"session_projector"}
    assert "session_projector/py.typed" in names
    sql = {
        f"session_projector/{entry.relative_to(ROOT)}" for entry in ROOT.glob("migrations/*/*.sql")
    }
    assert {name for name in names if name.endswith(".sql")} == sql != set()
    deployed = {
        f"session_projector/{file.relative_to(ROOT)}" for file in ROOT.glob("deploy/**/*.*")
    }
    assert {name for name in names if "/deploy/" in name} >= {
        name for name in deployed if (ROOT / name).is_file()
    }


def test_an_index_page_leads_to_the_repository_wherever_the_readme_links_to_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith("/METADATA"))
        page = opened.read(name).decode()
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    links = re.findall(r"\]\(([^)]+)\)", page)

    assert f"{source}/blob/main/docs/operating.md#exit-codes" in links
    assert f"{source}/raw/main/docs/pictures/board-light.png" in links
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_wheel_of_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    """`build` makes the one from the other."""
    other = build(ROOT, tmp_path)

    assert contents(other) == contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.mark.timeout(240)  # it installs
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_users_packages_of_the_same_names_stand_beside_ours(
    wheel: Path, theirs: Path, environment: Environment, tmp_path: Path, ours_first: bool
) -> None:
    for one in (wheel, theirs) if ours_first else (theirs, wheel):
        environment.install(one)

    assert environment.is_whole("session-projector")
    assert environment.is_whole("shop")
    use(environment, tmp_path)
    assert running(environment, tmp_path) == ["sessions", "session_index", "balance"]

    environment.uninstall("shop")
    assert environment.is_whole("session-projector")
    run(environment.projector, "projection", "drop", "--yes", "balance", cwd=tmp_path)
    assert running(environment, tmp_path) == ["sessions", "session_index"]

    environment.install(theirs)
    environment.uninstall("session-projector")
    assert environment.is_whole("shop")
    imported = "import worker.jobs, migrations, projections; print(worker.jobs.CURRENCY)"
    assert run(environment.python, "-c", imported, cwd=tmp_path).stdout == "euros\n"


@pytest.fixture(scope="module")
def ours(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the wheel, and pytest; nothing else is to be installed into it."""
    environment = Environment(tmp_path_factory.mktemp("ours") / "venv", "pytest")
    environment.install(wheel)
    return environment


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, which is installed nowhere, with a database in it."""
    return write(tmp_path / "project", PROJECT)


def test_a_project_with_projections_of_its_own_tests_them(ours: Environment, project: Path) -> None:
    write(
        project,
        {
            "conftest.py": "",
            "tests/test_balance.py": """
                from session_projector.testing import created, given

                from projections.balance import Balance


                def test_events_are_counted():
                    given(created("A-1"), created("A-1")).expect(Balance(), {"A-1": {"euros": 2}})
            """,
        },
    )

    # As the script `pytest` is run: without the working folder in its path.
    said = run(ours.python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)

    assert "1 passed" in said.stdout


def folded(environment: Environment, folder: Path) -> list[dict[str, Any]]:
    """The rows of a projection that is named by a module of the folder."""
    run(environment.projector, "db", "setup", cwd=folder)
    run(environment.projector, "session", "queue", "-p", "P", "x", cwd=folder)
    place = "projections.balance:Balance"
    run(environment.projector, "run", "--once", "--projection", place, cwd=folder)
    with closing(sqlite3.connect(folder / "local.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM balance")]


def test_a_projection_in_the_working_folder_imports_what_stands_beside_it(
    ours: Environment, project: Path
) -> None:
    assert folded(ours, project) == [{"account": "P-1", "euros": 1}]


def test_a_single_file_in_the_working_folder_is_enough(ours: Environment, project: Path) -> None:
    for name in ("projections/__init__.py", "worker/__init__.py"):
        (project / name).unlink()

    assert folded(ours, project) == [{"account": "P-1", "euros": 1}]


def test_the_working_folder_comes_before_packages_that_are_installed(
    wheel: Path, theirs: Path, environment: Environment, project: Path
) -> None:
    environment.install(wheel, theirs)
    write(project, {"worker/jobs.py": "CURRENCY = 'dollars'"})

    assert folded(environment, project) == [{"account": "P-1", "dollars": 1}]


def test_the_working_folder_comes_behind_the_standard_library(
    ours: Environment, project: Path
) -> None:
    mark = "open('imported', 'a').write(__name__ + ' ')"
    write(project, {f"{name}.py": mark for name in sys.stdlib_module_names})
    jobs = "import colorsys, mmap, termios\n\nCURRENCY = 'euros'"
    write(project, {"worker/jobs.py": jobs})

    assert folded(ours, project) == [{"account": "P-1", "euros": 1}]
    assert not (project / "imported").exists()


@pytest.mark.parametrize("installed", [True, False])
def test_folders_called_as_ours_are_no_obstacle(
    ours: Environment, tmp_path: Path, installed: bool
) -> None:
    fault = "raise RuntimeError('imported')"
    names = ("worker", "projections", "migrations")
    write(tmp_path, {f"{name}/__init__.py": fault for name in names})
    program = [ours.projector] if installed else [ours.python, "-m", "session_projector"]

    run(*program, "db", "setup", cwd=tmp_path)
    run(*program, "run", "--once", cwd=tmp_path)
    run(*program, "verify", cwd=tmp_path)


PAGES = ROOT / "docs"
TYPED = """
    from typing import Any

    import msgspec

    from session_projector import *
    from session_projector import Event, PerSession, Projection, SessionCreated, Table


    class Plain(Projection):
        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            return view or (event.id,)


    class View(msgspec.Struct, frozen=True):
        id: str


    class Whole(PerSession[View]):
        table = Table(name="whole", columns={"id": "TEXT"}, key="id")

        def created(self, event: Event, body: SessionCreated) -> View:
            return View(body.project)

        def changed(self, view: View, event: Event) -> View:
            return View(view.id + event.id)

        def to_row(self, view: View) -> tuple[Any, ...]:
            return (view.id,)

        def from_row(self, row: tuple[Any, ...]) -> View:
            return View(*row)


    every: list[Projection] = [Plain(), Whole()]
    reveal_type(Whole().fold(None, Event(1, "", "", "", 0, None)))
"""
WRONG = """
    from session_projector import Event, Projection


    class Wrong(Projection[tuple[str, int]]):
        def fold(self, view: tuple[str, str] | None, event: Event) -> tuple[str, int]:
            return (event.id, event.seq)
"""


def checked(environment: Environment, folder: Path, *files: str, code: int = 0) -> str:
    options = ("--strict", "--python-executable", str(environment.python), "--cache-dir", "cache")
    return run(sys.executable, "-m", "mypy", *options, *files, cwd=folder, code=code).stdout


def test_a_type_checker_is_content_with_what_a_user_writes(
    ours: Environment, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / "python-api.md").read_text(), re.DOTALL)
    example = (PAGES / "example" / "projector_tokens.py").read_text()
    page = "\n".join(blocks)
    write(tmp_path, {"page.py": page, "example.py": example, "typed.py": TYPED, "wrong.py": WRONG})

    said = checked(ours, tmp_path, "page.py", "example.py", "typed.py")
    wrong = checked(ours, tmp_path, "wrong.py", code=1)

    assert 'Revealed type is "typed.View"' in said
    assert 'Argument 1 of "fold" is incompatible with supertype' in wrong
    assert "Found 1 error" in wrong


def test_an_editable_install_is_the_tree_itself(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", "-e", ROOT)
    write(tmp_path, {"typed.py": TYPED})
    where = "import session_projector.worker; print(session_projector.worker.__file__)"

    said = run(environment.python, "-P", "-c", where, cwd=tmp_path).stdout
    run(environment.projector, "db", "setup", cwd=tmp_path)

    assert said == f"{ROOT}/session_projector/worker/__init__.py\n"
    assert 'Revealed type is "typed.View"' in checked(environment, tmp_path, "typed.py")
