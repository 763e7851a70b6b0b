"""Migrations: which are applied, and making or upgrading a database to the newest."""

import glob
import grp
import os
import shlex
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import msgspec

from session_projector import migrations
from session_projector.projections import BUILT_IN
from session_projector.projections.projection import Table
from session_projector.worker.errors import BadUsage, NeedsPerson, RetryLater, quoted, translated
from session_projector.worker.storage.sqlite import tables
from session_projector.worker.storage.sqlite.connection import LOCK_SUFFIX, connect
from session_projector.worker.storage.sqlite.schema import integrity as objects

_SIDECARS = ("", "-wal", "-shm", LOCK_SUFFIX)
_WAL_PATIENCE_S = 10.0
_SHARED_FOLDER = 0o2770
_OURS = "-projector-"
"""Stands in every migration's name since the third: the history may hold Kanbatte's later ones."""


class Layout(Enum):
    """What a database's columns say it is, whatever its history table says."""

    EMPTY = "empty"
    KANBATTE = "Kanbatte up to 0.0.3"
    PROJECTOR = "projector"


class Setup(msgspec.Struct, frozen=True):
    """What `setup` did; `backup` is the copy made before a Kanbatte database was adopted.

    `restored` are tables, triggers and indexes that somebody dropped or changed.
    """

    applied: list[str]
    backup: Path | None
    doubled_keys: list[str]
    restored: list[str] = []


_COLUMNS = {
    ("id", "key", "data", "created_at"): Layout.KANBATTE,
    ("seq", "id", "key", "data", "created_at"): Layout.PROJECTOR,
}
_VIEW_COLUMNS = ("id", "key", "data", "last_offset_id", "created_at", "updated_at")


def layout(connection: sqlite3.Connection, path: Path) -> Layout:
    """Recognised by columns; raises `NeedsPerson` for any other layout."""
    log, view = _columns(connection, "event_log"), _columns(connection, "view")
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


def status(path: Path) -> list[tuple[str, bool]]:
    """Every migration and whether it is applied, oldest first."""
    connection = connect(path, mode="ro")
    try:
        with translated(path):
            applied = _applied(connection, layout(connection, path))
    finally:
        connection.close()
    return [(name, name in applied) for name in sorted({*migrations.load(), *_newer(applied)})]


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database whose schema is older or newer than this program's, or not whole."""
    applied = _applied(connection, layout(connection, path))
    if newer := _newer(applied):
        raise NeedsPerson(
            f"{path} has a newer schema than this projector ({', '.join(newer)})",
            "upgrade projector: pip install -U session-projector",
        )
    if missing := [name for name in migrations.load() if name not in applied]:
        raise NeedsPerson(
            f"{path} lacks {', '.join(missing)}",
            f"upgrade it with `projector db setup -d {quoted(path)}`",
        )
    if lacking := objects.lacking(connection):
        raise _not_whole(lacking, path)
    if odd := objects.odd_checkpoints(connection):
        raise NeedsPerson(
            f"{path}: the checkpoint of {', '.join(odd)} is no position: somebody wrote to it",
            "let the projection begin at the first event again:"
            f" `projector db setup -d {quoted(path)}`",
        )


def _not_whole(lacking: Mapping[str, tuple[str, ...]], path: Path) -> NeedsPerson:
    setup = f"projector db setup -d {quoted(path)}"
    if gone := [name for name, columns in lacking.items() if not columns]:
        return NeedsPerson(
            f"{path} lacks {', '.join(gone)}: somebody dropped what the migrations made",
            f"make it anew with `{setup}`",
        )
    told = ", ".join(f"{name}.{column}" for name, columns in lacking.items() for column in columns)
    aside = "; ".join(f"ALTER TABLE {name} RENAME TO {name}_aside" for name in lacking)
    return NeedsPerson(
        f"{path} lacks the columns {told}: somebody changed the table",
        f"put it aside and make it anew: `sqlite3 {quoted(path)} {shlex.quote(aside)} && {setup}`",
    )


def require_current(path: Path) -> None:
    """For the daemon, before it opens its own connection: this program's schema, WAL mode."""
    connection = connect(path, mode="rw")
    try:
        with translated(path):
            check(connection, path)
            _use_wal(connection, path)
    finally:
        connection.close()


