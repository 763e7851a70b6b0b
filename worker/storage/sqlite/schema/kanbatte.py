"""Whose layout a database has, and the copy made before one of Kanbatte's is adopted."""

import glob
import operator
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Final

from session_projector.worker.errors import InterventionRequired, quoted
from session_projector.worker.storage.sqlite import sidecars
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.schema import integrity
from session_projector.worker.storage.sqlite.schema.sharing import os_errors
from session_projector.worker.storage.sqlite.sql import MOST_COUNTED, identifier
from session_projector.worker.storage.sqlite.tables import columns_of


class Layout(Enum):
    """What a database's columns say it is, whatever its history table says."""

    EMPTY = "empty"
    KANBATTE = "Kanbatte up to 0.0.3"
    PROJECTOR = "projector"


_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COLUMNS = {integrity.LOG_COLUMNS: Layout.PROJECTOR, integrity.LOG_COLUMNS[1:]: Layout.KANBATTE}
COPY_LOG: Final = (
    'copy the log into a new database, as docs/operating.md tells under "Saving the log of a'
    ' damaged file"'
)
_VIEW_COLUMNS = ("id", "key", "data", "last_offset_id", "created_at", "updated_at")


def layout(connection: sqlite3.Connection, path: Path) -> Layout:
    """Recognised by columns; raises `InterventionRequired` for any other layout, for an SQL view in
    the place of a table of ours, and for a database whose texts are UTF-16: its order of keys, and
    the bytes of its texts, are others."""
    ((encoding,),) = connection.execute("PRAGMA encoding")
    if encoding != "UTF-8":
        copy = path.with_name(f"{path.stem}-utf8{path.suffix}")
        raise InterventionRequired(
            f"{path} keeps its texts as {encoding}; only a database in UTF-8 can be used",
            "while nobody writes, make a copy, which is in UTF-8, and use that instead:"
            f" `sqlite3 -safe -readonly {quoted(path)} .dump | sqlite3 -safe {quoted(copy)}`",
        )
    log, view = (tuple(columns_of(connection, table)) for table in ("event_log", "view"))
    found, is_view_known = _COLUMNS.get(log), view in (_VIEW_COLUMNS, ())
    if (found or not log) and is_view_known:  # in a layout that is not known they are its own
        integrity.refuse_views_in_place(connection, path)
    if not log and not view:
        return Layout.EMPTY
    if found is None or not is_view_known:
        raise InterventionRequired(
            f"{path} has a layout that is not known here (event_log has the columns"
            f" {', '.join(log) or 'of no table'}; view {', '.join(view) or 'is absent'}), and was"
            " left untouched",
            _without_added(path, log, view)
            or "only databases of projector and of Kanbatte up to 0.0.3 can be taken over",
        )
    if found is Layout.PROJECTOR:
        _require_positions(connection, path)
    return found


