"""The board in a browser: columns, filters, and what happens while somebody looks."""

import re
import time
from typing import Any

import pytest
from support.browser import expect, say, texts

pytestmark = pytest.mark.timeout(240)  # a browser beside other tests

NOW = int(time.time() * 1000)


def columns(page: Any) -> dict[str, list[str]]:
    """The ids of the cards in each column."""
    found = {}
    for column in page.locator(".column").all():
        name = column.locator("h2 a").inner_text()
        found[name] = [card.get_attribute("data-id") for card in column.locator(".card").all()]
    return found


def filled(world: Any) -> Any:
    for number, status in enumerate(("ready", "in-progress", "review", "done", "odd"), 1):
        said = {"role": "user", "content": f"Task {number}"}
        say(world.database, f"S-{number}", said, project=f"P{number % 2}", status=status, at=NOW)
    return world


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_sessions_stand_in_columns_and_move_as_they_change(world: Any) -> None:
    page = filled(world).start().open()
    expect(page.locator(".card")).to_have_count(5)
    assert columns(page) == {
        "ready": ["S-1"],
        "in-progress": ["S-2"],
        "review": ["S-3"],
        "done": ["S-4"],
        "odd": ["S-5"],
    }
    expect(page).to_have_title("(2) Board · projector")
    say(world.database, "S-2", status="review")
    expect(page.get_by_role("region", name="review: 2 sessions")).to_be_visible()
    say(world.database, "S-6", {"role": "user", "content": "A new one"}, project="P9")
    expect(page.get_by_role("link", name=re.compile("A new one"))).to_be_visible()
    assert columns(page)["ready"] == ["S-6", "S-1"]
    expect(page).to_have_title("(4) Board · projector")
    expect(page.get_by_label("project", exact=True).locator("option")).to_have_count(4)


def test_filters_stand_in_the_address(world: Any) -> None:
    page = filled(world).start().open("/?project=P1&q=task")
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_label("words in title").fill("task 3")
    expect(page.locator(".card")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"\?project=P1&q=task\+3$"))
    page.go_back()
    expect(page.locator(".card")).to_have_count(3)
    page.get_by_role("button", name="Waits for me").click()
    expect(page.locator(".card")).to_have_count(2)
    page.reload()
    expect(page.get_by_role("button", name="Waits for me")).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(page.locator(".card")).to_have_count(2)
    page.goto(f"{world.board.url}/?q=nothing-like-it")
    page.get_by_role("link", name="Show all").click()
    expect(page.locator(".card")).to_have_count(5)


def test_an_update_keeps_what_is_being_typed(world: Any) -> None:
    page = filled(world).start().open()
    field = page.get_by_label("words in title")
    field.press_sequentially("tas")
    say(world.database, "S-2", *texts(1, first=2))
    expect(page.locator('[data-id="S-2"]')).to_contain_text("assistant")
    field.press_sequentially("k 3")
    expect(page.locator(".card")).to_have_count(1)
    expect(field).to_have_value("task 3")


def test_who_waits_longest_stands_first(world: Any) -> None:
    for number in range(3):
        say(
            world.database, f"S-{number}", *texts(1), project="P", at=NOW - (3 - number) * 3_600_000
        )
    page = world.start().open("/?order=waiting")
    expect(page.locator(".card")).to_have_count(3)
    assert columns(page)["ready"] == ["S-0", "S-1", "S-2"]


def test_a_column_shows_fifty_and_says_how_many_there_are(world: Any) -> None:
    for number in range(260):
        say(world.database, f"S-{number}", project="P")
    say(world.database, "S-1", status="done")
    page = world.start().open()
    expect(page.locator(".card")).to_have_count(51)
    page.get_by_role("link", name="all 259").click()
    expect(page.locator(".card")).to_have_count(200)
    page.get_by_role("button", name="200 more").click()
    expect(page.locator(".card")).to_have_count(259)