def setup(path: Path, *, group: str | None = None) -> Setup:
    """Create or upgrade the database, in one transaction; a Kanbatte database is copied first."""
    gid = None if group is None else _gid(group)
    if gid is not None:
        _check_folder(path, gid)
    with _os_errors(path):
        path.parent.mkdir(exist_ok=True)
    connection = connect(path, mode="rwc")
    try:
        with translated(path):
            done = _upgrade(connection, path)
            if gid is not None:
                _share(path, gid)
            _use_wal(connection, path)
            if gid is not None:
                _share(path, gid)
    finally:
        connection.close()
    return done


def _upgrade(connection: sqlite3.Connection, path: Path) -> Setup:
    applied = _applied(connection, layout(connection, path))
    if _newer(applied):
        check(connection, path)
    if all(name in applied for name in migrations.load()):
        return _restore(connection)
    with _copied(connection, path) as copy:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Seen anew: another set-up may have been here since.
            adopting = layout(connection, path) is Layout.KANBATTE
            names, doubled = _migrate(connection, path)
            restored = _put_back(connection)
            # Before the COMMIT, after which a kill would leave it under a name that says nothing.
            backup = copy.rename(_backup_name(path)) if copy and adopting else None
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return Setup(names, backup, doubled, restored)


def _restore(connection: sqlite3.Connection) -> Setup:
    """What stands is current; only what keeps it so may be amiss."""
    whole = not (objects.lacking(connection) or objects.amiss(connection))
    if whole and not (objects.odd_checkpoints(connection) or _kept_gone(connection)):
        return Setup([], None, [])
    connection.execute("BEGIN IMMEDIATE")
    try:
        doubled = doubled_keys(connection)
        restored = _put_back(connection)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return Setup([], None, doubled, restored)


def _put_back(connection: sqlite3.Connection) -> list[str]:
    """What somebody dropped or changed, and the tables of the projections that are built in."""
    restored = objects.restore(connection)
    for table in _kept_gone(connection):
        if connection.execute(
            "SELECT 1 FROM checkpoint WHERE kept_in = ?", (table.name,)
        ).fetchone():
            objects.fold_anew(connection, table.name)
            restored.append(table.name)
        for statement in tables.statements(table):
            connection.execute(statement)
    return restored


def _kept_gone(connection: sqlite3.Connection) -> list[Table]:
    """What is there and does not fit is left to its projection, which says so when it runs."""
    own = (p.table for p in BUILT_IN if not p.table.prefix)
    taken = {
        name
        for (name,) in connection.execute(
            "SELECT lower(name) FROM sqlite_master WHERE type IN ('table', 'view')"
        )
    }
    return [table for table in own if table.name.lower() not in taken]


def _migrate(connection: sqlite3.Connection, path: Path) -> tuple[list[str], list[str]]:
    """Inside the transaction, so that what two set-ups at once see cannot change under them."""
    found = layout(connection, path)
    applied = _applied(connection, found)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS umzug_meta"
        " (name TEXT PRIMARY KEY, created_at TEXT DEFAULT CURRENT_TIMESTAMP)"
    )
    for name in sorted(applied):
        _record(connection, name)
    doubled = doubled_keys(connection)
    foreign = _foreign_objects(connection)
    names = [name for name in migrations.load() if name not in applied]
    for name in names:
        for statement in _statements(migrations.load()[name]):
            connection.execute(statement)
        _record(connection, name)
    for statement in foreign - _foreign_objects(connection):
        connection.execute(statement)
    return names, doubled


def _record(connection: sqlite3.Connection, name: str) -> None:
    """A line of the history, also where the table is another tool's and wants more than a name."""
    wanted = [
        column
        for (column,) in connection.execute(
            "SELECT name FROM pragma_table_info('umzug_meta')"
            " WHERE \"notnull\" AND dflt_value IS NULL AND NOT pk AND name <> 'name'"
        )
    ]
    columns = ", ".join(["name", *(f'"{column}"' for column in wanted)])
    values = ", ".join(["?", *("unixepoch()" for _ in wanted)])
    connection.execute(
        f"INSERT INTO umzug_meta ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING", (name,)
    )


