"""What a message says, in each of the shapes in which agents write one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_projector.worker.sessions.content import said, speaker

PICTURE = {"type": "base64", "media_type": "image/png", "data": "aGk="}
WEATHER = {"city": "Oslo", "days": 2}


@pytest.mark.parametrize(
    ("message", "texts"),
    [
        # Anthropic's Messages API, and Claude Code
        ({"role": "user", "content": "plain"}, ["plain"]),
        (
            {"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            ["one", "two"],
        ),
        (
            {"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
            ["(thinking) hm"],
        ),
        ({"content": [{"type": "redacted_thinking", "data": "x"}]}, ["(thinking, redacted)"]),
        (
            {"content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": WEATHER}]},
            ["→ weather city=Oslo, days=2"],
        ),
        (
            {"content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny\nwarm"}]},
            ["← sunny (1 of 2 lines)"],
        ),
        (
            {
                "content": [
                    {
                        "type": "tool_result",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no such city"}],
                    }
                ]
            },
            ["← error: no such city"],
        ),
        ({"content": [{"type": "image", "source": PICTURE}]}, ["[image image/png]"]),
        # OpenAI's Chat API
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": 1}'},
                    }
                ],
            },
            ['→ weather {"city": 1}'],
        ),
        ({"role": "tool", "tool_call_id": "c", "content": "sunny"}, ["← sunny"]),
        ({"role": "assistant", "content": None, "refusal": "I can't"}, ["(refused) I can't"]),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0"}}]},
            ["[image_url image/gif]"],
        ),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]},
            ["[image_url https://a.example/b.png]"],
        ),
        # OpenAI's Responses API, and Codex
        (
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            ["hi"],
        ),
        ({"content": [{"type": "output_text", "text": "hello", "annotations": []}]}, ["hello"]),
        (
            {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}'},
            ['→ shell {"command":["ls"]}'],
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": "a\nb"},
            ["← a (1 of 2 lines)"],
        ),
        (
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "first"}]},
            ["(thinking) first"],
        ),
        (
            {"type": "local_shell_call", "action": {"command": ["ls", "-l"]}},
            ['→ local_shell_call command=["ls", "-l"]'],
        ),
        (
            {"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin\n+a\n*** End"},
            ["→ apply_patch *** Begin (1 of 3 lines)"],
        ),
        (
            {
                "type": "custom_tool_call_output",
                "output": '{"output":"Success\\nM a.py","metadata":{"exit_code":0}}',
            },
            ["← Success (1 of 2 lines)"],
        ),
        (
            {
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "whole"}],
                "encrypted_content": "g=",
            },
            ["(thinking) whole"],
        ),
        ({"type": "mcp_call", "name": "f", "arguments": "{}", "output": "x"}, ["→ f {}\n← x"]),
        # The AI SDK
        (
            {
                "role": "assistant",
                "parts": [
                    {"type": "step-start"},
                    {"type": "reasoning", "text": "hm"},
                    {"type": "text", "text": "Look:"},
                    {"type": "tool-weather", "state": "x", "input": WEATHER, "output": "sunny"},
                    {"type": "file", "mediaType": "image/png", "url": "https://a.example/c"},
                ],
            },
            [
                "(thinking) hm",
                "Look:",
                "→ weather city=Oslo, days=2",
                "← sunny",
                "[file image/png https://a.example/c]",
            ],
        ),
        (
            {"content": [{"type": "tool-call", "toolName": "weather", "input": WEATHER}]},
            ["→ weather city=Oslo, days=2"],
        ),
        (
            {
                "content": [
                    {"type": "tool-result", "output": {"type": "text", "value": "sunny"}},
                ]
            },
            ["← sunny"],
        ),
        (
            {
                "parts": [
                    {
                        "type": "tool-invocation",
                        "toolInvocation": {
                            "toolName": "weather",
                            "args": WEATHER,
                            "result": "sunny",
                        },
                    }
                ]
            },
            ["→ weather city=Oslo, days=2\n← sunny"],
        ),
        # Gemini
        (
            {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "hi"}]},
            ["(thinking) hm", "hi"],
        ),
        (
            {"parts": [{"functionCall": {"name": "weather", "args": WEATHER}}]},
            ["→ weather city=Oslo, days=2"],
        ),
        (
            {"parts": [{"functionResponse": {"name": "weather", "response": {"sky": "clear"}}}]},
            ["← sky=clear"],
        ),
        ({"parts": [{"inlineData": {"mimeType": "audio/wav", "data": "x"}}]}, ["[file audio/wav]"]),
        (
            {"parts": [{"executableCode": {"language": "PYTHON", "code": "1 + 1"}}]},
            ["```python\n1 + 1\n```"],
        ),
    ],
)
def test_what_a_message_says_is_text(message: dict[str, Any], texts: list[str]) -> None:
    assert said(message) == texts


@pytest.mark.parametrize(
    ("message", "who"),
    [
        ({"role": "model", "parts": [{"text": "hi"}]}, "model"),
        ({"role": "user", "content": [{"type": "tool_result", "content": "x"}]}, "tool"),
        ({"role": "user", "content": [{"type": "tool_result"}, {"type": "text"}]}, "user"),
        ({"type": "custom_tool_call", "name": "apply_patch"}, "assistant"),
        ({"type": "reasoning", "summary": []}, "assistant"),
        ({"type": "custom_tool_call_output", "output": "x"}, "tool"),
        ({"type": "of the future"}, "of the future"),
        ({"note": 1}, "message"),
    ],
)
def test_who_says_a_message(message: dict[str, Any], who: str) -> None:
    assert speaker(message) == who


def test_what_is_cut_from_a_line_is_marked() -> None:
    given = {f"k{number}": number for number in range(40)}
    (line,) = said({"type": "tool_use", "name": "f", "input": given})
    assert line.endswith("…")


@pytest.mark.parametrize(
    "part", [{"type": "of the future", "x": 1}, {"type": ["odd"]}, {"x": 1}, 7, b"bytes", [1]]
)
def test_what_is_not_known_stays_as_it_is(part: Any) -> None:
    assert said({"role": "user", "content": [part]}) == [part]


def test_a_message_without_content_is_what_it_has_but_its_role() -> None:
    assert said({"role": "user", "note": 1}) == [{"note": 1}]
    assert said({"role": "user"}) == []


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "text",
                    "content",
                    "parts",
                    "input",
                    "output",
                    "source",
                    "thinking",
                    "summary",
                    "functionCall",
                    "toolInvocation",
                    "role",
                    "tool_calls",
                    "function",
                    "name",
                    "url",
                ]
            )
            | st.integers(),
            inner,
            max_size=5,
        )
        | st.builds(
            lambda kind, rest: {"type": kind, **rest},
            st.sampled_from(
                ["text", "tool_use", "tool_result", "image", "reasoning", "tool-x", "file"]
            ),
            st.dictionaries(st.sampled_from(["text", "content", "input", "source", "name"]), inner),
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["role", "content", "parts", "type", "tool_calls"]), _VALUES)
)
def test_whatever_its_shape_something_is_said_of_it(message: dict[str, Any]) -> None:
    assert speaker(message)
    for part in said(message):
        str(part)
