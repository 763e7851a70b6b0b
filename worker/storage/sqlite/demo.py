"""A database for `projector demo`: a file in a temporary folder, which stays."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from session_projector.worker.errors import UsageError, quoted
from session_projector.worker.storage.demo import Scratch

AGENT = "session_projector.worker.storage.sqlite.demo_agent"


@contextmanager
def scratch(url: str | None) -> Iterator[Scratch]:
    """A scratch database for the block."""
    if url is not None:
        raise UsageError(
            "a demo on SQLite makes a file of its own",
            "leave -d out, or give --engine postgresql with the URL of a server",
        )
    path = Path(tempfile.mkdtemp(prefix="projector-demo-")) / "local.db"
    yield Scratch(str(path), AGENT, f"sqlite3 {quoted(path)}")
