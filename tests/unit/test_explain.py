"""What is wrong with how an event is encoded, in words for whoever looks at it."""

from typing import Any

import pytest

from session_projector.projections.explain import detail

BIND = "these bytes are JSON: bind it as TEXT"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"a": 1,}', "line 1, column 9: trailing comma in object, near: "),
        ('{"a": NaN}', "line 1, column 7: invalid character, near: "),
        ('{"ä": "ö" x}', "line 1, column 11: expected ',' or '}', near: "),
        ('{"a":\n "b" 1}', "line 2, column 6: expected ',' or '}', near: "),
        ('{"a": ', "line 1, column 7: it ends before the event does, near: "),
        ("", "line 1, column 1: it ends before the event does, near: "),
        ("\ufeff{}", "line 1, column 1: a byte-order mark, near: "),
        ('{"a": "9e999", "b": -1e999}', "line 1, column 21: a number beyond float64, near: "),
        (r'{"a": "\ud800"}', "line 1, column 8: a lone surrogate, near: "),
        (b' {"a": [1]}', BIND),
        (b'{"a": [1,]}', "as JSON it is wrong, too: line 1, column 10: trailing comma in array"),
        ('{"a": "é"}'.encode("latin-1"), "look like JSON, and are not UTF-8: see byte 7"),
    ],
)
def test_it_says_where_and_what(data: Any, said: str) -> None:
    assert said in str(detail(data))


@pytest.mark.parametrize(
    "data",
    ['{"type": 5}', '{"a": 18446744073709551616}', "[" * 300, "\ud800", b"", b"\x81", 5, None],
)
def test_it_says_nothing_where_the_reason_says_all(data: Any) -> None:
    assert detail(data) is None
