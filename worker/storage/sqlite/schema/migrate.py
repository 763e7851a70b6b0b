"""Migrations: which are applied, and making or upgrading a database to the newest."""

import shlex
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from session_projector import migrations
from session_projector.projections import BUILT_IN
from session_projector.projections.projection import Table
from session_projector.worker.errors import NeedsPerson, RetryLater, quoted
from session_projector.worker.storage.port import Setup
from session_projector.worker.storage.sqlite import tables
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.errors import translated
from session_projector.worker.storage.sqlite.schema import integrity as objects
from session_projector.worker.storage.sqlite.schema.kanbatte import (
    Layout,
    backup_name,
    copied,
    layout,
)
from session_projector.worker.storage.sqlite.schema.sharing import (
    check_folder,
    group_id,
    os_errors,
    share,
)
from session_projector.worker.storage.sqlite.sql import columns_of

_WAL_PATIENCE_S = 10.0
_OURS = "-projector-"
"""Stands in every migration's name since the third: the history may hold Kanbatte's later ones."""


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
            "upgrade it with `projector db setup`",
        )
    if lacking := objects.lacking(connection):
        raise _not_whole(lacking, path)
    if odd := objects.odd_checkpoints(connection):
        raise NeedsPerson(
            f"{path}: the checkpoint of {', '.join(odd)} is no position: somebody wrote to it",
            "let the projection begin at the first event again: `projector db setup`",
        )


def _not_whole(lacking: Mapping[str, tuple[str, ...]], path: Path) -> NeedsPerson:
    if gone := [name for name, columns in lacking.items() if not columns]:
        return NeedsPerson(
            f"{path} lacks {', '.join(gone)}: somebody dropped what the migrations made",
            "create it again with `projector db setup`",
        )
    told = ", ".join(f"{name}.{column}" for name, columns in lacking.items() for column in columns)
    aside = "; ".join(f"ALTER TABLE {name} RENAME TO {name}_aside" for name in lacking)
    return NeedsPerson(
        f"{path} lacks the columns {told}: somebody changed the table",
        f"put it aside and create it again: `sqlite3 {quoted(path)} {shlex.quote(aside)}"
        " && projector db setup`",
    )


def setup(path: Path, *, group: str | None = None) -> Setup:
    """Create or upgrade the database, in one transaction; a Kanbatte database is copied first."""
    gid = None if group is None else group_id(group)
    if gid is not None:
        check_folder(path, gid)
    with os_errors(path):
        path.parent.mkdir(exist_ok=True)
    connection = connect(path, mode="rwc")
    try:
        with translated(path):
            done = _upgrade(connection, path)
            if gid is not None:
                share(path, gid)
            use_wal(connection, path)
            if gid is not None:
                share(path, gid)
    finally:
        connection.close()
    return done


def _upgrade(connection: sqlite3.Connection, path: Path) -> Setup:
    applied = _applied(connection, layout(connection, path))
    if _newer(applied):
        check(connection, path)
    if all(name in applied for name in migrations.load()):
        return _restore(connection)
    with copied(connection, path) as copy:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Seen anew: another set-up may have been here since.
            adopting = layout(connection, path) is Layout.KANBATTE
            names, doubled = _migrate(connection, path)
            restored = _put_back(connection)
            # Before the COMMIT, after which a kill would leave it under a name that says nothing.
            backup = str(copy.rename(backup_name(path))) if copy and adopting else None
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
        applied = {known[0]} | ({known[1]} if columns_of(connection, "view") else set())
    if found is Layout.PROJECTOR and columns_of(connection, "umzug_meta"):
        names = {str(name) for (name,) in connection.execute("SELECT name FROM umzug_meta")}
        applied |= {name for name in names if name in known or _OURS in name}
    return applied


def _newer(applied: set[str]) -> list[str]:
    return sorted(name for name in applied if name not in migrations.load())


def doubled_keys(connection: sqlite3.Connection) -> list[str]:
    """The session keys that stand in more than one row of `view`."""
    if not columns_of(connection, "view"):
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


def use_wal(connection: sqlite3.Connection, path: Path) -> None:
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
                "stop them, and run `projector db setup` again",
            )
        time.sleep(0.05)
