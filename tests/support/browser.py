"""People who look at a board in a real browser, and what they look at."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support import Daemon, Database, daemon
from support.board import Board, board


def expect(target: Any) -> Any:
    """Playwright's own, imported where it is used: it may not be installed."""
    from playwright.sync_api import expect as wait_until

    return wait_until(target)


class Visitor:
    """A person at a browser. What is wrong with a page that they open is a problem: an error on
    the console, an exception, a request to another host."""

    def __init__(
        self, browser: Any, board: Board, *, logged_in: bool = True, **options: Any
    ) -> None:
        self.board = board
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.context.set_default_timeout(40_000)
        self.problems: list[str] = []
        self.allowed: list[str] = []
        """Patterns of what a test expects to go wrong."""
        if logged_in:
            self.context.request.get(f"{board.url}/login?token={board.token}", max_redirects=0)
            self.context.add_init_script(f"localStorage['projector-key'] ??= '{board.key}'")

    def open(self, path: str = "/") -> Any:
        page = self.context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("request", self._asked)
        page.goto(self.board.url + path)
        return page

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text} ({message.location})")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.board.url):
            self.problems.append(f"a request to {request.url}")

    def close(self) -> None:
        self.context.close()
        found = [
            one for one in self.problems if not any(re.search(each, one) for each in self.allowed)
        ]
        assert not found, found


class World:
    """A database with its daemon and its board, and people who look at it."""

    def __init__(self, database: Database, state: Path, browser: Any, stack: ExitStack) -> None:
        self.database = database
        self._state = state
        self._browser = browser
        self._stack = stack
        self.board: Board
        self.daemon: Daemon

    def start(self, *options: str, with_daemon: bool = True) -> "World":
        if with_daemon:
            self.start_daemon()
        self.board = self._stack.enter_context(board(self.database, self._state, *options))
        return self

    def start_daemon(self, *options: str) -> None:
        self.daemon = self._stack.enter_context(daemon(self.database.url, options=options))
        self.daemon.wait_for("started")
        if self.database.sql("SELECT count(*) FROM event_log")[0][0]:
            self.daemon.wait_until_at(self.database.sql("SELECT max(seq) FROM event_log")[0][0])

    def restart_board(self) -> None:
        """Kill it, and start another at its address."""
        self.board.process.kill()
        self.board.process.wait()
        self.board = self._stack.enter_context(
            board(self.database, self._state, "--listen", self.board.host)
        )

    def visitor(self, **options: Any) -> Visitor:
        visitor = Visitor(self._browser, self.board, **options)
        self._stack.callback(visitor.close)
        return visitor

    def open(self, path: str = "/", **options: Any) -> Any:
        return self.visitor(**options).open(path)


def say(database: Database, session_id: str, *messages: Any, **fields: Any) -> int:
    """Append messages to a session, or create it with a project or a status."""
    kind = "session_append"
    data: dict[str, Any] = {"messages": [*messages], **fields}
    if "project" in fields:
        kind = "session_created"
    elif fields:
        kind, data = "session_updated", {"messages": [*messages]} | fields
        if not messages:
            del data["messages"]
    created_at = data.pop("at", ...)
    more = {} if created_at is ... else {"created_at": created_at}
    return database.insert(f"session:{session_id}", {"type": kind, "data": data}, **more)


def texts(count: int, first: int = 1) -> Sequence[dict[str, str]]:
    """That many messages, by turns of the user and of the agent."""
    roles = ("assistant", "user")
    return [
        {"role": roles[n % 2], "content": f"message number {n}"}
        for n in range(first, first + count)
    ]
