"""What `projector demo` draws on a terminal: events on the left, sessions on the right."""

import os
import select
import shutil
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from session_projector.worker.cli.color import painted, shown, styled
from session_projector.worker.cli.demo_scene import Scene
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.output import fitted

SLOW_MS: Final = 100
NARROW: Final = 70
"""Columns below which the sessions are below the events."""
_NAME: Final = 9
"""Columns of a session's name."""
_OURS: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""Another screen, no cursor, and lines that do not wrap."""
_AS_BEFORE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HEAD: Final = "projector demo: agents INSERT events, a daemon folds them into sessions"
_KEYS: Final = "k: kill -9 the daemon · v: verify · q: quit"


@contextmanager
def screen() -> Iterator[None]:
    """Have a screen of our own on the terminal, with keys that are read as they are pressed; after
    the block all is as it was."""
    before = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        if before:
            ours = termios.tcgetattr(0)
            ours[3] &= ~(termios.ICANON | termios.ECHO)
            for key in (termios.VSUSP, termios.VQUIT):  # they would leave it as it is here
                ours[6][key] = b"\0"
            termios.tcsetattr(0, termios.TCSADRAIN, ours)
        _write(_OURS)
        yield
    finally:
        with suppress(OSError, termios.error):  # it is gone
            _write(_AS_BEFORE)
            if before:
                termios.tcsetattr(0, termios.TCSAFLUSH, before)


def draw(scene: Scene) -> None:
    """Draw a frame that fills the screen."""
    size = os.get_terminal_size()  # of now: COLUMNS and LINES stay when a window changes
    lines = frame(scene, *(size if all(size) else shutil.get_terminal_size()))
    text = "\x1b[K\n".join(shown(printable(line)) for line in lines)
    _write(f"\x1b[H{text}\x1b[J")


def keys(wait_s: float) -> str:
    """What is typed within a time, in small letters; `q` at the end of it."""
    if not os.isatty(0):
        time.sleep(wait_s)
        return ""
    if not select.select([0], [], [], wait_s)[0]:
        return ""
    return os.read(0, 64).decode(errors="replace").lower() or "q"


def is_drawable() -> bool:
    """Whether standard output is a terminal that a picture can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def frame(scene: Scene, columns: int, height: int) -> list[str]:
    """The lines of a frame, each one column shorter than the terminal: a character in the last one
    would be deleted by what clears the rest of the line."""
    width = max(columns - 1, 1)
    head = [
        styled(fitted(_HEAD, width), "bold"),
        styled(fitted(scene.where, width), "dim"),
        fitted(_sums(scene), width),
        "",
    ]
    foot = [
        "",
        *(styled(fitted(text, width), style) for text, style in (scene.killed, scene.verified)),
        styled(fitted(_KEYS, width), "dim"),
    ]
    rows = max(height - len(head) - len(foot), 0)
    if columns < NARROW:
        panes = [*_events(scene, width, rows // 2), *_sessions(scene, width, rows - rows // 2)]
    else:
        left = (width - 3) // 2
        sides = _events(scene, left, rows), _sessions(scene, width - 3 - left, rows)
        panes = [" │ ".join(both) for both in zip(*sides, strict=True)]
    return [*head, *panes, *foot][:height]


def _sums(scene: Scene) -> str:
    said = f"{scene.newest:,} events ({scene.lag:,} unread), {len(scene.sessions):,} sessions"
    fresh = [event.fresh_ms for event in scene.events if event.fresh_ms is not None]
    return f"{said}; visible {fresh[-1]:,.0f} ms after the commit" if fresh else said


def _events(scene: Scene, width: int, rows: int) -> list[str]:
    lines = [f"{'seq':>4} {fitted('event_log', width - 14)}{'visible':>9}"]
    for event in reversed(scene.events):
        fresh = "unread" if event.fresh_ms is None else f"{event.fresh_ms:,.0f} ms"
        slow = event.fresh_ms is None or event.fresh_ms > SLOW_MS
        text = f"{fitted(event.session_id, _NAME)} {event.text}"
        lines.append(
            f"{event.seq:>4} {fitted(text, width - 14)}"
            + styled(f"{fresh:>9}", "yellow" if slow else "green")
        )
    return _pane(lines, width, rows)


def _sessions(scene: Scene, width: int, rows: int) -> list[str]:
    title = width - _NAME - 18
    lines = [f"{fitted('session', _NAME)} {'status':<11} msgs {fitted('title', title)}"]
    newest = sorted(scene.sessions.values(), key=lambda entry: entry.created_at, reverse=True)
    for entry in newest[:rows]:
        status = painted(fitted(entry.status, 11))
        lines.append(
            f"{fitted(entry.session_id, _NAME)} {status} {entry.message_count:>4} "
            + fitted(entry.title or "", title)
        )
    return _pane(lines, width, rows)


def _pane(lines: Sequence[str], width: int, rows: int) -> list[str]:
    """The header and so many of the lines below it as there is room for."""
    head, *rest = lines
    filled = [styled(head, "dim"), *rest, *[" " * width] * rows]
    return filled[:rows]


def _write(text: str) -> None:
    # To the terminal itself, as the commands' own standard output takes no escape sequences.
    print(text, end="", flush=True, file=sys.__stdout__)
