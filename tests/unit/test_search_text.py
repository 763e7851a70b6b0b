"""What of a message is searched, whatever its shape, and how words are asked for."""

from typing import Any

import msgpack
import pytest

from session_projector.projections import search as texts
from session_projector.projections.event import (
    Event,
    Messages,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
)
from session_projector.projections.search import BETWEEN, BREAK, Search
from session_projector.testing import event, given
from session_projector.worker.sessions.search import phrases
from session_projector.worker.storage.port import Phrase


def folded(*messages: Any, seq: int = 7) -> tuple[Any, ...]:
    body = b"".join(msgpack.packb(message) for message in messages)
    appended = MessagesAppended(Messages(len(messages), body))
    return Search().fold(None, Event(seq, "e", "session_append", "A-1", 5, appended))


def said(message: Any) -> str:
    return str(folded(message)[-1])


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": "plain"}, "plain"),
        ({"role": "user", "content": ""}, ""),
        ({"role": "user"}, ""),
        ({"role": "user", "content": None}, ""),
        ({"role": "user", "content": 5}, ""),
        ({"role": 5, "content": "x"}, "x"),
        ({"content": "nobody"}, "nobody"),
        ({1: 2, "content": "odd keys"}, "odd keys"),
        ({"role": "user", "content": {"text": "a map"}}, ""),
        ({"role": "user", "content": ["a text", 5, None]}, ""),
        # Anthropic
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hidden"},
                    {"type": "text", "text": "one"},
                    {"type": "tool_use", "id": "t", "name": "bash", "input": {"command": "ls"}},
                    {"type": "text", "text": "two"},
                    {"type": "image", "source": {"data": "aGk="}},
                ],
            },
            "one\ntwo",
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "out"},
                    {"type": "tool_result", "content": [{"type": "text", "text": "put"}]},
                ],
            },
            "out\nput",
        ),
        # OpenAI: chat, and the Responses API
        ({"role": "tool", "tool_call_id": "c", "content": "result"}, "result"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"role": "user", "content": [{"type": "input_text", "text": "in"}]}, "in"),
        (
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "o"}],
            },
            "o",
        ),
        ({"type": "function_call_output", "call_id": "c", "output": "found"}, "found"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, ""),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}, ""),
        # The AI SDK
        (
            {
                "role": "user",
                "parts": [{"type": "text", "text": "hi"}, {"type": "reasoning", "text": "x"}],
            },
            "hi",
        ),
        (
            {
                "role": "tool",
                "content": [{"type": "tool-result", "output": {"type": "text", "value": "v"}}],
            },
            "v",
        ),
        ({"role": "assistant", "content": [{"type": "tool-call", "input": {"q": "x"}}]}, ""),
        # Gemini
        (
            {
                "role": "model",
                "parts": [
                    {"text": "hello"},
                    {"text": "why", "thought": True},
                    {"functionCall": {"name": "f", "args": {"text": "x"}}},
                ],
            },
            "hello",
        ),
    ],
)
def test_what_people_and_agents_say_is_searched_and_nothing_else(message: Any, text: str) -> None:
    assert said(message) == text


def test_a_row_has_where_its_messages_are_and_who_said_them() -> None:
    row = folded({"role": "user", "content": "a"}, {"content": "b"})

    assert row == ("a7", 7, "A-1", 5, 2, 0, f"user{BETWEEN}", f"a{BETWEEN}b")


def test_characters_with_a_meaning_in_a_row_become_spaces() -> None:
    text = f"a\0b\1c{BETWEEN}d{BREAK}e"

    assert said({"role": text, "content": text}) == "a b c d e"
    assert folded({"role": text, "content": text})[-2] == "a b c d e"


@pytest.mark.parametrize(
    ("message", "most"),
    [
        ({"role": "user", "content": "é" * 70_000}, texts.MAX_MESSAGE_BYTES),
        ({"role": "tool", "content": "é" * 70_000}, texts.MAX_RESULT_BYTES),
        (
            {"role": "user", "content": [{"type": "tool_result", "content": "é" * 70_000}]},
            texts.MAX_RESULT_BYTES,
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "é" * 40_000}] * 3},
            texts.MAX_MESSAGE_BYTES,
        ),
    ],
)
def test_the_beginning_of_a_long_message_counts(message: Any, most: int) -> None:
    assert len(said(message).encode()) == most


def test_so_does_the_beginning_of_a_long_event_and_all_its_messages_are_counted() -> None:
    row = folded(*[{"role": "user", "content": "x" * texts.MAX_MESSAGE_BYTES}] * 6)

    assert row[4] == 6
    assert [len(text) for text in row[-1].split(BETWEEN)] == [texts.MAX_MESSAGE_BYTES] * 4 + [0, 0]


def test_where_there_are_no_spaces_each_character_is_a_word() -> None:
    text = said({"role": "user", "content": "see 東京 ok"})

    assert text.replace(BREAK, "|") == "see |東||京| ok"


@pytest.mark.parametrize("seq", [1, 9, 10, 99, 100, 10**18, 2**63 - 1])
def test_a_key_has_the_order_of_positions_and_says_which_it_is(seq: int) -> None:
    key = texts.key_of(seq)

    assert texts.position_of(key) == seq
    assert texts.key_of(seq - 1).encode() < key.encode()


@pytest.mark.parametrize("key", ["", "a", "a10", "b1", "a٣", "a-1", "b01", "1", "s" + "9" * 30])
def test_what_is_no_key_says_none(key: str) -> None:
    assert texts.position_of(key) is None


def test_events_without_messages_have_no_row() -> None:
    nothing, search = Messages(0, b""), Search()
    bodies = [
        (SessionCreated("p", nothing, "ready", 5), None),
        (SessionUpdated(None, "done", None), None),
        (SessionUpdated(nothing, None, None), "a7"),  # it takes away those that were there
        (None, None),
    ]

    for body, key in bodies:
        assert search.key_of(Event(7, "e", "session_updated", "A-1", 5, body)) == key


def test_it_gives_the_same_rows_in_whatever_batches() -> None:
    messages = [{"role": "user", "content": "hi"}]

    given(
        event("session_created", "A-1", {"project": "web", "messages": messages}),
        event("session_append", "A-1", {"messages": messages}),
        event("session_updated", "A-1", {"messages": []}),
    ).expect(
        Search(),
        {
            "a1": {"messages": 1, "replaces": 0, "text": "hi"},
            "a2": {"session_id": "A-1", "messages": 1, "replaces": 0},
            "a3": {"messages": 0, "replaces": 1, "text": ""},
        },
    )


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("", []),
        (" -- * ()", []),
        ("one two", [Phrase("one"), Phrase("two")]),
        ('"one two"', [Phrase("one two")]),
        ('"one two"*', [Phrase("one two", True)]),
        ("begin*", [Phrase("begin*", True)]),
        ('un"closed', [Phrase("un"), Phrase("closed")]),
        ("NOT (a OR b)", [Phrase("NOT"), Phrase("(a"), Phrase("OR"), Phrase("b)")]),
        ("a.b:c", [Phrase("a.b:c")]),
    ],
)
def test_words_are_asked_for_as_they_stand(words: str, asked: list[Phrase]) -> None:
    assert phrases(words) == asked