def _require_positions(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a log whose `seq` cannot be counted on.

    It must be the rowid, which is an integer: SQLite makes an index for another key. Our triggers
    let no event in below 1 nor far above the others, and one at -1 refuses all that come then.
    """
    indexes = connection.execute("SELECT 1 FROM pragma_index_list('event_log') WHERE origin = 'pk'")
    if indexes.fetchone() or not columns_of(connection, "event_log")["seq"][1]:
        raise InterventionRequired(
            f"{path}: event_log.seq is no INTEGER PRIMARY KEY: somebody made the table again",
            COPY_LOG,
        )
    odd = (f"SELECT seq FROM event_log WHERE seq {side}" for side in ("< 1", f"> {MOST_COUNTED}"))
    try:
        found = connection.execute(f"{' UNION ALL '.join(odd)} LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return  # a damaged page is told of by what needs it
    if found:
        of = f"FROM event_log WHERE seq NOT BETWEEN 1 AND {MOST_COUNTED}"
        move = (
            f"CREATE TABLE IF NOT EXISTS event_log_odd AS SELECT * {of} AND FALSE;"
            f" INSERT INTO event_log_odd SELECT * {of};"
            f" DROP TRIGGER IF EXISTS event_log_no_delete; DELETE {of}"
        )
        raise InterventionRequired(
            f"{path}: somebody put an event at position {found[0]}, past the triggers: it can be"
            " folded by nobody, and may close the log",
            f"move such events aside: `sqlite3 -safe {quoted(path)} {quoted(move)}"
            " && projector db setup`",
        )


def _without_added(path: Path, log: Sequence[str], view: Sequence[str]) -> str:
    """What makes the layout one that is known, where somebody only added or renamed columns."""
    known = (*integrity.LOG_COLUMNS, *_VIEW_COLUMNS)
    tables = ["event_log"] * len(log) + ["view"] * len(view)
    renamed = [
        f"ALTER TABLE {table} RENAME COLUMN {identifier(column)} TO {ours}"
        for table, column, ours in zip(tables, (*log, *view), known, strict=False)
        if column != ours and column not in known
    ]
    is_else_known = sum(map(operator.eq, (*log, *view), known)) + len(renamed) == len(known)
    if (len(log), len(view)) == (len(integrity.LOG_COLUMNS), len(_VIEW_COLUMNS)) and is_else_known:
        return (
            "somebody renamed columns; if they are the same otherwise, give them back their names:"
            f" `sqlite3 -safe {quoted(path)} {quoted('; '.join(renamed))} && projector db setup`"
        )
    if {*log} == {*integrity.LOG_COLUMNS} and tuple(log) != integrity.LOG_COLUMNS:
        return COPY_LOG  # in another order
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
                f" `sqlite3 -safe {quoted(path)} {quoted('; '.join(added))}`"
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
    for left in path.parent.glob(f"{glob.escape(path.name)}.copying*"):  # by one that was killed
        _remove_left(left)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    named = path.with_name(f"{path.name}.before-projector-{stamp}")
    with _private_folder(path) as (private, folder):
        with closing(connect(path, mode="ro")) as reading:  # who holds the lock cannot VACUUM
            reading.execute("VACUUM INTO ?", (str(private / path.name),))
        with os_errors(private):  # as when somebody moved the folder meanwhile
            _like(path, os.open(path.name, os.O_RDONLY | sidecars.SAFELY, dir_fd=folder))
        yield named
        with os_errors(named):
            os.rename(path.name, named, src_dir_fd=folder)


@contextmanager
def _private_folder(path: Path) -> Iterator[tuple[Path, int]]:
    """A folder beside a database that nobody else may enter, and its descriptor."""
    with os_errors(path):
        private = Path(tempfile.mkdtemp(prefix=f"{path.name}.copying-", dir=path.parent))
        folder = os.open(private, _FOLDER)
    try:
        yield private, folder
    finally:
        _empty(folder)
        with suppress(OSError):
            private.rmdir()


def _like(path: Path, copy: int) -> None:
    """Give a copy, which is closed then, to the group of a database, with its mode."""
    try:
        found = path.lstat()
        with suppress(PermissionError):
            os.fchown(copy, -1, found.st_gid)
        is_theirs = os.fstat(copy).st_gid == found.st_gid
        os.fchmod(copy, found.st_mode & (0o666 if is_theirs else 0o606))
    finally:
        os.close(copy)


def _remove_left(left: Path) -> None:
    """Remove what a killed set-up left: a folder of ours, or a file of an earlier version."""
    with suppress(OSError):
        if not stat.S_ISDIR(left.lstat().st_mode):
            left.unlink()
            return
        folder = os.open(left, _FOLDER)
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            os.close(folder)
            return
        _empty(folder)
        left.rmdir()


def _empty(folder: int) -> None:
    """Remove the files in a folder by its descriptor, and close that."""
    try:
        for name in os.listdir(folder):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
