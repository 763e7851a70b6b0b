import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from support import PROJECTOR, Database, projector, users
from support.postgres import Server

from session_projector.worker.storage.sqlite.lock import DaemonLock


def test_the_demo_shows_sessions_change_and_says_where_they_are() -> None:
    said = projector("demo", "--seconds", "4").stdout

    path = Path(re.findall(r"the database is (\S+)\. Try", said)[0])
    assert re.search(r"^web-1 \S+, [1-9] messages, lag \d+ events$", said, re.MULTILINE)
    assert f"projector session view web-1 -d {path}" in said
    encodings = Database(path).sql("SELECT DISTINCT typeof(data) FROM event_log ORDER BY 1")
    assert encodings == [("blob",), ("text",)]
    assert DaemonLock(path).leader() is None


def test_the_demo_can_be_seen_on_a_board(tmp_path: Path) -> None:
    state = os.environ | {"XDG_STATE_HOME": str(tmp_path)}

    said = projector("demo", "--seconds", "1", "--board", env=state).stdout

    token = tmp_path / "projector" / "board-token"
    line = rf"^the board is at http://127\.0\.0\.1:\d+  \(its token is in {token}\)$"
    assert re.search(line, said, re.MULTILINE)
    assert token.read_text().strip() not in said


def test_the_demo_on_a_postgresql_server_of_its_own_leaves_nothing_of_it() -> None:
    before = {*Path("/tmp").glob("projector-*")}

    said = projector("demo", "--seconds", "6", "--engine", "postgresql").stdout

    assert re.search(r"^web-1 \S+, [1-9] messages, lag \d+ events$", said, re.MULTILINE)
    assert "the server with its database is gone" in said
    assert {*Path("/tmp").glob("projector-*/data/postmaster.pid")} <= {
        folder / "data/postmaster.pid" for folder in before
    }


def test_the_demo_on_a_named_server_has_a_schema_of_its_own(postgres: Server) -> None:
    with postgres.database() as url:
        said = projector("demo", "--seconds", "4", "--engine", "postgresql", "-d", url).stdout
        commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  ")]
        encodings = "SELECT DISTINCT data IS NULL FROM event_log ORDER BY 1"
        (asked,) = [words for words in commands if words[0] == "psql"]
        words = [postgres.binaries / "psql", *asked[1:-1], encodings]
        found = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        shown = projector(*commands[0][1:]).stdout

    assert "web-1" in shown
    assert re.findall(r"^ ([ft])$", found, re.MULTILINE) == ["f", "t"]


def test_the_commands_that_it_ends_with_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()

    said = projector("demo", "--seconds", "1", env=os.environ | {"TMPDIR": str(folder)}).stdout

    (command,) = re.findall(r"projector status -d .*", said)
    words = shlex.split(command)
    assert Path(words[-1]).is_file()
    assert len(words) == 4


def test_a_signal_ends_the_demo_and_all_that_it_started() -> None:
    demo = subprocess.Popen([*PROJECTOR, "demo"], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    demo.stdout.readline()
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=30)

    path = Path(re.findall(r"the database is (\S+)\. Try", said)[0])
    assert demo.returncode == 0
    assert DaemonLock(path).leader() is None


def test_a_killed_demo_leaves_nothing_running() -> None:
    demo = subprocess.Popen([*PROJECTOR, "demo"], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    demo.stdout.readline()
    folders = Path(tempfile.gettempdir()).glob("projector-demo-*/local.db")
    path = max(folders, key=lambda file: file.stat().st_mtime)
    demo.kill()
    demo.communicate()

    while DaemonLock(path).leader() is not None:
        time.sleep(0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_no_process_left_is_said_with_its_cure() -> None:
    code = (
        f"{users.PROJECTOR}\nimport resource\nbecome(60006)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "os.environ.pop('TMPDIR', None)\ncli.main()"
    )
    done = projector("demo", code=code, check=3)

    assert "no process can be started" in done.stderr
    assert "`ulimit -u`" in done.stderr
