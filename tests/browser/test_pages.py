"""The other pages in a browser: search, health, quarantine, login; the keyboard; what axe finds."""

import json
import re
from typing import Any

import pytest
from support.browser import expect, say, texts
from support.node_packages import node_packages

pytestmark = pytest.mark.timeout(240)  # a browser beside other tests


def quarantined(world: Any) -> list[int]:
    say(world.database, "S-1", *texts(2), project="P")
    bad = {"type": "session_append", "data": {"messages": "<b>no list</b>"}}
    unknown = {"type": "session_append", "data": {"messages": [{"role": "user", "content": "x"}]}}
    return [
        world.database.insert("session:S-1", bad),
        world.database.insert("session:nobody", unknown),
        world.database.insert("session:S-1", b"\xc1\x00"),
    ]


def test_quarantine_without_actions_has_commands(world: Any) -> None:
    first, *_ = quarantined(world)
    page = world.start().open("/quarantine")
    expect(page.get_by_role("region", name="reasons").locator("tbody tr")).to_have_count(3)
    expect(page.locator("main")).to_contain_text("3 events could not be folded")
    page.get_by_label(f"event {first}").check()
    commands = page.get_by_role("region", name="events").locator(".command code")
    expect(commands.first).to_contain_text("projector quarantine resubmit -d")
    page.get_by_role("region", name="reasons").get_by_role(
        "link", name=re.compile("never created")
    ).click()
    expect(page.get_by_role("region", name="events").locator("tbody tr")).to_have_count(1)
    page.goto(f"{world.board.url}/quarantine?seq={first}")
    expect(page.get_by_role("region", name="event", exact=True)).to_contain_text("<b>no list</b>")
    expect(page.get_by_role("region", name="commands")).to_contain_text(f"resubmit {first}")


def test_quarantine_with_actions(world: Any) -> None:
    first, second, third = quarantined(world)
    visitor = world.start("--allow-actions").visitor()
    visitor.allowed.append("409")
    page = visitor.open(f"/quarantine?seq={first}")
    page.get_by_role("button", name="Check", exact=True).click()
    status = page.get_by_role("region", name="actions").get_by_role("status")
    expect(status).to_contain_text("messages is text, not a list")
    page.get_by_role("button", name="Correct it").click()
    field = page.get_by_label("The event, corrected")
    field.fill("{")
    page.get_by_role("button", name="Check", exact=True).click()
    expect(status).to_contain_text("This is not JSON")
    fixed = {"type": "session_append", "data": {"messages": texts(1, first=3)}}
    field.fill(json.dumps(fixed))
    page.get_by_role("button", name="Check", exact=True).click()
    expect(status).to_contain_text("it can be folded")
    page.get_by_role("button", name="Append it again").click()
    expect(status).to_contain_text("Appended as event 5")
    page.get_by_label("why it may stay").fill("corrected")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("region", name="why", exact=True)).to_contain_text("corrected")

    page.goto(f"{world.board.url}/quarantine")
    for seq in (second, third):
        page.get_by_label(f"event {seq}", exact=True).check()
    page.get_by_label("why they may stay").fill("not ours")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".actions")).to_contain_text("2 events dismissed")
    expect(page.locator("tr.dismissed")).to_have_count(3)
    expect(page.locator(".badge")).to_have_count(0)
    say(world.database, "nobody", project="P")
    page.get_by_label(f"event {second}", exact=True).check()
    page.get_by_role("button", name="Resubmit…").click()
    page.get_by_role("button", name="Append", exact=True).click()
    expect(page.locator(".actions")).to_contain_text("1 event appended again")
    page.goto(f"{world.board.url}/session?id=nobody")
    expect(page.locator(".message")).to_have_count(1)


def test_an_empty_quarantine(world: Any) -> None:
    page = world.start().open("/quarantine")
    expect(page.locator(".empty")).to_contain_text("Nothing is quarantined")


def test_health(world: Any) -> None:
    quarantined(world)
    page = world.start().open("/health")
    expect(page.get_by_role("region", name="daemon")).to_contain_text("running, process")
    expect(page.get_by_role("region", name="projections")).to_contain_text("up to date")
    page.get_by_role("button", name="Examine the database").click()
    expect(page.get_by_role("region", name="doctor").locator("tbody tr")).not_to_have_count(0)
    world.daemon.process.kill()
    expect(page.get_by_role("region", name="daemon")).to_contain_text("None is running")


def test_login(world: Any) -> None:
    say(world.database, "S-1", *texts(1), project="P")
    visitor = world.start().visitor(logged_in=False)
    visitor.allowed.append("401")
    page = visitor.open("/session?id=S-1")
    expect(page.locator("h1")).to_have_text("Log in to the board")
    page.get_by_label("Token").fill("not the token")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("not the token of this board")
    page.get_by_label("Token").fill(world.board.token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".card")).to_have_count(1)
    visitor.context.clear_cookies()
    page.get_by_label("words in title").fill("x")
    expect(page.get_by_role("alert").get_by_role("link", name="Log in")).to_be_visible()