def _applied(connection: sqlite3.Connection, found: Layout) -> set[str]:
    """From the history of ours, and from the layout where that history is missing or foreign."""
    known = list(migrations.load())
    applied = set(known[:3]) if found is Layout.PROJECTOR else set()
    if found is Layout.KANBATTE:
        applied = {known[0]} | ({known[1]} if _columns(connection, "view") else set())
    if found is Layout.PROJECTOR and _columns(connection, "umzug_meta"):
        names = {str(name) for (name,) in connection.execute("SELECT name FROM umzug_meta")}
        applied |= {name for name in names if name in known or _OURS in name}
    return applied


def _newer(applied: set[str]) -> list[str]:
    return sorted(name for name in applied if name not in migrations.load())


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    # Through sqlite_master, because pragma_table_info alone goes on answering from the schema that
    # was read before another process changed it.
    rows = connection.execute(
        "SELECT c.name FROM sqlite_master AS t, pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' AND t.name = ? ORDER BY c.cid",
        (table,),
    )
    return tuple(name for (name,) in rows)


def doubled_keys(connection: sqlite3.Connection) -> list[str]:
    """The session keys that stand in more than one row of `view`."""
    if not _columns(connection, "view"):
        return []
    rows = connection.execute(
        "SELECT key FROM view WHERE key >= 'session:' AND key < 'session;'"
        " GROUP BY key HAVING count(*) > 1 ORDER BY key"
    )
    return [key for (key,) in rows]


def _foreign_objects(connection: sqlite3.Connection) -> set[str]:
    """SQL of the indexes and triggers that others put on event_log: making it anew drops them."""
    rows = connection.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'event_log' AND sql IS NOT NULL"
        " AND type IN ('trigger', 'index') AND name NOT IN ("
        "'idx_event_log_key', 'idx_event_log_created_at', 'event_log_no_update',"
        " 'event_log_no_delete', 'event_log_known_id', 'event_log_next_seq')"
    )
    return {sql for (sql,) in rows}


def _statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would commit the transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _copied(connection: sqlite3.Connection, path: Path) -> Iterator[Path | None]:
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


def _backup_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return path.with_name(f"{path.name}.before-projector-{stamp}")


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    """Switching fails while anyone reads or writes: wait and retry."""
    deadline = time.monotonic() + _WAL_PATIENCE_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            mode = "busy"
        if mode == "wal":
            return
        if time.monotonic() > deadline:
            raise RetryLater(
                f"the schema of {path} is ready, but its journal mode is still not WAL, because"
                " other processes keep it busy",
                f"stop them, and run `projector db setup -d {quoted(path)}` again",
            )
        time.sleep(0.05)


def _check_folder(path: Path, gid: int) -> None:
    """A folder that holds anything else is somebody's own, and not to be opened to a group.

    One that is the group's already may hold what it likes.
    """
    ours = (path.name, f".{path.name}-litestream")
    try:
        folder = path.parent.stat()
        if (folder.st_gid, stat.S_IMODE(folder.st_mode)) == (gid, _SHARED_FOLDER):
            return
        others = sorted(
            entry.name for entry in path.parent.iterdir() if not entry.name.startswith(ours)
        )
    except FileNotFoundError:
        return
    if others:
        raise BadUsage(
            f"--group would open the whole folder {path.parent}, which holds more than the database"
            f" ({others[0]}{', …' if len(others) > 1 else ''})",
            "give it a folder of its own: projector db setup -d FOLDER/local.db --group NAME",
        )


def _gid(group: str) -> int:
    try:
        if group.isascii() and group.isdigit() and int(group) < 2**32 - 1:
            return int(group)
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadUsage(
            f"there is no group {group}", f"make it: groupadd {shlex.quote(group)}"
        ) from None


def _share(path: Path, gid: int) -> None:
    """Folder 2770, files 0660: new sidecars take the group of the one and the mode of the other."""
    with _os_errors(path):
        _give(path.parent, gid, _SHARED_FOLDER)
        for file in (path.with_name(path.name + suffix) for suffix in _SIDECARS):
            if file.exists():
                _give(file, gid, 0o660)


def _give(file: Path, gid: int, mode: int) -> None:
    """Only what differs: a sidecar that another user made is not ours to change, nor need it be."""
    if file.stat().st_gid != gid:
        os.chown(file, -1, gid)
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NeedsPerson(
            f"{error.filename or path}: {error.strerror}",
            f"look at `ls -la {path.parent}` and who you are (`id`)",
        ) from None
