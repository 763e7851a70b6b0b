"""Whose layout a database has, and the copy made before one of Kanbatte's is adopted."""

import glob
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from session_projector.worker.errors import NeedsPerson
from session_projector.worker.storage.sqlite.sql import columns_of


class Layout(Enum):
    """What a database's columns say it is, whatever its history table says."""

    EMPTY = "empty"
    KANBATTE = "Kanbatte up to 0.0.3"
    PROJECTOR = "projector"


_COLUMNS = {
    ("id", "key", "data", "created_at"): Layout.KANBATTE,
    ("seq", "id", "key", "data", "created_at"): Layout.PROJECTOR,
}
_VIEW_COLUMNS = ("id", "key", "data", "last_offset_id", "created_at", "updated_at")


def layout(connection: sqlite3.Connection, path: Path) -> Layout:
    """Recognised by columns; raises `NeedsPerson` for any other layout."""
    log, view = columns_of(connection, "event_log"), columns_of(connection, "view")
    if not log and not view:
        return Layout.EMPTY
    found = _COLUMNS.get(log)
    if found is None or view not in (_VIEW_COLUMNS, ()):
        raise NeedsPerson(
            f"{path} has a layout that is not known here (event_log has the columns"
            f" {', '.join(log) or 'of no table'}; view {', '.join(view) or 'is absent'}), and was"
            " left untouched",
            "only databases of projector and of Kanbatte up to 0.0.3 can be taken over",
        )
    return found


@contextmanager
def copied(connection: sqlite3.Connection, path: Path) -> Iterator[Path | None]:
    """A copy of a database that is to be adopted, gone again unless it was renamed."""
    if layout(connection, path) is not Layout.KANBATTE:
        yield None
        return
    copy = path.with_name(f"{path.name}.copying-{os.getpid()}")
    for left in path.parent.glob(f"{glob.escape(path.name)}.copying-*"):
        if left == copy or not _is_alive(left.suffix.removeprefix(".copying-")):
            left.unlink(missing_ok=True)
    try:
        connection.execute("VACUUM INTO ?", (str(copy),))
        shutil.copymode(path, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    """Whether the process that makes a copy may still be at it."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        pass
    return True


def backup_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return path.with_name(f"{path.name}.before-projector-{stamp}")