def test_another_name_for_the_board_is_not_answered(world: Any) -> None:
    visitor = world.start().visitor(extra_http_headers={})
    visitor.context.route("**/*", _as_evil)
    visitor.allowed.append("421")
    page = visitor.open()
    expect(page.locator("body")).to_contain_text("this server does not go by that name")


def _as_evil(route: Any) -> None:
    answer = route.fetch(headers={**route.request.headers, "host": "evil.example"})
    route.fulfill(response=answer)


def test_a_walk_by_keyboard(world: Any) -> None:
    for number in range(3):
        say(world.database, f"S-{number}", *texts(3), project="P")
    page = world.start().open()
    expect(page.locator(".card")).to_have_count(3)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator('[data-id="S-1"]')).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator('[data-id="S-2"]')).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#m3")).to_be_visible()
    page.keyboard.press("k")
    page.keyboard.press("k")
    expect(page.locator("#m2")).to_be_focused()
    for letter, title in (("s", "Search"), ("h", "Health"), ("q", "Quarantine"), ("b", "Board")):
        page.keyboard.press("Escape")  # out of a field
        page.keyboard.press("g")
        page.keyboard.press(letter)
        expect(page).to_have_title(re.compile(rf"{title} · projector$"))
        expect(page.locator(".loading")).to_have_count(0)
    page.keyboard.press("/")
    expect(page.get_by_label("words in title")).to_be_focused()
    page.keyboard.type("gs?")
    expect(page.get_by_label("words in title")).to_have_value("gs?")
    page.keyboard.press("Escape")
    expect(page.get_by_label("words in title")).to_have_value("gs?")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()


PAGES = {
    "/": ".card",
    "/?status=ready&waiting=1": ".card",
    "/?q=nothing": ".empty",
    "/session?id=S-1": "#m1",
    "/session?id=S-1&at=1": "#m1",
    "/session/history?id=S-1": ".slider",
    "/search": ".empty",
    "/health": ".panel",
    "/quarantine": ".panel",
    "/quarantine?seq=2": ".panel",
    "/login": "form",
}


def test_axe_finds_nothing(world: Any) -> None:
    call = {"type": "tool_use", "name": "Bash", "input": {"command": "ls"}}
    content = "# H\n\n[a](https://a.example) `c`\n\n```py\nif x: 1 # c\n```\n\n|a|b|\n|-|-|\n|1|2|"
    quarantined(world)
    say(world.database, "S-1", {"role": "assistant", "content": [call, {"text": content}]})
    source = (node_packages() / "axe-core" / "axe.min.js").read_text()
    visitor = world.start("--allow-actions").visitor()
    found = {}
    page = visitor.open()
    for path, ready in PAGES.items():
        page.goto(world.board.url + path)
        expect(page.locator(ready).first).to_be_visible()
        for fold in page.locator("main summary").all():
            fold.click()
        found[path] = violations(page, source)
    world.daemon.process.kill()
    page.goto(world.board.url)
    expect(page.locator(".notice")).to_be_visible()
    page.keyboard.press("?")
    found["no daemon, keys"] = violations(page, source)
    assert not any(found.values()), found


def violations(page: Any, source: str) -> list[Any]:
    """What axe finds; put in by the debugger's protocol, as the pages run no other script."""
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": source})
    found = []
    for scheme, only in (("light", "undefined"), ("dark", "['color-contrast']")):
        page.emulate_media(color_scheme=scheme)
        run = (
            f"axe.run({{resultTypes: ['violations'], runOnly: {only}}}).then(found =>"
            " found.violations.map(one => [one.id, one.nodes.map(node => node.html)]))"
        )
        asked = {"expression": run, "awaitPromise": True, "returnByValue": True}
        found += session.send("Runtime.evaluate", asked)["result"]["value"]
    return found


def test_search_marks_the_words_and_a_click_leads_to_the_message(world: Any) -> None:
    said = [f"number {n}" for n in range(150)]
    said[20] = "the <b>needle</b> in the haystack"
    world.database.created("A-1", *said)
    world.start(with_daemon=False)
    world.start_daemon("--with", "search")
    page = world.visitor().open("/search?q=needle")
    hit = page.locator(".hit")
    expect(hit.locator("mark")).to_have_text("needle")
    expect(hit.locator(".snippet")).to_contain_text("the <b>needle</b> in")
    hit.click()
    expect(page.locator("#m21")).to_be_in_viewport()
    expect(page.locator("#m21")).to_contain_text("haystack")


def test_search_says_why_there_is_none(world: Any) -> None:
    visitor = world.start().visitor()
    visitor.allowed.append("409")
    page = visitor.open("/search?q=word")
    expect(page.get_by_role("alert")).to_be_visible()
    page.goto(f"{world.board.url}/search")
    expect(page.locator(".empty")).to_contain_text("Search is off")