def test_very_many_statuses_share_the_last_column(world: Any) -> None:
    for number in range(400):
        say(world.database, f"S-{number}", project="P", status=f"status-{number:03}")
    for number in range(400, 403):
        say(world.database, f"S-{number}", project="P", status="status-399")
    visitor = world.start().visitor()
    asked = []
    visitor.context.on(
        "request", lambda request: "/sessions" in request.url and asked.append(request.url)
    )
    page = visitor.open()
    expect(page.locator(".column")).to_have_count(13)
    assert [*columns(page)][4:6] == ["status-399", "status-000"]
    assert [*columns(page)][-1] == "other"
    other = page.get_by_role("region", name="other: 392 sessions")
    expect(other.locator(".card")).to_have_count(50)
    assert len(asked) <= 14
    other.get_by_role("link", name="all 392").click()
    expect(page.locator(".card")).to_have_count(200)
    assert "status-399" not in page.locator(".columns").inner_text()
    page.get_by_role("button", name="200 more").click()
    expect(page.locator(".card")).to_have_count(392)
    page.get_by_role("button", name="remove the filter other").click()
    expect(page.locator(".column")).to_have_count(13)


def test_an_update_keeps_the_focus(world: Any) -> None:
    page = filled(world).start().open()
    card = page.locator('[data-id="S-2"]')
    card.focus()
    say(world.database, "S-2", *texts(1, first=2))
    expect(card).to_contain_text("assistant")
    expect(card).to_be_focused()
    say(world.database, "S-2", status="done")
    expect(page.get_by_role("region", name="done: 2 sessions")).to_be_visible()
    expect(card).to_be_focused()


def test_an_empty_board_says_how_to_begin(world: Any) -> None:
    page = world.start().open()
    expect(page.locator(".empty")).to_contain_text("projector session queue -d")
    say(world.database, "S-1", {"role": "user", "content": "The first"}, project="P")
    expect(page.get_by_role("link", name=re.compile("The first"))).to_be_visible()


def test_without_a_daemon_it_says_so(world: Any) -> None:
    page = filled(world).start(with_daemon=False).open()
    expect(page.locator(".notice")).to_contain_text("No daemon is running")
    expect(page.locator(".notice code")).to_contain_text("projector run -d")
    world.start_daemon()
    expect(page.locator(".card")).to_have_count(5)
    expect(page.locator(".notice")).to_have_count(0)


NOTIFICATIONS = """
window.told = [];
window.Notification = class {
  static permission = "granted";
  static requestPermission = async () => "granted";
  constructor(title, options) { window.told.push(`${title}: ${options.body}`); }
};
"""


def test_a_notification_when_asked_for(world: Any) -> None:
    visitor = filled(world).start().visitor()
    visitor.context.add_init_script(NOTIFICATIONS)
    page = visitor.open()
    button = page.get_by_role("button", name="Notify me")
    expect(button).to_have_attribute("aria-pressed", "false")
    say(world.database, "S-4", status="review")
    expect(page.get_by_role("region", name="review: 2 sessions")).to_be_visible()
    assert page.evaluate("window.told") == []
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    say(world.database, "S-2", status="review")
    expect(page.get_by_role("region", name="review: 3 sessions")).to_be_visible()
    say(world.database, "S-2", *texts(1, first=2))
    expect(page.locator('[data-id="S-2"]')).to_contain_text("assistant")
    assert page.evaluate("window.told") == ["Task 2: P0: review"]


def test_nothing_is_wider_than_a_phone(world: Any) -> None:
    filled(world)
    long = "averylongwordwithoutanyspaces" * 10
    say(world.database, f"S-{long}", {"role": "user", "content": long}, project=long)
    say(
        world.database,
        "S-9",
        {"role": "user", "content": f"```\n{long * 5}\n```\n\n|a|b|\n|-|-|\n|{long}|{long}|"},
        project="P",
    )
    world.database.insert("session:nobody", {"type": "session_append", "data": {"messages": long}})
    page = world.start().open(viewport={"width": 320, "height": 640})
    for path in (
        "/",
        "/session?id=S-9",
        "/session/history?id=S-9",
        "/health",
        "/quarantine",
        "/quarantine?seq=8",
        "/search",
    ):
        page.goto(world.board.url + path)
        expect(page.locator("main > :not(.loading)").first).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        for width in (640, 320):
            page.set_viewport_size({"width": width, "height": 640})
            assert page.evaluate("innerWidth") == width
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
