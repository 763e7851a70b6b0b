"""Helpers that fold, verify and replay in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from session_projector.projections import BUILT_IN
from session_projector.worker.daemon import service
from session_projector.worker.replay import verify as verification
from session_projector.worker.replay import walk
from session_projector.worker.storage.sqlite.schema import migrate as schema
from support import Database


def catch_up(database: Database) -> None:
    anyio.run(service.run_once, database.path, BUILT_IN)


def refolded(database: Database, path: Path) -> Database:
    """Fold the same log into a fresh database, all at once."""
    schema.setup(path)
    fresh = Database(path)
    for row in database.log():
        fresh.sql("INSERT INTO event_log VALUES (?, ?, ?, ?, ?)", *row)
    catch_up(fresh)
    return fresh


class Heard:
    """The differences that a full scan reported."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}

    def step(self, tally: verification.Tally, step: walk.Step) -> None: ...

    def done(self, tally: verification.Tally) -> None:
        for (row, kind), count in tally.rows.items():
            self.kinds[f"{row} {kind}"] = self.kinds.get(f"{row} {kind}", 0) + count


def mend(database: Database, projections: Sequence[Any] = BUILT_IN) -> dict[str, int]:
    heard = Heard()
    anyio.run(verification.replay, database.path, projections, heard)
    return heard.kinds


def differences(database: Database, projections: Sequence[Any] = BUILT_IN) -> dict[str, int]:
    heard = Heard()
    anyio.run(verification.compare, database.path, projections, heard)
    return heard.kinds
