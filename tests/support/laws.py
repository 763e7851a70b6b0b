"""Helpers for the laws of the storage port: events, changes, projections, other processes."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from session_projector.projections.event import Event, LogRow
from session_projector.projections.projection import Projection, Table
from session_projector.worker.storage.port import Change, Checkpoint, Store

T0 = 1_700_000_000_000


class Counted(Projection):
    """A projection with a table of its own."""

    name = "counted"
    version = 1
    table = Table("counted", {"key": "TEXT", "number": "INTEGER", "data": "BLOB"}, key="key")

    def key_of(self, event: Event) -> str:
        return event.session_id

    def fold(self, view: Any, event: Event) -> Any:
        return (event.session_id, event.seq, None)


class Widened(Counted):
    """The next version, with one more column and an index."""

    version = 2
    table = Table(
        "counted",
        {"key": "TEXT", "number": "INTEGER", "note": "TEXT", "data": "BLOB"},
        key="key",
        indexes=("number",),
    )


COUNTED, WIDENED = Counted(), Widened()


def event(
    event_id: str, key: Any = "session:A", data: Any = b"\x80", created_at: Any = T0
) -> LogRow:
    return LogRow(0, event_id, key, data, created_at)


def append(store: Store, *ids: str, key: Any = "session:A", data: Any = b"\x80") -> list[int]:
    """Append an event for each id; returns their positions."""
    return [store.log.append(event(event_id, key, data)) for event_id in ids]


def later(checkpoint: Checkpoint, **fields: Any) -> Checkpoint:
    """A checkpoint with some fields changed, and the generation raised."""
    fields = {"generation": checkpoint.generation + 1, **fields}
    return msgspec.structs.replace(checkpoint, **fields)


def change(
    projection: Projection,
    before: Checkpoint,
    after: Checkpoint | None = None,
    rows: Sequence[tuple[Any, ...]] = (),
    **more: Any,
) -> Change:
    return Change(projection.table, before, after or later(before), rows, **more)


def keep(store: Store, projection: Projection, *rows: tuple[Any, ...]) -> Checkpoint:
    """Commit some rows; returns the checkpoint after it."""
    before = store.checkpoints.get(projection.name) or store.views.prepare(projection)
    store.commit([change(projection, before, rows=rows)])
    return later(before)


PRELUDE = """
import sys
from session_projector.projections.event import LogRow
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.limits import Limits
database = storage.database(sys.argv[1], Limits(busy_timeout_s=30))
def say(text):
    print(text, flush=True)
def append(store, event_id):
    return store.log.append(LogRow(0, event_id, "session:A", b"\\x80", 1))
"""


@contextmanager
def elsewhere(url: str, work: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a process of its own that does not outlive the block.

    The code finds the `database`, and the functions `say`, which prints a line, and `append`.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PRELUDE + work, url, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a process says, '' once it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Let a process that waits for `input()` go on."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
