"""What commands print is inert and bounded, whatever a writer wrote."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_projector.projections.messagepack import Extension
from session_projector.worker.cli import output
from session_projector.worker.cli.inert import InertStream, printable

HIDDEN = ["\x1b", "\x9b", "\x7f", "\u200b", "\u200d", "\u2066", "\ufeff", "\xad", "\U000e0041"]


@pytest.mark.parametrize("hidden", [*HIDDEN, "\U000e0100", "\u2028", "\ud800"], ids=ascii)
def test_what_moves_a_terminal_or_shows_nothing_is_escaped(hidden: str) -> None:
    assert printable(f"a{hidden}b\n\t") == "a" + json.dumps(hidden)[1:-1] + "b\n\t"


def test_whoever_prints_to_an_inert_stream_prints_printable_text() -> None:
    stream = io.StringIO()

    print("x\x1b[2Jy", file=InertStream(stream))  # type: ignore[arg-type]

    assert stream.getvalue() == "x\\u001b[2Jy\n"


@given(st.text())
def test_json_says_the_same_after_it_was_made_printable(text: str) -> None:
    shown = output.to_json({text: [text]})

    assert json.loads(shown) == {text: [text]}
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"1": "text", 1: "number"}, {"1": "text", "1 (int)": "number"}),
        ({1: "number", "1": "text", "1 (int)": "odd"}, {"1": "text", "1 (int)": "odd"}),
        ({None: 1, "null": 2}, {"null": 2, "null (NoneType)": 1}),
        ({b"a": 1, "YQ==": 2}, {"YQ==": 2, "YQ== (bytes)": 1}),
        ({Extension(1, b"a"): 1}, {'{"ext": 1, "data": "YQ=="}': 1}),
    ],
)
def test_keys_that_would_be_the_same_text_are_told_apart(
    value: dict[Any, Any], shown: dict[str, Any]
) -> None:
    found = json.loads(output.to_json(value))

    assert shown.items() <= found.items()
    assert len(found) == len(value)


def test_one_wide_cell_does_not_widen_the_other_rows() -> None:
    rows = [("a", "web"), ("b", "x" * 1_000_000)] + [("c", "web")] * 1000

    shown = output.table(("id", "project"), rows)

    assert len(shown) < 10_000
    assert max(map(len, shown.splitlines())) <= output.LONGEST_CELL + 10
    assert "…" in shown.splitlines()[2]


def test_a_message_of_any_length_is_one_bounded_line() -> None:
    assert len(output.one_line("x" * 20_000_000)) == output.LONGEST_LINE


def test_a_title_is_no_link_where_markdown_is_rendered() -> None:
    shown = output.markdown_table(("title",), [["[here](http://evil.example) <b>|x"]])

    assert "\\[here\\](http" in shown
    assert "\\<b\\>\\|x" in shown
