"""Make the two pictures of the board that the README shows, with Chromium and the `dev` extra:

python docs/pictures/make.py
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
PROJECTOR = [sys.executable, "-P", "-m", "session_projector"]
MINUTE = 60_000
INSERT = "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)"
SESSIONS: list[tuple[str, str, str, int, int, str]] = [
    # project, title, status, minutes since the last change, messages, who spoke last
    ("web", "Fix the login form, which forgets what was typed", "review", 3, 42, "assistant"),
    ("web", "Add a dark colour scheme to the settings", "in-progress", 0, 118, "user"),
    ("web", "Make the search box keep its focus", "in-progress", 14, 23, "assistant"),
    ("web", "Replace the date library", "done", 190, 64, "assistant"),
    ("web", "Write down how a release is made", "ready", 25, 1, "user"),
    ("billing", "Read invoices in the new format", "in-progress", 1, 305, "user"),
    ("billing", "Why does the nightly import take 40 minutes?", "review", 48, 76, "assistant"),
    ("billing", "Round amounts as the tax office does", "ready", 7, 1, "user"),
    ("billing", "Move the job queue to PostgreSQL", "done", 560, 211, "assistant"),
    ("billing", "Find out who still calls /v1/orders", "done", 1300, 17, "assistant"),
    ("infra", "Back up the staging database every night", "review", 130, 38, "assistant"),
    (
        "infra",
        "A test that fails once a week: checkout with a coupon",
        "in-progress",
        2,
        87,
        "user",
    ),
    ("infra", "Limit how often the public API may be asked", "in-progress", 0, 54, "user"),
    ("infra", "Rename Customer to Account everywhere", "ready", 90, 1, "user"),
    ("infra", "Update the base image", "done", 2900, 12, "assistant"),
]


def events() -> Iterator[tuple[str, str, str, int]]:
    """All of them in the order of time, ready to be inserted."""
    now = int(time.time() * 1000)
    made: list[tuple[int, str, dict[str, Any]]] = []
    for number, (project, title, status, minutes, count, last) in enumerate(SESSIONS, 1):
        key, end = f"session:{project}-{number}", now - minutes * MINUTE
        asked = {"role": "user", "content": title}
        made.append(
            (end - 40 * MINUTE, key, _event("session_created", project=project, messages=[asked]))
        )
        if count > 1:
            said = [{"role": "assistant", "content": "Looking."}] * (count - 2)
            said.append({"role": last, "content": "All tests pass now."})
            made.append((end - MINUTE, key, _event("session_append", messages=said)))
        if status != "ready":
            made.append((end, key, _event("session_status_update", status=status)))
    for at, key, event in sorted(made, key=lambda one: one[0]):
        yield f"{key}-{at}-{event['type']}", key, json.dumps(event), at


def _event(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}


def main() -> None:
    with TemporaryDirectory() as folder:
        database = f"{folder}/agents.db"
        environment = {**os.environ, "XDG_STATE_HOME": folder}
        subprocess.run([*PROJECTOR, "db", "setup", "-d", database], check=True)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.executemany(INSERT, events())
        daemon = subprocess.Popen([*PROJECTOR, "run", "-d", database])
        subprocess.run([*PROJECTOR, "wait", "-d", database], check=True)
        command = [*PROJECTOR, "board", "-d", database, "--listen", "127.0.0.1:0", "--no-token"]
        board = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        try:
            assert board.stdout
            take(board.stdout.readline().split()[0])
        finally:
            for process in (board, daemon):
                process.terminate()
                process.wait()


def take(address: str) -> None:
    with sync_playwright() as playwright:
        options = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": 1180, "height": 500},
                device_scale_factor=1.5,
                color_scheme=scheme,
            )
            page.goto(address)
            page.locator(".card").first.wait_for()
            page.locator(".dot.live").wait_for()
            page.screenshot(path=FOLDER / f"board-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
