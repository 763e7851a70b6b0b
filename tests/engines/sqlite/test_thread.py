"""What aiosqlite must have, although it does not publish it."""

import runpy

import aiosqlite
import pytest

from session_projector.worker.storage import thread


def test_an_aiosqlite_without_the_call_that_is_needed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(aiosqlite.Connection, "_execute")

    with pytest.raises(ImportError, match="has no Connection"):
        runpy.run_path(str(thread.__file__))
