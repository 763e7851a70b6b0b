import os
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import PROJECTOR, Database, projector, users
from support.postgres import Server

from session_projector.worker.storage.sqlite.lock import DaemonLock

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A terminal with `projector demo` on it."""

    def __init__(self, rows: int, columns: int, environment: dict[str, str]) -> None:
        self.leader, self._follower = os.openpty()
        self.resize(rows, columns)
        self.settings_before = self.settings
        self.process = subprocess.Popen(
            [*PROJECTOR, "demo"],
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment},
            **dict.fromkeys(("stdin", "stdout", "stderr"), self._follower),
        )
        self.drawn = ""

    @property
    def settings(self) -> list[object]:
        return termios.tcgetattr(self._follower)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._follower, (rows, columns))

    def press(self, key: str) -> None:
        self.drawn = ""
        os.write(self.leader, key.encode())

    def shows(self, pattern: str) -> str:
        """Wait until it shows something; returns all since a key was pressed, without escapes."""
        while not re.search(pattern, text := ESCAPE.sub("", self.drawn)):
            self.drawn += os.read(self.leader, 65536).decode(errors="replace")
        return text

    def frame(self, rows: int) -> list[str]:
        """The next whole frame that has so many lines."""
        while True:
            self.drawn += os.read(self.leader, 65536).decode(errors="replace")
            *whole, self.drawn = self.drawn.split("\x1b[J")
            for frame in whole:
                lines = ESCAPE.sub("", frame).split("\r\n")
                if len(lines) == rows:
                    return lines

    def lock(self) -> DaemonLock:
        """The daemon's, once events are in the views."""
        said = self.shows(r"(?s)/local\.db.* \d+ ms ")
        return DaemonLock(Path(re.findall(r"/\S+/local\.db", said)[0]))

    def close(self) -> None:
        for number in (self.leader, self._follower):
            os.close(number)


@contextmanager
def screen(rows: int = 24, columns: int = 80, **environment: str) -> Iterator[Screen]:
    shown = Screen(rows, columns, environment)
    try:
        yield shown
    finally:
        shown.process.kill()
        shown.process.wait()
        shown.close()


def is_as_before(shown: Screen) -> bool:
    """Whether the terminal is as it was: settings, cursor, lines that wrap, and its own screen."""
    ended = ("\x1b[?25h", "\x1b[?7h", "\x1b[?1049l")
    return shown.settings == shown.settings_before and all(each in shown.drawn for each in ended)


def test_on_a_terminal_it_is_a_picture_with_keys() -> None:
    with screen() as shown:
        shown.shows(r"\d+ events \(\d+ unread\).*; visible \d+ ms after the commit")
        shown.shows(r"(?s)web-1 I will use .*web-1 +in-progress +\d+ The login")
        assert "\x1b[36min-progress" in shown.drawn
        lock = shown.lock()
        first = lock.leader()
        shown.press("k")
        shown.shows(r"kill -9 \(1\): \d+ events unread; caught up in \d+\.\d s")
        second = lock.leader()
        assert first
        assert second
        assert first.pid != second.pid
        shown.press("v")
        shown.shows(r"verify, [\d:]{8}: sessions: 0 of \d+, session_index: 0 of \d+ views differ")
        shown.press("q")
        shown.shows("projector run -d ")
        assert shown.process.wait() == 0
        assert is_as_before(shown)
        assert lock.leader() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(number: int) -> None:
    with screen() as shown:
        shown.shows("q: quit")
        shown.process.send_signal(number)
        shown.shows("projector run -d ")
        assert shown.process.wait() == 0
        assert is_as_before(shown)


def test_a_daemon_that_ends_by_itself_ends_the_demo_and_leaves_the_terminal_as_it_was() -> None:
    with screen() as shown:
        leader = shown.lock().leader()
        assert leader
        os.kill(leader.pid, signal.SIGKILL)
        shown.shows("projector: the daemon of the demo has ended")
        assert shown.process.wait() == 3
        assert is_as_before(shown)


