"""Who is answered, and what a page of another site, or another user, gets."""

import os
import pty
import re
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import PROJECTOR, Database, projector
from support.board import Board, board

from session_projector.worker.board.token import derived, ticket

pytestmark = pytest.mark.once

PATHS = ["/", "/session?id=x", "/static/login.html", "/login", "/api/v1/sessions", "/nothing"]


@pytest.fixture
def shown(database: Database, tmp_path: Path) -> Iterator[Board]:
    with board(database, tmp_path / "state") as running:
        yield running


def test_a_request_by_another_name_is_refused_on_every_path(shown: Board) -> None:
    port = shown.host.partition(":")[2]
    names = ["evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost:x"]
    names += [f"{number}:{port}" for number in ("10.0.0.1", "127.0.0.1.evil.example", "[::2]")]
    for path in PATHS:
        assert {shown.get(path, host=name).status for name in names} == {421}
    for name in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert shown.get("/api/v1/sessions", host=f"{name}:{port}").status == 200


def test_nothing_of_the_database_is_told_without_the_token(shown: Board) -> None:
    assert shown.token not in shown.printed
    for given in (None, "Bearer", "Bearer x", f"Basic {shown.token}", f"Bearer {shown.token[:-1]}"):
        for path in ("/api/v1/sessions", "/api/v1/changes", "/", "/session"):
            assert shown.get(path, authorization=given).status == 401
    page = shown.get("/session?id=x", authorization=None, accept="text/html,*/*")
    assert page.status == 401
    assert b"<form" in page.body
    assert shown.get("/static/login.html", authorization=None).status == 200
    wrong = shown.get("/api/v1/sessions", authorization=None).json
    assert wrong["hint"].startswith("open the address")


def test_the_printed_address_and_the_form_set_a_cookie_that_no_script_reads(shown: Board) -> None:
    refused = shown.get("/login?token=wrong", authorization=None)
    assert (refused.status, "set-cookie" in refused.headers) == (401, False)
    for wrong in (b"", b"token=", b"token=x", b"\xff" * 100):
        with shown.ask("POST", "/login", wrong, authorization=None) as response:
            assert response.status == 401
    with shown.ask("POST", "/login", b"x" * 5000, authorization=None) as response:
        assert response.status == 413

    for answer in (
        shown.ask("GET", f"/login?token={shown.token}", authorization=None),
        shown.ask("POST", "/login", f"token={shown.token}".encode(), authorization=None),
    ):
        with answer as response:
            assert (response.status, response.getheader("location")) == (303, f"/#key={shown.key}")
            said = response.getheader("set-cookie") or ""
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= {*said.split("; ")}
        assert shown.token not in said
        cookie = said.partition(";")[0]
        browser = {"authorization": None, "cookie": cookie}
        assert shown.get("/", **browser).status == 200
        assert shown.get("/api/v1/sessions", **browser, projector_key=shown.key).status == 200
        # Each port of this machine is shown the cookie.
        assert shown.get("/api/v1/sessions", **browser).status == 401
        assert shown.get("/api/v1/sessions", **browser, projector_key="x").status == 401
        assert shown.get(f"/api/v1/sessions?key={shown.key}", **browser).status == 401
        with shown.ask("GET", f"/api/v1/changes?key={shown.key}", **browser) as stream:
            assert stream.status == 200
        wrong_cookie = cookie[:-1] + ("0" if cookie[-1] != "0" else "1")
        assert shown.get("/", authorization=None, cookie=wrong_cookie).status == 401


def test_a_ticket_lets_one_browser_in_for_a_minute(shown: Board) -> None:
    once = f"/login?once={ticket(shown.token)}"
    assert shown.token not in once
    assert shown.get(once, authorization=None).status == 303
    assert shown.get(once, authorization=None).status == 401
    late = int(time.time()) - 1
    for wrong in (f"{late}.{derived(shown.token, f'ticket {late}')}", "9999999999.x", "x", "."):
        assert shown.get(f"/login?once={wrong}", authorization=None).status == 401


def test_connections_that_ask_for_nothing_keep_nobody_out(shown: Board) -> None:
    host, _, port = shown.host.partition(":")
    with ExitStack() as stack:
        for _ in range(450):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert shown.get("/api/v1/sessions").status == 200


