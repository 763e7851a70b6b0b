"""A real browser, and a board with a daemon on a real database.

Playwright's own loop lives in a thread of each module that asks for it: one for the whole session
would break the async tests that come later.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import Database
from support.browser import World

CHROMIUM = Path(os.environ.get("PROJECTOR_TEST_CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=40_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def world(database: Database, tmp_path: Path, browser: Any) -> Iterator[World]:
    """Not started yet, so that a test can write events first."""
    with ExitStack() as stack:
        yield World(database, tmp_path / "state", browser, stack)
