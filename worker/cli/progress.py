"""How far a long command is, in one line on standard error."""

import sys
import time
from typing import Final

PLAIN_EVERY_S: Final = 10.0
TERMINAL_EVERY_S: Final = 0.2


class Progress:
    """On a terminal the line is written over and over, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._started = self._said = time.monotonic()

    def tell(self, what: str, done: int, total: int, of: str = "events") -> None:
        """Say so, unless that was said a moment ago."""
        now = time.monotonic()
        if now - self._said < (TERMINAL_EVERY_S if self._terminal else PLAIN_EVERY_S):
            return
        self._said = now
        rate = done / max(now - self._started, 0.001)
        left = max(total - done, 0) / rate if rate else 0
        text = f"{what}: {done:,} of {total:,} {of}, {rate:,.0f}/s, {left:,.0f} s left"
        self.clear()
        print(text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave an empty line for what is printed next."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
