"""Make the picture of the demo that the README shows, of a terminal that the demo runs on:

python docs/pictures/demo.py
"""

import os
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from html import escape
from pathlib import Path

COLUMNS, ROWS = 100, 27
WIDTH, HEIGHT, MARGIN = 8.4, 18, 14
"""Of a character, a line, and what is around all of them, in pixels."""
STYLES = {
    "1": "font-weight: bold",
    "2": "fill: #8b949e",
    "31": "fill: #ff7b72",
    "32": "fill: #56d364",
    "33": "fill: #e3b341",
    "36": "fill: #39c5cf",
}
SESSIONS = 16
"""As many there are before the picture is taken."""


def main() -> None:
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (ROWS, COLUMNS))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-P", "-m", "session_projector", "demo"]
    terminal = {"stdin": follower, "stdout": follower, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **terminal) as demo:
        os.close(follower)
        seen = frames(leader)
        until(seen, rf"\b{SESSIONS} sessions")
        os.write(leader, b"v")
        until(seen, "views differ")
        os.write(leader, b"k")
        until(seen, "next one starts")
        taken = until(seen, "caught up")
        os.write(leader, b"q")
        for _ in seen:
            pass
        assert demo.wait() == 0
    Path(__file__).with_name("demo.svg").write_text(svg(taken))


def frames(leader: int) -> Iterator[str]:
    """All frames that are drawn, until the terminal is closed."""
    drawn = b""
    while True:
        try:
            drawn += os.read(leader, 65536)
        except OSError:
            return
        *whole, drawn = drawn.split(b"\x1b[J")
        for frame in whole:
            yield frame.decode().rpartition("\x1b[H")[2]


def until(seen: Iterator[str], pattern: str) -> str:
    """The next frame that shows something."""
    return next(frame for frame in seen if re.search(pattern, frame))


def svg(frame: str) -> str:
    width, height = COLUMNS * WIDTH + 2 * MARGIN, ROWS * HEIGHT + 2 * MARGIN
    styles = "".join(f".s{code} {{ {style} }}\n" for code, style in STYLES.items())
    lines = frame.replace("\x1b[K", "").split("\n")
    texts = "\n".join(text for row, line in enumerate(lines) for text in texts_of(row, line))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">
<title>projector demo</title>
<style>
text {{ font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #e6edf3 }}
{styles}</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
{texts}
</svg>
"""


def texts_of(row: int, line: str) -> Iterator[str]:
    """The words of a line, those with more than one space between them each at its own place."""
    column, style = 0, "0"
    for part in re.split("(\x1b\\[[0-9]+m)", line):
        if part.startswith("\x1b"):
            style = part[2:-1]
            continue
        for found in re.finditer(r"\S+(?: \S+)*", part):
            x = MARGIN + (column + found.start()) * WIDTH
            y = MARGIN + (row + 0.75) * HEIGHT
            of = f' class="s{style}"' if style in STYLES else ""
            length = f'textLength="{len(found[0]) * WIDTH:g}" lengthAdjust="spacingAndGlyphs"'
            yield f'<text x="{x:g}" y="{y:g}" {length}{of}>{escape(found[0])}</text>'
        column += len(part)


if __name__ == "__main__":
    main()
