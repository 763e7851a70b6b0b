"""One session in a browser: its messages by windows, live; its history; and hostile contents."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from support.browser import expect, say, texts

pytestmark = pytest.mark.timeout(240)  # a browser beside other tests


def shown(page: Any) -> list[int]:
    """The numbers of the messages on the page."""
    ids = page.locator(".message").evaluate_all("all => all.map(one => one.id)")
    return [int(one.removeprefix("m")) for one in ids]


def is_at_end(page: Any) -> bool:
    return bool(page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2"))


def test_a_window_of_a_long_conversation(world: Any) -> None:
    say(world.database, "S-1", *texts(1000), project="P")
    page = world.start().open("/session?id=S-1")
    expect(page.locator("#m1000")).to_be_in_viewport()
    assert shown(page) == [*range(901, 1001)]
    top = page.locator("#m901")
    top.scroll_into_view_if_needed()
    page.get_by_role("button", name="900 earlier messages: show 100").click()
    expect(page.locator("#m801")).to_be_attached()
    expect(top).to_be_in_viewport()
    for first in (701, 601):
        page.keyboard.press("[")
        expect(page.locator(f"#m{first}")).to_be_attached()
    assert shown(page) == [*range(601, 901)]
    page.get_by_role("button", name="100 later messages").click()
    expect(page.locator("#m1000")).to_be_attached()
    page.goto(f"{world.board.url}/session?id=S-1#m20")
    page.reload()
    expect(page.locator("#m20.chosen")).to_be_in_viewport()
    assert shown(page) == [*range(1, 71)]
    page.keyboard.press("e")
    expect(page.locator("#m1000")).to_be_in_viewport()


def test_what_is_new_is_followed_at_the_end_and_counted_elsewhere(world: Any) -> None:
    say(world.database, "S-1", *texts(100), project="P")
    page = world.start().open("/session?id=S-1")
    expect(page.locator("#m100")).to_be_in_viewport()
    say(world.database, "S-1", *texts(2, first=101))
    expect(page.locator("#m102")).to_be_in_viewport()
    expect(page.locator(".head")).to_contain_text("102 messages")
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    expect(page.locator("#m102")).not_to_be_in_viewport()
    before = page.evaluate("scrollY")
    say(world.database, "S-1", *texts(3, first=103))
    page.get_by_role("button", name="3 new").wait_for()
    assert page.evaluate("scrollY") == before
    page.get_by_role("button", name="3 new").click()
    expect(page.locator("#m105")).to_be_in_viewport()
    assert is_at_end(page)
    say(world.database, "S-1", *texts(1), status="done")
    expect(page.locator(".head")).to_contain_text("1 message")
    assert shown(page) == [1]


def test_each_message_says_when_it_came(world: Any) -> None:
    noon = int(datetime(2025, 6, 1, 12, tzinfo=UTC).timestamp() * 1000)

    def appended(hours: int, *messages: Any) -> None:
        data = {"type": "session_append", "data": {"messages": [*messages]}}
        world.database.insert("session:S-1", data, created_at=noon + hours * 3_600_000)

    say(world.database, "S-1", *texts(2), project="P", at=noon)
    appended(1, *texts(150, first=3))
    page = world.start().visitor(timezone_id="UTC").open("/session?id=S-1")
    expect(page.locator("#m152 time")).to_have_text("1 Jun 2025 13:00:00")
    page.keyboard.press("[")
    expect(page.locator("#m2 time")).to_have_text("1 Jun 2025 12:00:00")
    expect(page.locator("#m3 time")).to_have_attribute("datetime", "2025-06-01T13:00:00.000Z")
    appended(2, *texts(1, first=153))
    page.keyboard.press("e")
    expect(page.locator("#m153 time")).to_have_text("1 Jun 2025 14:00:00")


def test_a_session_with_the_longest_id_is_opened_and_followed(world: Any) -> None:
    name = "ü" * 32_000
    say(world.database, name, *texts(1), project="P")
    page = world.start().open()
    page.locator(".card").click()
    expect(page.locator("#m1")).to_be_visible()
    say(world.database, name, *texts(1, first=2))
    expect(page.locator("#m2")).to_be_visible()
    page.get_by_role("link", name="History").click()
    expect(page.get_by_role("slider", name="moment")).to_be_visible()


def test_parts_of_a_message(world: Any) -> None:
    call = {"type": "tool_use", "name": "Bash", "input": {"command": "ls -l"}}
    result = {"type": "tool_result", "content": "total 0"}
    said = {
        "type": "text",
        "text": "**Look** at [it](https://a.example/)\n\n```py\nif x: pass\n```",
    }
    long = "begins " + "word " * 100_000
    say(
        world.database,
        "S-1",
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, said, call]},
        {"role": "user", "content": [result]},
        {"role": "user", "content": long},
        {"role": "assistant", "content": "done", "n": 2**63 - 1},
        project="P",
    )
    page = world.start().open("/session?id=S-1")
    first = page.locator("#m1")
    expect(first.locator("strong")).to_have_text("Look")
    expect(first.locator(".hljs-keyword").first).to_have_text("if")
    link = first.get_by_role("link", name="it", exact=True)
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    tool = first.locator("details", has_text="Bash")
    expect(tool.locator("summary")).to_have_text("Bash ls -l")
    expect(tool.locator("pre")).to_have_count(0)
    tool.locator("summary").click()
    expect(tool.locator("pre")).to_contain_text('"command": "ls -l"')
    expect(page.locator("#m2 .who")).to_have_text("tool")
    third = page.locator("#m3")
    expect(third.locator(".cut").first).to_contain_text("the first 16 KiB of 488 KiB are shown")
    third.get_by_role("button", name="Show all").click()
    expect(third).to_contain_text("262,144 of 500,007 characters are shown")
    third.get_by_role("button", name="Show more").click()
    expect(third.locator(".cut")).to_have_count(0)
    page.locator("#m4 details summary").click()
    expect(page.locator("#m4")).to_contain_text("9223372036854775807")


HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "[a](javascript:window.hacked=1) ![b](https://evil.example/b.png) <https://evil.example>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe><svg onload=window.hacked=1>",
    "\x1b]8;;https://evil.example\x07text\x1b]8;;\x07 \x1b[2J\u202egnp.exe \u2066x\u2069 \u200b",
    "> " * 5000,
    "[" * 10_000,
    "*" * 10_000,
    "| a " * 2000 + "\n" + "|-" * 2000,
    "```" + "x" * 10_000,
    "</textarea></title></style>{{constructor}}${alert(1)}",
    "\ud7ff\ue000\uffff\x00\x7f\u0085",
]


def test_hostile_messages_are_inert(world: Any) -> None:
    nested: Any = "deep"
    for _ in range(200):
        nested = [nested]
    odd = [
        {"role": {"a": 1}, "content": {"type": {"x": 1}, "text": ["y"]}},
        {"role": "<b>x</b>" * 100, "content": nested},
        {"content": [{"type": "tool_use", "name": "<i>", "input": nested}], "__proto__": {"a": 1}},
        {"role": "constructor", "type": "toString", "tool_calls": {"length": -1}},
        {"role": "user", "content": [{"type": "image", "source": {"url": "https://evil.example"}}]},
        {"role": "user", "content": b"\x00\xff", "key": None},
    ]
    name = "<img src=x onerror=window.hacked=1>\u202e"
    messages = [*({"role": "assistant", "content": text} for text in HOSTILE), *odd]
    say(world.database, name, *messages, project=name, status=name)
    visitor = world.start().visitor()
    page = visitor.open()
    expect(page.locator(".card")).to_contain_text("\\u202e")
    page.locator(".card").click()
    expect(page.locator(".message")).to_have_count(len(messages))
    for fold in page.locator(".message details summary").all():
        fold.click()
    expect(page.locator("#m1")).to_contain_text("<script>")
    expect(page.locator("#m4 .control")).not_to_have_count(0)
    expect(page.locator("#m2")).to_contain_text("image: b (https://evil.example/b.png)")
    page.goto(page.url.replace("/session?", "/session/history?"))
    expect(page.locator(".message")).not_to_have_count(0)
    assert page.evaluate("window.hacked") is None
    made = "script[src*=evil], main script, iframe, object, embed, img, svg, [onerror], [onload]"
    assert page.locator(made).count() == 0
    addresses = page.locator("main a").evaluate_all("all => all.map(one => one.protocol)")
    assert {*addresses} <= {"http:", "https:"}


def test_the_past_by_a_slider(world: Any) -> None:
    say(world.database, "S-1", *texts(1), project="P")
    say(world.database, "S-1", *texts(1, first=2))
    world.database.insert("session:S-1", {"type": "session_append", "data": {"messages": "odd"}})
    newest = say(world.database, "S-1", status="review")
    page = world.start().open("/session?id=S-1")
    expect(page.locator(".lacking")).to_contain_text("1 event of this session could not be folded")
    page.get_by_role("link", name="History").click()
    difference = page.get_by_role("region", name="differences")
    expect(difference).to_contain_text("ready → review")
    slider = page.get_by_role("slider", name="moment")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("event 4 of 4, session_updated"))
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".reason")).to_contain_text("Quarantined: messages is text, not a list")
    page.keyboard.press("ArrowLeft")
    expect(difference.locator(".message")).to_contain_text("message number 2")
    expect(page).to_have_url(re.compile(r"at=2$"))
    then = page.get_by_role("region", name="conversation at that moment")
    expect(then).to_contain_text("As of event 2: ready, 2 messages")
    page.get_by_role("button", name="compare from here: event 1", exact=True).click()
    page.get_by_role("button", name=f"go to event {newest}", exact=True).click()
    expect(difference).to_contain_text(f"Changed from 1 to {newest}")
    expect(difference).to_contain_text("ready → review")
    say(world.database, "S-1", status="done")
    expect(difference).to_contain_text("ready → done")
    page.goto(f"{world.board.url}/session?id=S-1&at=1")
    expect(page.locator(".head")).to_contain_text("as of event 1")
    expect(page.locator(".message")).to_have_count(1)


def test_where_each_field_came_from(world: Any) -> None:
    say(world.database, "S-1", *texts(1), project="P")
    say(world.database, "S-1", status="review")
    page = world.start().open("/session?id=S-1")
    page.get_by_text("Which event set each field").click()
    expect(page.locator(".sheet details")).to_contain_text("session_updated")


def test_no_such_session(world: Any) -> None:
    visitor = world.start().visitor()
    visitor.allowed.append("404")
    page = visitor.open("/session?id=nobody")
    expect(page.get_by_role("alert")).to_contain_text("there is no session nobody")
    expect(page.get_by_role("alert").locator("code")).to_contain_text("projector session list -d")
