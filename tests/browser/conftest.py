"""A real browser, and a board with a daemon on a real database.

One browser serves all tests of a process. Playwright's loop counts as running in this thread even
between two calls, which would break the async tests of other files; so it does only while a test
has the browser.
"""

import asyncio
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
    # Fewer processes, which cost more than the pages in them.
    *("--in-process-gpu", "--disable-site-isolation-trials", "--renderer-process-limit=1"),
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[tuple[Any, asyncio.AbstractEventLoop]]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=40_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield browser, loop
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def browser(chromium: tuple[Any, asyncio.AbstractEventLoop]) -> Iterator[Any]:
    browser, loop = chromium
    asyncio._set_running_loop(loop)
    yield browser
    asyncio._set_running_loop(None)


@pytest.fixture
def world(database: Database, tmp_path: Path, browser: Any) -> Iterator[World]:
    """Not started yet, so that a test can write events first."""
    with ExitStack() as stack:
        yield World(database, tmp_path / "state", browser, stack)
