"""What happens to open pages when the board, the daemon or the database do something else."""

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import projector
from support.browser import World, expect, say, texts
from support.nodes import Log
from support.postgres import Server

from session_projector.worker.storage import open as storage

pytestmark = pytest.mark.timeout(240)  # a browser beside other tests


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_pages_go_on_after_the_board_was_killed(world: Any) -> None:
    say(world.database, "S-1", *texts(3), project="P")
    visitor = world.start().visitor()
    visitor.allowed.append("net::ERR_")
    board, session = visitor.open(), visitor.open("/session?id=S-1")
    expect(session.locator("#m3")).to_be_visible()
    expect(board.locator(".card")).to_have_count(1)
    world.board.process.kill()
    expect(session.locator(".notice")).to_contain_text("Reconnecting")
    expect(session.locator("#m3")).to_be_visible()
    say(world.database, "S-1", *texts(2, first=4))
    say(world.database, "S-2", *texts(1), project="P")
    world.restart_board()
    expect(session.locator("#m5")).to_be_visible()
    expect(board.locator(".card")).to_have_count(2)
    expect(session.locator(".notice")).to_have_count(0)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_a_replay_is_seen(world: Any) -> None:
    say(world.database, "S-1", *texts(1), project="P")
    visitor = world.start().visitor()
    board, session = visitor.open(), visitor.open("/session?id=S-1")
    expect(session.locator("#m1")).to_be_visible()
    expect(board.locator(".card .title")).to_have_text("message number 1")
    world.database.sql("UPDATE session_index SET title = 'damaged'")
    board.reload()
    expect(board.locator(".card .title")).to_have_text("damaged")
    expect(session.locator("h1")).to_have_text("message number 1")
    projector("replay", "-d", world.database.url)
    expect(board.locator(".card .title")).to_have_text("message number 1")


def test_ten_tabs_share_one_stream(world: Any) -> None:
    for number in range(3):
        say(world.database, f"S-{number}", *texts(1), project="P")
    visitor = world.start().visitor()
    streams = []
    visitor.context.on(
        "request", lambda request: "changes?" in request.url and streams.append(request.url)
    )
    pages = [
        visitor.open("/" if number % 2 else f"/session?id=S-{number % 3}") for number in range(10)
    ]
    boards, sessions = pages[1::2], pages[::2]
    for page in boards:
        expect(page.locator(".card")).to_have_count(3)
    for page in sessions:
        expect(page.locator("#m1")).to_be_visible()
    for number in range(3):
        say(world.database, f"S-{number}", *texts(1, first=2))
    for page in boards:
        expect(page.locator(".card", has_text="assistant")).to_have_count(3)
    for page in sessions:
        expect(page.locator("#m2")).to_be_visible()
    assert len(streams) <= 4  # one, asked for again as tabs with other sessions came
    pages.pop(0).close()  # the one that reads
    for number in range(3):
        say(world.database, f"S-{number}", *texts(1, first=3))
    for page in sessions[1:]:
        expect(page.locator("#m3")).to_be_visible()


def test_a_newer_schema_is_said_in_the_programs_words(world: Any) -> None:
    say(world.database, "S-1", *texts(1), project="P")
    visitor = world.start(with_daemon=False).visitor()
    visitor.allowed.append("status of 50")
    page = visitor.open()
    expect(page.locator(".empty")).to_be_visible()
    world.database.sql("INSERT INTO umzug_meta (name) VALUES ('9999-projector-newer')")
    page.goto(f"{world.board.url}/session?id=S-1")
    expect(page.get_by_role("alert")).to_contain_text("newer")


def test_how_the_daemon_is_stands_above_each_page(world: Any) -> None:
    say(world.database, "S-1", *texts(1), project="P")
    page = world.start().open("/health")
    notices = page.locator(".notices")
    expect(page.get_by_role("region", name="projections")).to_contain_text("up to date")
    expect(notices).to_have_text("")
    lock = world.database.path.with_name("local.db-projector.lock")
    with lock.open("r+b") as told:  # as a daemon does
        told.seek(len(told.read().rstrip()))
        told.write(f"\nWAITING_FOR_SPACE={time.time():.0f}".encode())
    expect(notices).to_contain_text("The daemon has waited for disk space since")
    world.daemon.suspend()
    say(world.database, "S-1", *texts(1))
    expect(notices).to_contain_text("The daemon is suspended")
    expect(notices).to_contain_text("Projection sessions is 1 event behind")
    state = "INSERT OR REPLACE INTO projection_state VALUES (?, ?, 2, ?, ?, ?, ?, ?)"
    now = int(time.time() * 1000)
    world.database.sql(state, "sessions", "rebuilding", "", 25, 100, now, now)
    expect(notices).to_contain_text("sessions is being rebuilt: 25 of about 100 events")
    progress = page.get_by_role("progressbar", name="rebuild of sessions")
    expect(progress).to_have_attribute("value", "25")
    world.database.sql(state, "sessions", "failed", "the disk is full", 0, 0, now, now)
    expect(notices).to_contain_text("Projection sessions has been failing since")


def test_pages_recover_when_the_server_of_the_database_is_back(
    browser: Any, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        server = Server()
        stack.callback(server.close)
        server.sql("CREATE DATABASE log")
        url = server.url("log")
        storage.database(url).setup()
        log: Any = Log(url)
        log.created()
        projector("run", "-d", url, "--once")
        visitor = World(log, tmp_path / "state", browser, stack).start(with_daemon=False).visitor()
        visitor.allowed.append("status of 503")
        old = visitor.open()
        expect(old.locator(".card")).to_have_count(1)
        server.stop("SIGINT")
        notice = old.locator(".notice.bad")
        expect(notice).to_contain_text(re.compile(r"\. See whether .*\."))
        expect(old.locator(".dot")).to_have_attribute("aria-label", "database not read")
        fresh = visitor.open()
        expect(fresh.locator(".notice.bad")).to_have_count(1)
        expect(fresh.locator("main")).to_contain_text("tried again every few seconds")
        expect(fresh.get_by_role("alert")).to_have_count(0)
        server.start()
        for page in (fresh, old):
            expect(page.locator(".card")).to_have_count(1)
            expect(page.locator(".notice.bad")).to_have_count(0)
        log.created()
        projector("run", "-d", url, "--once")
        for page in (fresh, old):
            expect(page.locator(".card")).to_have_count(2)
