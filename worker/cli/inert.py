"""Text that does nothing to a terminal, and shows all that it is."""

import re
from typing import Any, Final, TextIO

from session_projector.worker.cli import color
from session_projector.worker.errors import OutputFailed

# C0 (except line feed and tab), DEL, C1, line and paragraph separators, surrogates, marks that
# reorder text, and characters that show nothing: zero width, tags, supplementary selectors.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """Text whose control characters and invisible characters are escapes, as in JSON."""
    return _UNPRINTABLE.sub(lambda match: _escape(ord(match[0])), text)


def _escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


class InertStream:
    """A text stream that only printable text can be written to, whoever prints it, and colours
    of ours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Raises `OutputFailed`, which nobody takes for a fault of what is printed."""
        try:
            return self._stream.write(color.shown(printable(text)))
        except OSError as error:
            raise OutputFailed(error) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputFailed(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
