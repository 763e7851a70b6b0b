"""Whose layout a database has, and the copy made before one of Kanbatte's is adopted."""

import glob
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path

from session_projector.worker.errors import NeedsPerson, quoted
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.sql import identifier
from session_projector.worker.storage.sqlite.tables import columns_of


class Layout(Enum):
    """What a database's columns say it is, whatever its history table says."""

    EMPTY = "empty"
    KANBATTE = "Kanbatte up to 0.0.3"
    PROJECTOR = "projector"


_COLUMNS = {
    ("seq", "id", "key", "data", "created_at"): Layout.PROJECTOR,
    ("id", "key", "data", "created_at"): Layout.KANBATTE,
}
_VIEW_COLUMNS = ("id", "key", "data", "last_offset_id", "created_at", "updated_at")


def layout(connection: sqlite3.Connection, path: Path) -> Layout:
    """Recognised by columns; raises `NeedsPerson` for any other layout."""
    log, view = (tuple(columns_of(connection, table)) for table in ("event_log", "view"))
    if not log and not view:
        return Layout.EMPTY
    found = _COLUMNS.get(log)
    if found is None or view not in (_VIEW_COLUMNS, ()):
        raise NeedsPerson(
            f"{path} has a layout that is not known here (event_log has the columns"
            f" {', '.join(log) or 'of no table'}; view {', '.join(view) or 'is absent'}), and was"
            " left untouched",
            _without_added(path, log, view)
            or "only databases of projector and of Kanbatte up to 0.0.3 can be taken over",
        )
    return found


def _without_added(path: Path, log: Sequence[str], view: Sequence[str]) -> str:
    """What makes the layout one that is known, where somebody only added columns."""
    for ours in _COLUMNS:
        added = [
            f"ALTER TABLE {table} DROP COLUMN {identifier(column)}"
            for table, columns, known in (("event_log", log, ours), ("view", view, _VIEW_COLUMNS))
            for column in columns
            if column not in known
        ]
        if {*ours} <= {*log} and (not view or {*_VIEW_COLUMNS} <= {*view}):
            return (
                "somebody added columns; if nothing needs them, and what is in them:"
                f" `sqlite3 {quoted(path)} {shlex.quote('; '.join(added))}`"
            )
    return ""


@contextmanager
def copied(connection: sqlite3.Connection, path: Path) -> Iterator[Path | None]:
    """The copy of a database that the block adopts, None where there is nothing to adopt.

    The caller holds the write lock, so that nobody else is here, and has not written yet. The copy
    has its name once the block is done, and is gone where it fails.
    """
    if layout(connection, path) is not Layout.KANBATTE:
        yield None
        return
    copy = path.with_name(f"{path.name}.copying")
    for left in path.parent.glob(f"{glob.escape(copy.name)}*"):  # by one that was killed
        left.unlink(missing_ok=True)
    try:
        with closing(connect(path, mode="ro")) as reading:  # who holds the lock cannot VACUUM
            reading.execute("VACUUM INTO ?", (str(copy),))
        shutil.copymode(path, copy)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        named = path.with_name(f"{path.name}.before-projector-{stamp}")
        yield named
        copy.rename(named)
    finally:
        copy.unlink(missing_ok=True)
