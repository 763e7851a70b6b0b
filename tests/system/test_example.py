"""The example in docs/example, installed as its user would, beside the built-in projections."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import PROJECTOR, T0, Database, daemon, event, projector

EXAMPLE = Path(__file__).parents[2] / "docs" / "example"
DAY = "2023-11-14"


class Installed:
    """The example's package in a folder of its own, which is put on the path."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.site = folder / "site"

    def install(self) -> None:
        shutil.copytree(EXAMPLE, self.source)
        self._pip("--no-deps", "--no-build-isolation", "--no-index", "--target", str(self.site))

    def copy(self, folder: Path) -> "Installed":
        copied = Installed(folder)
        shutil.copytree(self.source, copied.source)
        shutil.copytree(self.site, copied.site)
        return copied

    def update(self) -> None:
        """Its module is all of it that changes."""
        shutil.copy(self.source / "projector_tokens.py", self.site)

    def new_version(self) -> None:
        """As its author would: one column more, and the version raised."""
        module = self.source / "projector_tokens.py"
        text = module.read_text()
        for old, new in (
            ("version = 1", "version = 2"),
            ('"output": "INTEGER",', '"output": "INTEGER",\n            "calls": "INTEGER",'),
            ("*_, read, written = view or (key, day, project, 0, 0)",
             "*_, read, written, calls = view or (key, day, project, 0, 0, 0)"),
            ("(key, day, project, read, written)", "(key, day, project, read, written, calls + 1)"),
        ):  # fmt: skip
            assert old in text
            text = text.replace(old, new)
        module.write_text(text)
        self.update()

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": self._path}

    @property
    def program(self) -> list[str]:
        return ["/usr/bin/env", f"PYTHONPATH={self._path}", *PROJECTOR]

    @property
    def _path(self) -> str:
        return f"{self.site}:{Path(__file__).parents[2]}"

    def _pip(self, *options: str) -> None:
        command = [sys.executable, "-m", "pip", "install", "-q", *options, str(self.source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed_once(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    installed = Installed(tmp_path_factory.mktemp("example"))
    installed.install()
    return installed


@pytest.fixture
def installed(installed_once: Installed, tmp_path: Path) -> Installed:
    return installed_once.copy(tmp_path)


def used(database: Database, project: Any, read: int, written: int) -> int:
    data = {"project": project, "input": read, "output": written}
    return database.insert("session:A-1", event("tokens_used", data), created_at=T0)


def tokens(database: Database) -> list[tuple[Any, ...]]:
    return database.sql("SELECT * FROM tokens_per_day ORDER BY id")


def told(text: str) -> Sequence[str]:
    return [line.partition(":")[0] for line in text.splitlines()]


def test_it_is_found_caught_up_and_kept_up(database: Database, installed: Installed) -> None:
    database.created("A-1")
    used(database, "web", 1200, 350)
    projector("run", "--once", "-d", database.path)
    with daemon(database.path, program=installed.program) as running:
        running.wait_for("caught_up", projection="tokens_per_day")
        caught_up = tokens(database)
        used(database, "web", 800, 50)
        used(database, None, 1, 1)
        newest = used(database, "api", 10, 20)
        projector("wait", "-d", database.path, env=installed.environment)
        status = json.loads(projector("status", "--json", "-d", database.path).stdout)

    assert caught_up == [(f"{DAY}/web", DAY, "web", 1200, 350)]
    assert tokens(database) == [
        (f"{DAY}/api", DAY, "api", 10, 20),
        (f"{DAY}/web", DAY, "web", 2000, 400),
    ]
    assert database.sql("SELECT projection, seq, reason FROM quarantine") == [
        ("tokens_per_day", 4, "project is missing or not of type str")
    ]
    positions = {each["name"]: each["position"] for each in status["projections"]}
    assert positions == dict.fromkeys(("sessions", "session_index", "tokens_per_day"), newest)
    assert status["daemon"]["running"] == ["sessions", "session_index", "tokens_per_day"]


def test_each_projection_is_verified_and_replayed_alone(
    database: Database, installed: Installed
) -> None:
    database.created("A-1")
    used(database, "web", 1200, 350)
    projector("run", "--once", "-d", database.path, env=installed.environment)
    expected = [*database.everything(), tokens(database)]
    assert told(projector("verify", "-d", database.path, env=installed.environment).stdout) == [
        "sessions",
        "session_index",
        "tokens_per_day",
    ]

    database.sql("UPDATE tokens_per_day SET input = 0")
    database.sql("UPDATE view SET data = x'80'")
    database.sql("UPDATE session_index SET title = 'x'")
    for name in ("tokens_per_day", "sessions", "session_index"):
        options = ("--projection", name, "-d", database.path)
        assert (
            told(projector("verify", *options, check=1, env=installed.environment).stdout)[0]
            == name
        )
        projector("replay", *options, env=installed.environment)
    projector("verify", "-d", database.path, env=installed.environment)

    assert [*database.everything(), tokens(database)] == expected


def test_a_new_version_of_it_is_made_by_the_next_daemon_and_the_old_one_refuses(
    database: Database, installed: Installed
) -> None:
    database.created("A-1")
    for _ in range(3):
        used(database, "web", 1, 2)
    projector("run", "--once", "-d", database.path, env=installed.environment)
    installed.new_version()
    old = projector("status", "-d", database.path, env=installed.environment).stdout
    dry = projector("replay", "--dry-run", "-d", database.path, env=installed.environment).stdout
    before = tokens(database)
    with daemon(database.path, program=installed.program) as running:
        running.wait_for("views_rebuilt", projection="tokens_per_day")
        running.wait_for("caught_up", projection="tokens_per_day")

    assert "outdated; the next daemon rebuilds it as version 2" in old
    assert "tokens_per_day: 1 of 1 views would change" in dry
    assert before == [(f"{DAY}/web", DAY, "web", 3, 6)]
    assert tokens(database) == [(f"{DAY}/web", DAY, "web", 3, 6, 3)]
    projector("verify", "-d", database.path, env=installed.environment)
    shutil.copy(EXAMPLE / "projector_tokens.py", installed.source)
    installed.update()
    refused = projector("run", "-d", database.path, env=installed.environment, check=4)
    assert "the views of tokens_per_day were made by version 2" in refused.stderr


def test_without_its_package_the_others_go_on_and_say_so(
    database: Database, installed: Installed
) -> None:
    projector("run", "--once", "-d", database.path, env=installed.environment)
    database.created("A-1")

    said = projector("run", "--once", "-d", database.path).stderr

    assert "projection_without_code" in said
    assert len(database.views()) == 1
    (installed.site / "projector_tokens.py").write_text("raise OSError('broken')")
    said = projector("run", "--once", "-d", database.path, env=installed.environment).stderr
    assert said.count("projection_not_loaded") == 1
    assert "projector-tokens" in said
    assert "projection_without_code" not in said


def test_one_that_cannot_be_loaded_is_told_with_the_reason(
    database: Database, installed: Installed
) -> None:
    projector("run", "--once", "-d", database.path)
    (installed.site / "projector_tokens.py").write_text("raise OSError('broken')")
    options = ("-d", database.path)

    looked = projector("doctor", *options, env=installed.environment)
    for command in ("verify", "replay", "wait"):
        named = ("--projection", "tokens_per_day", *options)
        refused = projector(command, *named, env=installed.environment, check=2).stderr
        assert "cannot be loaded: OSError: broken" in refused.splitlines()[-2]
        assert "there is no projection" not in refused

    (finding,) = [line for line in looked.stdout.splitlines() if "cannot be loaded" in line]
    assert finding.startswith("warn  projections")
    assert "OSError: broken" in finding
    assert "(package projector-tokens)" in finding
    assert looked.stderr.count("projection_not_loaded") == 1


@pytest.mark.parametrize("value", ["my-mod:X", "projector_tokens:", "", "projector_tokens:_day"])
def test_a_package_that_is_broken_stops_no_command(
    database: Database, installed: Installed, value: str
) -> None:
    (entry_points,) = installed.site.glob("*.dist-info/entry_points.txt")
    entry_points.write_text(f"[projector.projections]\nx = {value}\n")
    database.created("A-1")

    for words in (("run", "--once"), ("status", "--json"), ("projection", "list", "--json")):
        done = projector(*words, "-d", database.path, env=installed.environment)
        if "--json" in words:
            json.loads(done.stdout)
        assert "projection_not_loaded" in done.stderr
    assert len(database.views()) == 1


def test_its_events_are_checked_and_find_their_way_back(
    database: Database, installed: Installed
) -> None:
    good = json.dumps(
        {
            "type": "tokens_used",
            "data": {"project": "web", "input": 1, "output": 2},
            "timestamp": T0,
        }
    )
    bad = used(database, "web", "many", 2)  # type: ignore[arg-type]
    projector("run", "--once", "-d", database.path, env=installed.environment, check=1)
    options = {"env": installed.environment, "stdin": good}

    checked = projector("event", "check", "-d", database.path, **options).stdout
    unknown = projector("event", "check", "-d", database.path, stdin=good).stdout
    again = projector("quarantine", "resubmit", bad, "-d", database.path, check=1, **options)
    projector("quarantine", "resubmit", bad, "-m", "-", "-d", database.path, **options)
    projector("run", "--once", "-d", database.path, env=installed.environment)

    assert "would fold into tokens_per_day" in checked
    assert "would be skipped" in unknown
    assert "would not fold into tokens_per_day: input is missing" in again.stderr
    assert tokens(database) == [(f"{DAY}/web", DAY, "web", 1, 2)]


def test_its_own_tests_pass(installed: Installed) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_tokens.py"],
        cwd=installed.source,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
