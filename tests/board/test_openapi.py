"""docs/board-api.json is what the board answers."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import schemathesis
from hypothesis import Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support import Database, event, projector
from support.board import Board, board

from session_projector.worker.board.app import READS
from session_projector.worker.board.quarantine import ACTIONS
from session_projector.worker.storage.sqlite.schema import migrate as schema

PAGE = Path(__file__).parents[2] / "docs" / "board-api.json"
API = schemathesis.openapi.from_path(PAGE)
HELD = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board on a database with something of each kind in it."""
    folder = tmp_path_factory.mktemp("openapi")
    database = Database(folder / "local.db")
    schema.setup(database.path)
    for session_id in ("0", "1", "a"):
        database.created(session_id, "one", "two")
        database.appended(session_id, "three")
    database.insert("0", event("session_updated", {"messages": [], "status": "done"}))
    database.insert("0", b"\xc1")
    database.appended("absent", "x")
    projector("run", "-d", database.url, "--once")
    with closing(database), board(database, folder / "state", "--allow-actions") as running:
        yield running


@API.exclude(path="/changes").parametrize()
@settings(max_examples=8, derandomize=True, phases=[Phase.explicit, Phase.generate])
def test_the_board_answers_as_its_description_says(case: schemathesis.Case, shown: Board) -> None:
    headers = {"authorization": f"Bearer {shown.token}"}
    case.call_and_validate(base_url=f"{shown.url}/api/v1", headers=headers, checks=HELD)


def test_what_is_there_answers_as_the_description_says(shown: Board) -> None:
    for path in (
        "/sessions",
        "/sessions?q=one&waiting=1&order=created&limit=1",
        "/session?id=0",
        "/session/messages?id=1&first=2",
        "/session/message?id=1&n=1",
        "/session/events?id=0",
        "/session/at?id=0&at=2",
        "/session/diff?id=0&from=1&to=9",
        "/session/why?id=0",
        "/status",
        "/doctor",
        "/quarantine",
        "/quarantine/event?seq=8",
    ):
        answer = shown.get(f"/api/v1{path}")
        assert answer.status == 200, (path, answer)
        operation = API[path.partition("?")[0]]["get"]
        kind = {"content-type": [answer.headers["content-type"]]}
        operation.validate_response(schemathesis.Response(200, kind, answer.body, None, 0, False))


def test_each_path_is_described() -> None:
    actions = [f"quarantine/{name}" for name in ACTIONS]
    answered = {*READS, *actions, "status", "doctor", "changes"}
    assert {*json.loads(PAGE.read_text())["paths"]} == {f"/{path}" for path in answered}
