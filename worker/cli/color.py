"""Colour on standard output, for levels and states, where a terminal shows it."""

import os
import re
import sys
from typing import Final, Literal, TextIO

When = Literal["auto", "always", "never"]
Style = Literal["bold", "dim", "green", "yellow", "red", "cyan"]
_CODES: Final[dict[Style, int]] = {
    "bold": 1,
    "dim": 2,
    "red": 31,
    "green": 32,
    "yellow": 33,
    "cyan": 36,
}
_COLORS: Final[dict[str, Style]] = {
    **dict.fromkeys(("ok", "done", "applied", "alive", "ready"), "green"),
    **dict.fromkeys(("warn", "pending", "suspended", "review"), "yellow"),
    **dict.fromkeys(("FAIL", "failed", "waits", "none is alive", "outdated"), "red"),
    **dict.fromkeys(("in-progress", "being rebuilt"), "cyan"),
}
_STATE: Final = re.compile(f"(?:{'|'.join(_COLORS)})(?![\\w-])")
_MARK: Final = os.urandom(8).hex()
"""Begins a colour in what is printed; nobody else can know it, so no event can colour anything."""
_MARKED: Final = re.compile(f"{_MARK}([0-9]+);")
_when: When = "auto"
_shown = False


def choose(when: When) -> None:
    """Show colours as is asked for, on standard output and in the log."""
    global _when, _shown
    _when = when
    _shown = wanted(sys.stdout)


def wanted(stream: TextIO) -> bool:
    """Whether a stream gets colours; `auto`: on a terminal that has them, without NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return _when == "always" or (_when == "auto" and not plain and stream.isatty())


def painted(text: str) -> str:
    """A text in the colour of the level or state that it begins with, if it is one that we know."""
    found = _STATE.match(text)
    return styled(text, _COLORS[found[0]]) if found else text


def styled(text: str, style: Style) -> str:
    """A text that is shown in a style."""
    return f"{_MARK}{_CODES[style]};{text}{_MARK}0;" if _shown else text


def shown(text: str) -> str:
    """What is written of a printable text: colours as a terminal takes them."""
    return _MARKED.sub("\x1b[\\1m", text) if _shown else text
