"""A board as a browser or a script asks it, over a socket."""

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from support import PROJECTOR, Database, forks


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Stream:
    """The events of a stream, as a browser takes them."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.last_id = ""

    def next(self) -> tuple[str, Any]:
        """The next event that is no comment."""
        name, data = "", None
        for line in self._response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "id":
                self.last_id = value
            elif field == "event":
                name = value
            elif field == "data":
                data = json.loads(value)
            elif not field and name:
                return name, data
        raise EOFError

    def wait_for(self, wanted: str, **fields: Any) -> Any:
        """The data of the next event of a name with these fields."""
        while True:
            name, data = self.next()
            if name == wanted and all(data.get(k) == v for k, v in fields.items()):
                return data

    def wait_for_session(self, session_id: str) -> Any:
        while True:
            for one in self.wait_for("sessions")["sessions"]:
                if one["id"] == session_id:
                    return one


class Board:
    """A `projector board` process."""

    def __init__(self, url: str, state: Path, options: Sequence[str] = ()) -> None:
        command = ["board", "-d", url, *options]
        if "--listen" not in options:
            command += ["--listen", "127.0.0.1:0"]
        self.log = TemporaryFile()  # noqa: SIM115
        ours, theirs = os.pipe()
        self.process = _started(command, theirs, self.log.fileno(), {"XDG_STATE_HOME": str(state)})
        os.close(theirs)
        with open(ours) as printed:
            self.printed = printed.readline()
        assert self.printed, self.said()
        self.url = self.printed.split()[0]
        self.host = self.url.removeprefix("http://")
        token = state / "projector" / "board-token"
        self.token = token.read_text().strip() if token.exists() else ""
        self.key = ""
        """What a page has besides the cookie."""
        if self.token:
            with self.ask("GET", f"/login?token={self.token}") as response:
                self.key = (response.getheader("location") or "").rpartition("=")[2]

    def said(self) -> str:
        """What it wrote to stderr."""
        self.log.seek(0)
        return self.log.read().decode()

    @contextmanager
    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; `sec_fetch_site=` is that header, None leaves one out."""
        if self.url.startswith("unix:"):
            connection = http.client.HTTPConnection("localhost", timeout=30)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.url.removeprefix("unix:"))
        else:
            connection = http.client.HTTPConnection(self.host, timeout=30)
        given = {"authorization": f"Bearer {self.token}", "host": None, **headers}
        with closing(connection):
            connection.putrequest(method, path, skip_host=given["host"] is not None)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            with closing(connection.getresponse()) as response:
                yield response

    def get(self, path: str, method: str = "GET", **headers: str | None) -> Answer:
        with self.ask(method, path, **headers) as response:
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())

    def api(self, path: str, status: int = 200) -> Any:
        """The JSON that a path of the API answers with."""
        answer = self.get(f"/api/v1/{path}")
        assert answer.status == status, answer
        return answer.json

    def post(self, path: str, asked: Any, **headers: str | None) -> Answer:
        body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        headers = {"content_type": "application/json", **headers}
        with self.ask("POST", path, body, **headers) as response:
            return Answer(response.status, {}, response.read())

    @contextmanager
    def changes(self, query: str = "", **headers: str | None) -> Iterator[Stream]:
        with self.ask("GET", f"/api/v1/changes?{query}", **headers) as response:
            assert response.status == 200, response.read()
            yield Stream(response)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def _started(
    command: list[str], stdout: int, stderr: int, more: dict[str, str]
) -> subprocess.Popen[bytes] | forks.Forked:
    if forks.is_as_it_was():
        return forks.Forked(command, 0, stdout, stderr, more=more)
    whole = [*PROJECTOR, *command]
    return subprocess.Popen(whole, stdout=stdout, stderr=stderr, env=os.environ | more)


@contextmanager
def board(database: Database, state: Path, *options: str) -> Iterator[Board]:
    """Run a board that does not outlive the block."""
    running = Board(database.url, state, options)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
        running.log.close()
