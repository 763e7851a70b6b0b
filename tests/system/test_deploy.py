"""What is in `deploy/`, as far as that can be tried anywhere; `deploy/try-systemd` boots it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from support import PROJECTOR, Database, projector
from support.postgres import Server

from session_projector.worker.cli import deploy
from session_projector.worker.storage import open as storage

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
SYSTEM_UNITS = ["projector.service", "projector@.service"]
UNITS = [*SYSTEM_UNITS, "user/projector.service"]
BOARD_UNIT = "projector-board.service"
DROP_IN = Path("projector.service.d", "10-postgresql.conf")
COMPOSE = DEPLOY / "compose.yaml"
COMPOSE_POSTGRESQL = DEPLOY / "compose.postgresql.yaml"
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


@pytest.fixture
def unit_for_postgresql(tmp_path: Path) -> Path:
    """The unit with the settings for PostgreSQL."""
    for name in (Path("projector.service"), DROP_IN):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/projector/bin", str(BIN)))
    return tmp_path / "projector.service"


@needs_systemd
@pytest.mark.parametrize("unit", [*SYSTEM_UNITS, BOARD_UNIT], indirect=True)
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
@pytest.mark.parametrize("unit", [*SYSTEM_UNITS, BOARD_UNIT], indirect=True)
def test_a_system_unit_is_exposed_by_2_0_at_most(unit: Path) -> None:
    done = run(
        *("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager"), unit
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@needs_systemd
def test_the_settings_for_postgresql_are_safe_and_systemd_has_nothing_to_say_about_them(
    unit_for_postgresql: Path,
) -> None:
    verified = run("systemd-analyze", "verify", unit_for_postgresql)
    rated = run(
        *("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager"),
        unit_for_postgresql,
    )

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    assert rated.returncode == 0, rated.stdout + rated.stderr
    assert re.search("✗ PrivateNetwork=", rated.stdout)  # they are taken into account
    assert DROP_IN.name < "override.conf"  # what `systemctl edit` writes comes after them


def test_the_settings_for_postgresql_set_up_as_the_unit_does_but_for_the_group() -> None:
    command = r"^ExecStartPre=(/bin/sh .*)$"
    (of_unit,) = re.findall(command, (DEPLOY / "projector.service").read_text(), re.M)
    (of_settings,) = re.findall(command, (DEPLOY / DROP_IN).read_text(), re.M)

    assert of_settings == of_unit.replace(" --group projector", "")


@pytest.mark.parametrize("name", UNITS)
def test_the_commands_that_a_unit_runs_are_the_programs(name: str) -> None:
    commands = re.findall(
        r"^Exec\w+=.*?/opt/projector/bin/projector ([^;'\n]*)", (DEPLOY / name).read_text(), re.M
    )

    assert [command.split()[0] for command in commands] == ["db", "run"]
    for command in commands:
        projector(*command.split(), "--help")


def test_the_board_runs_as_told_in_its_unit_and_in_the_compose_file() -> None:
    text = (DEPLOY / BOARD_UNIT).read_text()
    (command,) = re.findall(r"^ExecStart=/opt/projector/bin/projector (.*)$", text, re.M)
    service = yaml.safe_load(COMPOSE.read_text())["services"]["board"]

    for arguments in (command.split(), service["command"]):
        assert arguments[0] == "board"
        projector(*arguments, "--help")
    assert service["ports"] == ["127.0.0.1:9188:9188"]  # of no other machine
    filters = re.findall(r"^SystemCallFilter=(.*)$", text, re.M)
    assert filters.index("setpriority") > filters.index("~@privileged @resources")


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
    """The worst case that was measured takes 1.7 GiB (docs/development/performance.md)."""
    text = (DEPLOY / name).read_text()
    limits = dict(re.findall(r"^(Memory(?:High|Max)|TasksMax)=(\w+)$", text, re.M))
    services = {
        **yaml.safe_load(COMPOSE.read_text())["services"],
        **yaml.safe_load(COMPOSE_POSTGRESQL.read_text())["services"],
    }
    services.pop("database")

    assert limits == {"MemoryHigh": "2G", "MemoryMax": "3G", "TasksMax": "64"}
    assert {(one["mem_limit"], one["pids_limit"]) for one in services.values()} == {("3g", 64)}


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

    assert parsed.service_names() == ["setup", "projector", "board", "writer"]


def test_all_in_the_compose_file_share_one_volume_and_can_write_nowhere_else() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()

    assert [service["volumes"] for service in services] == [["data:/data"]] * 4
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


def test_the_compose_file_for_postgresql_is_one_in_which_nothing_is_open() -> None:
    content = yaml.safe_load(COMPOSE_POSTGRESQL.read_text())
    parsed = compose_spec.PyCompose.from_json(json.dumps(content))
    services = content["services"].values()

    assert parsed.service_names() == ["database", "setup", "projector", "writer"]
    assert content["networks"] == {"database": {"internal": True}}
    for service in services:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["networks"] == ["database"]
        assert "ports" not in service
    secrets = {name: service["secrets"] for name, service in content["services"].items()}
    assert secrets.pop("database") == ["postgres", "projector", "agent"]
    assert secrets == {"setup": ["projector"], "projector": ["projector"], "writer": ["agent"]}


@pytest.fixture
def fresh() -> Iterator[Server]:
    """A server on which no role was created yet."""
    with closing(Server()) as server:
        yield server


def test_the_programs_of_the_compose_file_for_postgresql_work_together(
    fresh: Server, tmp_path: Path
) -> None:
    """Its statements and commands, with the programs of this suite and passwords in a folder."""
    content = yaml.safe_load(COMPOSE_POSTGRESQL.read_text())
    services = content["services"]
    for role in ("projector", "agent"):
        (tmp_path / role).write_text(f"{role}'s secret\n")
    here = {**os.environ, "PATH": f"{BIN}:/usr/bin:/bin"}

    def started(name: str, *more: str) -> subprocess.Popen[bytes]:
        """A service's own entrypoint and command."""
        service = services[name]
        ((variable, url),) = service["environment"].items()
        url = f"{url.replace('@database', '@')}?host={fresh.socket}"
        words = [*service["entrypoint"], *service["command"], *more]
        words = [word.replace("$$", "$").replace("/run/secrets", str(tmp_path)) for word in words]
        words = [word.replace("sleep(5)", "sleep(0.01)") for word in words]
        return subprocess.Popen(words, env={**here, variable: url}, stderr=subprocess.PIPE)

    def ended(process: subprocess.Popen[bytes]) -> None:
        _, said = process.communicate(timeout=50)
        assert process.returncode == 0, said.decode()

    fresh.sql("CREATE DATABASE agents")
    roles = content["configs"]["roles"]["content"].replace("/run/secrets", str(tmp_path))
    psql = [fresh.binaries / "psql", "-X", "-v", "ON_ERROR_STOP=1", fresh.url("agents")]
    subprocess.run(psql, input=roles, text=True, capture_output=True, check=True)
    ended(started("setup"))
    writer = started("writer")
    count = "SELECT count(*) FROM event_log"
    while fresh.sql(count, database="agents") < [(3,)]:
        assert writer.poll() is None
    writer.terminate()
    writer.communicate()
    ended(started("projector", "--once"))

    assert fresh.sql("SELECT count(*) FROM quarantine", database="agents") == [(0,)]
    assert fresh.sql("SELECT count(*) FROM session_index", database="agents") == [(1,)]
    kept = "SELECT count(*) FROM pg_authid WHERE rolname IN ('projector', 'agent')"
    assert fresh.sql(f"{kept} AND rolpassword IS NOT NULL") == [(2,)]