def test_a_form_that_is_broken_off_is_no_line_in_the_log(shown: Board) -> None:
    host, _, port = shown.host.partition(":")
    with socket.create_connection((host, int(port))) as broken:
        head = f"POST /login HTTP/1.1\r\nHost: {shown.host}\r\nContent-Length: 100\r\n\r\ntoken="
        broken.sendall(head.encode())
    assert shown.get("/api/v1/sessions").status == 200
    assert "Traceback" not in shown.said()


def test_each_answer_lets_no_script_of_others_run(shown: Board) -> None:
    for path in [*PATHS, "/api/v1/nothing", "/api/v1/session"]:
        headers = shown.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_pages_of_other_sites_are_not_answered(shown: Board) -> None:
    for site in ("cross-site", "same-site"):
        assert shown.get("/api/v1/sessions", sec_fetch_site=site).status == 403
        frame = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}
        assert shown.get("/", sec_fetch_site=site, **frame).status == 403
        link = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert shown.get("/", sec_fetch_site=site, **link).status == 200
    assert shown.get("/api/v1/sessions", sec_fetch_site="same-origin").status == 200
    assert shown.get("/api/v1/sessions", origin="http://evil.example").status == 403
    assert shown.get("/api/v1/sessions", origin="null").status == 403


def test_an_action_is_done_only_for_our_own_pages_and_scripts(
    database: Database, tmp_path: Path
) -> None:
    database.insert("session:absent", b"\xc1")
    projector("run", "-d", database.url, "--once", check=None)
    dismiss, asked = "/api/v1/quarantine/dismiss", {"seqs": [1], "note": "known"}
    with board(database, tmp_path / "state", "--allow-actions") as shown:
        with shown.ask("GET", f"/login?token={shown.token}") as response:
            cookie = (response.getheader("set-cookie") or "").partition(";")[0]
        browser = {"authorization": None, "cookie": cookie, "projector_key": shown.key}

        for wrong in (
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site", "origin": f"http://{shown.host}"},
            {"sec_fetch_site": "none"},
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": f"http://{shown.host}.evil.example"},
            {},
        ):
            assert shown.post(dismiss, asked, **browser, **wrong).status == 403
        ours = {"sec_fetch_site": "same-origin", "origin": f"http://{shown.host}"}
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            assert shown.post(dismiss, asked, content_type=kind, **browser, **ours).status == 415
        assert shown.get(dismiss).status == 405
        assert shown.api("quarantine")["undismissed"] == 2

        assert shown.post(dismiss, asked, **browser, **ours).json == {"dismissed": 1}
        assert shown.post(dismiss, asked).json == {"dismissed": 1}
        assert shown.api("quarantine")["undismissed"] == 0


def test_without_the_option_no_action_is_done(database: Database, shown: Board) -> None:
    database.insert("session:absent", b"\xc1")
    projector("run", "-d", database.url, "--once", check=None)
    for action in ("check", "resubmit", "dismiss"):
        answer = shown.post(f"/api/v1/quarantine/{action}", {"seqs": [1], "note": "x"})
        assert answer.status == 403
        assert f"projector board --allow-actions -d {database.named}" in answer.json["hint"]


def test_neither_contents_nor_the_token_are_logged(database: Database, shown: Board) -> None:
    database.insert("session:secret", b"\xc1secret")
    for path in ("/login?token=", "/api/v1/session?id=secret&token="):
        shown.get(path + shown.token)
    shown.get("/static/../../etc/passwd")
    assert shown.stop() == 0
    assert shown.said() == ""


def test_no_file_is_served_but_the_pages_own(shown: Board) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/",
        "/static/%00",
        "//evil.example/",
    ):
        assert shown.get(path).status in (404, 405)