def test_a_terminal_that_is_closed_ends_it() -> None:
    with screen() as shown:
        lock = shown.lock()
        os.close(shown.leader)
        shown.leader = os.open(os.devnull, os.O_RDWR)
        shown.process.wait()
        assert lock.leader() is None


def test_a_frame_fits_its_terminal_after_each_change_of_its_size() -> None:
    with screen() as shown:
        shown.shows("in-progress")
        for rows, columns in ((24, 80), (12, 40), (50, 160)):
            shown.resize(rows, columns)
            lines = shown.frame(rows)
            assert max(map(len, lines)) == columns - 1


def test_without_colour_the_picture_has_none() -> None:
    with screen(NO_COLOR="1") as shown:
        shown.shows("in-progress")
        assert not re.search(r"\x1b\[[0-9;]*m", shown.drawn)


def test_a_terminal_that_knows_no_escapes_gets_lines() -> None:
    with screen(TERM="dumb") as shown:
        shown.shows(r"web-1 in-progress, \d+ messages, lag \d+ events\r\n")
        assert "\x1b" not in shown.drawn


BOTH = r"(?ms)(?=.*^web-1 \S+, \d+ messages, lag \d+ events$)(?=.*^web-2 )"
"""What is printed once the script and a library have written."""


def demo(until: str, *options: str) -> str:
    """What the demo prints, which Ctrl-C ends once it has printed something."""
    with subprocess.Popen([*PROJECTOR, "demo", *options], stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout
        said = ""
        while not re.match(until, said):
            line = ran.stdout.readline()
            assert line, said
            said += line
        ran.send_signal(signal.SIGINT)
        said += ran.stdout.read()
    assert ran.returncode == 0
    return said


def test_the_demo_shows_sessions_change_and_says_where_they_are() -> None:
    said = demo(BOTH)

    path = Path(re.findall(r"the database is (\S+)\. Try", said)[0])
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

    said = demo(BOTH, "--engine", "postgresql")

    assert "the server with its database is gone" in said
    assert {*Path("/tmp").glob("projector-*/data/postmaster.pid")} <= {
        folder / "data/postmaster.pid" for folder in before
    }


def test_the_demo_on_a_named_server_has_a_schema_of_its_own(postgres: Server) -> None:
    with postgres.database() as url:
        said = demo(BOTH, "--engine", "postgresql", "-d", url)
        commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  ")]
        encodings = "SELECT DISTINCT data IS NULL FROM event_log ORDER BY 1"
        (asked,) = [words for words in commands if words[0] == "psql"]
        words = [postgres.binaries / "psql", *asked[1:-1], encodings]
        found = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        shown = projector(*commands[0][1:]).stdout

    assert "web-1" in shown
    assert re.findall(r"^ ([ft])$", found, re.MULTILINE) == ["f", "t"]


def test_the_commands_that_it_ends_with_can_be_pasted_where_it_was_called(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    program = folder / "projector"
    program.write_text(
        f"#!{sys.executable} -P\nfrom session_projector.__main__ import main\nmain()"
    )
    program.chmod(0o755)
    where = {"cwd": folder, "env": {**os.environ, "TMPDIR": str(folder)}, "text": True}

    said = subprocess.check_output(["./projector", "demo", "--seconds", "1"], **where)

    *pasted, last = [line for line in said.splitlines() if line.startswith("  ")]
    assert last.startswith("  ./projector run -d ")
    for line in pasted:
        if " session view " not in line:  # there may be none after so short a time
            subprocess.run(["bash", "-c", line], check=True, **where)


def test_a_killed_demo_leaves_nothing_running() -> None:
    with screen() as shown:
        lock = shown.lock()
        shown.press("k")  # the daemon is another one than at first
        shown.shows("caught up")
        shown.process.kill()
        while lock.leader() is not None:
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
