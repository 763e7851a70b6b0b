"""Migrations: which are applied, and making or upgrading a database to the newest."""

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from session_projector import migrations
from session_projector.worker.errors import InterventionRequired, TransientError, quoted, upgrade
from session_projector.worker.storage.port import Setup
from session_projector.worker.storage.sqlite.connection import Connection, connect
from session_projector.worker.storage.sqlite.errors import translated
from session_projector.worker.storage.sqlite.identity import FileIdentity
from session_projector.worker.storage.sqlite.schema import integrity as objects
from session_projector.worker.storage.sqlite.schema.kanbatte import Layout, copied, layout
from session_projector.worker.storage.sqlite.schema.sharing import (
    check_folder,
    group_id,
    os_errors,
    share,
)
from session_projector.worker.storage.sqlite.tables import columns_of, our_tables

_WAL_PATIENCE_S = 10.0
_HISTORIES = ("umzug_meta", "schema_migrations")
"""Tables of migrations, which other programs have too."""
_OURS = "-projector-"
"""Stands in every migration's name since the third: the history may hold Kanbatte's later ones."""


def status(path: Path) -> list[tuple[str, bool]]:
    """Every migration and whether it is applied, oldest first."""
    with closing(connect(path, mode="ro")) as connection, translated(path):
        applied = _applied(connection, path)
    return [(name, name in applied) for name in sorted({*migrations.load(), *_newer(applied)})]


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database whose schema is older or newer than this program's, or not whole."""
    applied = _applied(connection, path)
    if newer := _newer(applied):
        known = ", ".join(f"'{name}'" for name in migrations.load())
        forget = f"DELETE FROM umzug_meta WHERE instr(name, '{_OURS}') AND name NOT IN ({known})"
        raise InterventionRequired(
            f"{path} has a newer schema than this projector ({', '.join(newer)})",
            f"{upgrade()}; where no newer one ever ran"
            f" here, somebody wrote that: `sqlite3 -safe {quoted(path)} {quoted(forget)}`",
        )
    if missing := [name for name in migrations.load() if name not in applied]:
        raise InterventionRequired(
            f"{path} lacks {', '.join(missing)}", "upgrade it with `projector db setup`"
        )
    if lacking := objects.lacking(connection):
        raise _not_whole(connection, lacking, path)
    if odd := objects.odd_checkpoints(connection):
        raise InterventionRequired(
            f"{path}: the checkpoint of {', '.join(odd)} is no position: somebody wrote to it",
            "let the projection begin at the first event again: `projector db setup`",
        )


def _not_whole(
    connection: sqlite3.Connection, lacking: Mapping[str, Sequence[str]], path: Path
) -> InterventionRequired:
    if gone := [name for name, columns in lacking.items() if not columns]:
        return InterventionRequired(
            f"{path} lacks {', '.join(gone)}: somebody dropped what the migrations made",
            "create it again with `projector db setup`",
        )
    told = ", ".join(f"{name}.{column}" for name, columns in lacking.items() for column in columns)
    return InterventionRequired(
        f"{path} lacks the columns {told}: somebody changed the table",
        f"put it aside and create it again: {objects.put_aside(connection, path, lacking)}",
    )


def setup(path: Path, *, group: str | None = None) -> Setup:
    """Create or upgrade the database, in one transaction; a Kanbatte database is copied first."""
    gid = None if group is None else group_id(group)
    if gid is not None:
        check_folder(path, gid)
    folder = path.parent
    with os_errors(path):
        if not folder.parent.exists():
            fix = f"make it: `mkdir -p {quoted(folder)} && projector db setup`, or correct the path"
            raise InterventionRequired(f"there is no folder {folder}", fix)
        made = not folder.exists()
        folder.mkdir(exist_ok=True)
    with closing(connect(path, mode="rwc")) as connection, translated(path):
        done = _upgrade(Connection(connection, path, FileIdentity(path)))
        try:
            use_wal(connection, path)
        finally:  # last, so that nobody else puts anything there before
            if gid is not None:
                share(path, gid)
    return msgspec.structs.replace(done, folder=str(folder)) if made else done


def _upgrade(opened: Connection) -> Setup:
    connection, path = opened.raw, opened.path
    applied = _applied(connection, path)
    if not applied:
        _refuse_foreign(connection, path)
    if _newer(applied):
        check(connection, path)
    if applied >= migrations.load().keys() and objects.is_whole(connection):
        return Setup([], None, [])
    # Everything is looked at again: another set-up may have been here since.
    with opened.writing(), copied(connection, path) as copy:
        doubled = doubled_keys(connection)
        names = _migrate(connection, path)
        restored = objects.restore(connection)
    return Setup(names, str(copy) if copy else None, doubled, restored)


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that holds tables of another program, and none of ours or of Kanbatte."""
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        " AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
    )
    found = [name for (name,) in rows if name.lower() not in _HISTORIES]
    if found and not our_tables().intersection(map(str.lower, found)):
        raise InterventionRequired(
            f"{path} is the database of another program (it has {', '.join(found[:5])}"
            f"{', …' if len(found) > 5 else ''}, and no event_log), and was left untouched",
            "give the path of a new file: `projector db setup -d PATH`",
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> list[str]:
    applied = _applied(connection, path)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS umzug_meta"
        " (name TEXT PRIMARY KEY, created_at TEXT DEFAULT CURRENT_TIMESTAMP)"
    )
    for name in sorted(applied):
        _record(connection, name)
    foreign = _others_on_the_log(connection)
    names = [name for name in migrations.load() if name not in applied]
    for name in names:
        for statement in _statements(migrations.load()[name]):
            connection.execute(statement)
        _record(connection, name)
    for statement in foreign - _others_on_the_log(connection):
        connection.execute(statement)
    return names


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
    values = ", ".join(["?", *("CAST(strftime('%s', 'now') AS INTEGER)" for _ in wanted)])
    connection.execute(
        f"INSERT INTO umzug_meta ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING", (name,)
    )


def _applied(connection: sqlite3.Connection, path: Path) -> set[str]:
    """From the history of ours, and from the layout where that history is missing or foreign."""
    found, known = layout(connection, path), list(migrations.load())
    applied = set(known[:3]) if found is Layout.PROJECTOR else set()
    if found is Layout.KANBATTE:
        applied = {known[0]} | ({known[1]} if columns_of(connection, "view") else set())
    if found is Layout.PROJECTOR and (columns := columns_of(connection, "umzug_meta")):
        if "name" not in columns:
            raise _not_whole(connection, {"umzug_meta": ["name"]}, path)
        rows = connection.execute("SELECT name FROM umzug_meta WHERE typeof(name) = 'text'")
        names = {name for (name,) in rows}
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


def _others_on_the_log(connection: sqlite3.Connection) -> set[str]:
    """SQL of others' indexes and triggers on event_log, which go with the table of before."""
    return {
        one.sql
        for one in objects.foreign(connection)
        if one.table == "event_log" != one.name and one.name != "idx_event_log_created_at"
    }


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit the transaction first."""
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
            raise TransientError(
                f"the schema of {path} is ready, but its journal mode is still not WAL, because"
                " other processes keep it busy",
                "stop them, and run `projector db setup` again",
            )
        time.sleep(0.05)
