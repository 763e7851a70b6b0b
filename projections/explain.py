"""What is wrong with how an event is encoded, more closely than its reason says.

It is for whoever looks at one event. The reason itself keeps its words, as `verify` compares them.
"""

import re
from math import isinf
from typing import Any, Final

import msgspec

from session_projector.projections.decode import NOT_JSON, decode
from session_projector.projections.event import LogRow, Unfoldable

_NEAR: Final = 16
"""Characters that are shown on both sides of a fault."""
_BYTE: Final = re.compile(r"(?:.*: )?(.*) \(byte (\d+)\)")
_NUMBER: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(-?\d++(?:\.\d+)?(?:[Ee][+-]?\d+)?)', re.DOTALL)
_BIND: Final = (
    "these bytes are JSON: bind it as TEXT (in Python: without .encode(); on PostgreSQL into data,"
    " not packed)"
)
_LONE: Final = re.compile(r"\\u[Dd][89ABab][0-9A-Fa-f]{2}(?!\\u[Dd][C-Fc-f])")


def detail(data: Any) -> str | None:
    """Where a TEXT stops being JSON, or that bytes are JSON; None where there is nothing to add."""
    if isinstance(data, str):
        return _fault(data)
    if not isinstance(data, bytes) or not data.lstrip().startswith(b"{"):  # no map begins so
        return None
    try:
        fault = _fault(data.decode())
    except UnicodeDecodeError as error:
        return f"these bytes look like JSON, and are not UTF-8: see byte {error.start}"
    wrong = f"; as JSON it is wrong, too: {fault}" if fault else ""
    return f"{_BIND}{wrong}"


def _fault(text: str) -> str | None:
    """Where a text is not JSON, and why; None where that is not what is wrong."""
    try:
        decode(LogRow(0, "", "", text, 0))
    except Unfoldable as error:
        if str(error) != NOT_JSON:
            return None
    else:
        return None
    if text.startswith("\ufeff"):
        return _at(text, 0, "a byte-order mark")
    try:
        msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        if found := _BYTE.fullmatch(str(error)):
            return _at(text, len(text.encode()[: int(found[2])].decode(errors="ignore")), found[1])
    for number in _NUMBER.finditer(text):
        if number[1] and isinf(float(number[1])):
            return _at(text, number.start(), "a number beyond float64")
    if lone := _LONE.search(text):
        return _at(text, lone.start(), "a lone surrogate")
    return _at(text, len(text), "it ends before the event does")


def _at(text: str, at: int, why: str) -> str:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    near = " ".join(text[max(at - _NEAR, 0) : at + _NEAR].split())
    return f"line {line}, column {column}: {why}, near: {near}"