def test_the_token_is_this_users_alone_and_stays(database: Database, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with board(database, state) as first:
        pass
    file = state / "projector" / "board-token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with board(database, state) as second:
        assert (second.token, len(second.token) >= 40) == (first.token, True)

    def refused() -> str:
        more = {"XDG_STATE_HOME": str(state)}
        listen = ("--listen", "127.0.0.1:0")
        return projector("board", "-d", database.url, *listen, check=4, more=more).stderr

    file.chmod(0o640)
    assert "others may read it" in refused()
    file.chmod(0o600)
    file.write_text("short")
    assert f"rm {file}" in refused()
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in refused()
    assert not (tmp_path / "elsewhere").exists()


def test_a_unix_socket_is_for_this_user(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "board.sock"
    for was_killed in (True, False):  # the second one finds what the first one left
        with board(database, tmp_path / "state", "--listen", f"unix:{path}") as shown:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert shown.api("sessions")["sessions"] == []
            assert shown.get("/", host="evil.example").status == 421
            assert shown.get("/", authorization=None).status == 401
            if was_killed:
                shown.process.kill()
                shown.process.wait()
            else:
                assert shown.stop() == 0
        assert path.exists() == was_killed


def test_the_socket_of_another_board_stays(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "board.sock"
    listen = ("--listen", f"unix:{path}")
    more = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with board(database, tmp_path / "state", *listen) as first:
        path.unlink()
        with board(database, tmp_path / "state", *listen) as second:
            assert first.stop() == 0
            assert second.api("sessions")["sessions"] == []
            taken = projector("board", "-d", database.url, *listen, check=3, more=more).stderr
            assert "another process may use it" in taken
            assert second.api("sessions")["sessions"] == []


def test_where_it_may_not_listen_it_says_so(database: Database, tmp_path: Path) -> None:
    def said(*options: str, code: int = 2) -> str:
        more = {"XDG_STATE_HOME": str(tmp_path / "state")}
        return projector("board", "-d", database.url, *options, check=code, more=more).stderr

    assert "is not an address" in said("--listen", "nonsense")
    assert "is not an address" in said("--listen", "127.0.0.1:99999")
    assert "would let everybody in" in said("--listen", "0.0.0.0:0", "--no-token")
    assert "would let everybody in" in said("--listen", "[::]:0", "--no-token")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "another process may use it" in said("--listen", f"127.0.0.1:{port}", code=3)


def test_a_token_that_others_could_replace_is_refused(database: Database, tmp_path: Path) -> None:
    state = tmp_path / "state"
    folder = state / "projector"
    folder.mkdir(parents=True)
    more = {"XDG_STATE_HOME": str(state)}
    folder.chmod(0o777)
    shared = projector("board", "-d", database.url, check=4, more=more).stderr
    assert f"chmod go-w {folder}" in shared
    folder.chmod(0o700)
    os.mkfifo(folder / "board-token", 0o600)
    assert (
        "is not a secret of yours"
        in projector("board", "-d", database.url, check=4, more=more).stderr
    )


def test_beyond_this_machine_it_warns_and_goes_by_addresses(
    database: Database, tmp_path: Path
) -> None:
    with board(database, tmp_path / "state", "--listen", "0.0.0.0:0") as shown:
        port = shown.host.partition(":")[2]
        shown.host = f"127.0.0.1:{port}"
        assert shown.get("/api/v1/sessions", host=f"10.1.2.3:{port}").status == 200
        assert shown.get("/api/v1/sessions", host=f"evil.example:{port}").status == 421
        assert shown.get("/api/v1/sessions", authorization=None).status == 401
        assert "put a proxy with TLS in front" in shown.said()


def test_without_a_token_any_user_of_this_machine_is_let_in_and_no_other_site(
    database: Database, tmp_path: Path
) -> None:
    with board(database, tmp_path / "state", "--no-token") as shown:
        assert shown.token == ""
        assert shown.get("/api/v1/sessions", authorization=None).status == 200
        assert shown.get("/", authorization=None, sec_fetch_site="cross-site").status == 403
        assert shown.get("/", authorization=None, host="evil.example").status == 421


def test_without_the_extra_it_says_how_to_install_it(database: Database, tmp_path: Path) -> None:
    (tmp_path / "starlette").mkdir()
    hide = "raise ModuleNotFoundError('no starlette', name='starlette')"
    (tmp_path / "starlette" / "__init__.py").write_text(hide)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = projector("board", "-d", database.url, check=2, env=environment)
    assert "-m pip install 'starlette>=0.46' 'uvicorn>=0.34'`" in done.stderr


def test_on_a_terminal_the_address_has_the_token(database: Database, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [*PROJECTOR, "board", "-d", database.url, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=theirs, env=environment)
    try:
        printed = ""
        while "\n" not in printed:
            printed += os.read(ours, 1000).decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
    token = (tmp_path / "state" / "projector" / "board-token").read_text().strip()
    assert re.match(rf"http://127\.0\.0\.1:\d+/login\?token={token}\s", printed)