PROGRAM = str(BIN / "projector")


@needs_systemd
@pytest.mark.parametrize("as_root", [True, False])
@pytest.mark.parametrize("name", [None, "/srv/100%/local.db", "postgresql://p@db.example/agents"])
def test_the_units_that_are_printed_run_this_program_on_the_database_that_is_named(
    name: str | None, as_root: bool, tmp_path: Path
) -> None:
    target = None if name is None else storage.database(name)

    texts = deploy.units(PROGRAM, target, as_root=as_root).texts

    assert not [text for text in texts.values() if "/opt/projector" in text]
    for file, text in texts.items():
        if name is not None and (as_root is False or target is None or target.file):
            assert f"PROJECTOR_DATABASE={name.replace('%', '%%')}\n" in text
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert f"\nExecStart={PROGRAM} run\n" in texts["projector.service"]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    for file in tmp_path.glob("*.service"):
        where = "--system" if as_root else "--user"
        done = run("systemd-analyze", where, "verify", file, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["systemd", "compose", "grafana", "alerts"])
def test_what_is_printed_is_what_is_written_and_what_was_there_is_kept(
    kind: str, tmp_path: Path
) -> None:
    printed = projector("deploy", kind, "-d", tmp_path / "a.db", cwd=tmp_path).stdout
    wrote = projector("deploy", kind, "-d", tmp_path / "a.db", "--write", tmp_path).stdout
    written = [file for file in tmp_path.iterdir() if file.is_file()]
    for file in written:
        assert file.read_text() in printed
        assert f"wrote {file}" in wrote
        if file.suffix in (".yaml", ".json"):
            assert yaml.safe_load(printed) == yaml.safe_load(file.read_text())
            assert yaml.safe_load(printed)
    assert str(tmp_path) in wrote.partition("then:")[2]

    again = projector("deploy", kind, "-d", tmp_path / "a.db", "--write", tmp_path).stdout
    written[0].write_text("mine")
    third = projector("deploy", kind, "-d", tmp_path / "a.db", "--write", tmp_path).stdout

    assert "wrote" not in again
    assert f"{written[0]} was there already, and is {written[0]}~ now" in third
    assert Path(f"{written[0]}~").read_text() == "mine"


def test_the_alerts_name_the_database_and_the_compose_file_builds_from_this_clone(
    tmp_path: Path,
) -> None:
    alerts = projector("deploy", "alerts", "-d", tmp_path / "a.db").stdout
    built = yaml.safe_load(projector("deploy", "compose").stdout)["services"]["setup"]["build"]

    assert f"`projector status -d {tmp_path}/a.db`" in alerts
    assert built["context"] == str(DEPLOY.parent)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["systemd", "-d", "/srv/my data/a.db"], "would take for something else"),
        (["systemd", "--write", "absent"], "there is no folder absent"),
        (["nonsense"], "'nonsense' is not one of"),
    ],
)
def test_what_cannot_be_deployed_is_refused(words: list[str], why: str, tmp_path: Path) -> None:
    done = projector("deploy", *words, cwd=tmp_path, check=None)

    assert done.returncode in (1, 2)
    assert why in done.stderr
    assert [*tmp_path.iterdir()] == []
