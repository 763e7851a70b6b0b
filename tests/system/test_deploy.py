"""What is in `deploy/`, as far as that can be tried anywhere; `deploy/try-systemd` boots it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from support import PROJECTOR, Database, projector

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
SYSTEM_UNITS = ["projector.service", "projector@.service"]
UNITS = [*SYSTEM_UNITS, "user/projector.service"]
COMPOSE = DEPLOY / "compose.yaml"
CONTAINERFILE = DEPLOY / "Containerfile"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit, with the program where this suite has it."""
    source = DEPLOY / request.param
    installed = tmp_path / source.name.replace("@.", "@one.")
    text = re.sub(r"(%h/\.local)?/opt/projector/bin", str(BIN), source.read_text())
    installed.write_text(text)
    return installed


@needs_systemd
@pytest.mark.parametrize("unit", SYSTEM_UNITS, indirect=True)
def test_systemd_has_nothing_to_say_about_a_system_unit(unit: Path) -> None:
    done = run("systemd-analyze", "verify", unit)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS[2:], indirect=True)
def test_systemd_has_nothing_to_say_about_the_user_unit(unit: Path, tmp_path: Path) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}

    done = run("systemd-analyze", "--user", "verify", unit, env=environment)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("unit", SYSTEM_UNITS, indirect=True)
def test_a_system_unit_is_exposed_by_2_0_at_most(unit: Path) -> None:
    done = run(
        *("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager"), unit
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_the_commands_that_a_unit_runs_are_the_programs(name: str) -> None:
    commands = re.findall(
        r"^Exec\w+=.*?/opt/projector/bin/projector ([^;'\n]*)", (DEPLOY / name).read_text(), re.M
    )

    assert [command.split()[0] for command in commands] == ["db", "run"]
    for command in commands:
        projector(*command.split(), "--help")


@pytest.mark.parametrize(
    ("end", "starts"),
    [("exit 0", True), ("exit 4", True), ("exit 3", False), ("kill -SYS $$", False)],
)
@pytest.mark.parametrize("name", UNITS)
def test_a_start_fails_where_the_set_up_may_be_tried_again_or_was_killed(
    name: str, end: str, starts: bool, tmp_path: Path
) -> None:
    (script,) = re.findall(r"^ExecStartPre=/bin/sh -c '(.*)'$", (DEPLOY / name).read_text(), re.M)
    program = tmp_path / "projector"
    program.write_text(f"#!/bin/sh\n{end}\n")
    program.chmod(0o755)
    script = re.sub(r"\S+/bin/projector", str(program), script).replace("$$", "$")

    done = run("/bin/sh", "-c", script)

    assert (done.returncode == 0) == starts


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_and_the_compose_file_limit_memory_and_tasks_alike(name: str) -> None:
    """The worst case that was measured takes 1.7 GiB (docs/performance.md)."""
    text = (DEPLOY / name).read_text()
    limits = dict(re.findall(r"^(Memory(?:High|Max)|TasksMax)=(\w+)$", text, re.M))
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()

    assert limits == {"MemoryHigh": "2G", "MemoryMax": "3G", "TasksMax": "64"}
    assert {(service["mem_limit"], service["pids_limit"]) for service in services} == {("3g", 64)}


@pytest.mark.parametrize("name", SYSTEM_UNITS)
def test_a_system_unit_lets_the_set_up_give_its_files_to_the_group(name: str) -> None:
    """The lists are read in order; without it `db setup --group` is killed at its chown."""
    filters = re.findall(r"^SystemCallFilter=(.*)$", (DEPLOY / name).read_text(), re.M)

    assert filters.index("@chown") > filters.index("~@privileged @resources")


def test_the_commands_that_the_container_file_runs_are_the_programs() -> None:
    lists = re.findall(r"^(?:HEALTHCHECK.* )?CMD (\[.*\])$", CONTAINERFILE.read_text(), re.M)
    health, command = (json.loads(text) for text in lists)

    assert health[0] == "projector"
    for arguments in (health[1:], command):
        projector(*arguments, "--help")


def test_the_container_file_passes_its_linter() -> None:
    done = run(BIN / "hadolint", "--no-color", CONTAINERFILE)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["deploy/try-systemd", "deploy/try-container", ".ci/run"])
def test_the_shell_scripts_pass_their_linter(name: str) -> None:
    done = run(BIN / "shellcheck", "--severity=warning", DEPLOY.parent / name)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_one() -> None:
    parsed = compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(COMPOSE.read_text())))

    assert parsed.service_names() == ["setup", "projector", "writer"]


def test_all_in_the_compose_file_share_one_volume_and_can_write_nowhere_else() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()

    assert [service["volumes"] for service in services] == [["data:/data"]] * 3
    assert all(service["read_only"] for service in services)


def test_the_programs_of_the_compose_file_work_together(database: Database) -> None:
    """Its commands with the program of this suite: set up, a few turns of the writer, fold."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    (code,) = services["writer"]["command"]
    code = code.replace("/data/local.db", str(database.path)).replace("sleep(5)", "sleep(0.01)")

    writer = subprocess.Popen([sys.executable, "-c", code.replace("$$", "$")])
    deadline = time.monotonic() + 30
    while len(database.log()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    writer.send_signal(signal.SIGTERM)
    writer.wait()
    subprocess.run(
        [*PROJECTOR, *services["projector"]["command"], "--once", "-d", database.path],
        capture_output=True,
        check=True,
    )

    assert database.quarantine() == {}
    assert len(database.views()) == 1
