"""What keeps the log and the views sound, and the tables made from the log: as they should be, put
back."""

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from typing import Final, NamedTuple

from session_projector import migrations
from session_projector.worker.errors import NeedsPerson
from session_projector.worker.storage.sqlite.sql import columns_of

TRIGGERS: Final = (
    "event_log_no_update",
    "event_log_no_delete",
    "event_log_known_id",
    "event_log_next_seq",
)
SESSION_KEY: Final = "idx_view_session_key"
_LOG: Final = "event_log"
_NEWEST_ROW_WINS: Final = (
    "DELETE FROM view WHERE rowid IN (SELECT rowid FROM (SELECT rowid, row_number() OVER"
    " (PARTITION BY key ORDER BY updated_at DESC, rowid DESC) AS n FROM view"
    " WHERE key >= 'session:' AND key < 'session;') WHERE n > 1)"
)
_KEPT_THERE: Final = "(SELECT name FROM checkpoint WHERE kept_in = ? COLLATE NOCASE)"
_FOLD_ANEW: Final = (
    f"DELETE FROM projection_state WHERE projection IN {_KEPT_THERE}",
    f"DELETE FROM quarantine WHERE projection IN {_KEPT_THERE}",
    "UPDATE checkpoint SET position = 0, digest = '', skipped = 0, generation = generation + 1"
    " WHERE kept_in = ? COLLATE NOCASE",
)
# Below 0: a rebuild that is not done, and whoever comes next does it.
_REBUILD_ALL: Final = "UPDATE checkpoint SET version = -abs(version), generation = generation + 1"

# An odd `skipped` is found by verify, and mended by replay.
_ODD: Final = (
    "SELECT name FROM checkpoint WHERE typeof(version) <> 'integer'"
    " OR typeof(position) <> 'integer' OR typeof(generation) <> 'integer'"
)
_SOUND: Final = (
    "UPDATE checkpoint SET version = iif(typeof(version) = 'integer', version, 0), position = 0,"
    " generation = iif(typeof(generation) = 'integer', generation, 0) + 1, digest = '', skipped = 0"
    " WHERE name = ?"
)


class _Object(NamedTuple):
    """A trigger or an index: what it is, on which table, and how it is made."""

    kind: str
    table: str
    sql: str


def amiss(connection: sqlite3.Connection) -> dict[str, str]:
    """Triggers and indexes that are gone, or not as the migrations make them: name to `gone` or
    `changed`. Of an index that only makes things fast, its place is enough: Kanbatte made it too.
    """
    there = _standing(connection)
    return {
        name: "changed" if name in there else "gone"
        for name, wanted in _objects().items()
        if name not in there
        or (
            (wanted.kind == "trigger" or name == SESSION_KEY)
            and there[name].sql.split() != wanted.sql.split()
        )
    }


def lacking(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """Tables but for the log that are gone, or lack columns: name to these, none where it is gone.

    All of them can be made anew, from the log or empty.
    """
    found = {}
    for name, (_, columns) in _tables().items():
        there = {column.lower() for column in columns_of(connection, name)}
        if missing := [column for column in columns if column.lower() not in there]:
            found[name] = tuple(missing) if there else ()
    return found


def foreign_triggers(connection: sqlite3.Connection) -> list[tuple[str, str, bool]]:
    """Those of others on the log, on our tables and on those of projections.

    Name, table, and whether one may refuse or lose what is written there, or writes there itself.
    """
    rows = connection.execute(
        "SELECT name, tbl_name, sql FROM sqlite_master"
        f" WHERE type = 'trigger' AND NOT {_is_named()}"
    ).fetchall()
    kept = connection.execute("SELECT DISTINCT lower(kept_in) FROM checkpoint").fetchall()
    ours = {_LOG, *_tables(), *(table for (table,) in kept)}
    names = "|".join(map(re.escape, ours))
    into = rf"(?:update(?:\s+or\s+\w+)?|into|delete\s+from)\s+[\"'`\[]?(?:{names})\b"
    meddles = re.compile(rf"\braise\b|\b{into}", re.IGNORECASE)
    return [
        (name, table, bool(meddles.search(sql.partition(table)[2])))
        for name, table, sql in rows
        if table.lower() in ours
    ]


def odd_checkpoints(connection: sqlite3.Connection) -> list[str]:
    """Projections whose checkpoint is no position: somebody wrote something else there."""
    return [str(name) for (name,) in connection.execute(_ODD)]


def restore(connection: sqlite3.Connection) -> list[str]:
    """Put back what is gone or amiss, inside the caller's transaction; returns the names.

    Raises `NeedsPerson` where one of the names is taken by something of somebody else's.
    """
    gone = [name for name, columns in lacking(connection).items() if not columns]
    for name in gone:
        connection.execute(_tables()[name][0])
    if "quarantine" in gone:
        connection.execute(_REBUILD_ALL)
    if "view" in gone:
        fold_anew(connection, "view")
    odd = odd_checkpoints(connection)
    for name in odd:
        connection.execute(_SOUND, (name,))
    names = amiss(connection)
    for name, kind, table in _named(connection):
        if (kind, table.lower()) != _objects()[name.lower()][:2]:
            raise NeedsPerson(
                f"{name} is {kind} of {table}: another program took the name of what keeps the log"
                " and the views sound",
                f"give that {kind} another name, and run this again",
            )
    for name, how in names.items():
        if how == "changed":
            connection.execute(f"DROP {_objects()[name].kind} {name}")
        if name == SESSION_KEY:
            connection.execute(_NEWEST_ROW_WINS)
        connection.execute(_objects()[name].sql)
    return [*gone, *(f"the checkpoint of {name}" for name in odd), *names]


def fold_anew(connection: sqlite3.Connection, table: str) -> None:
    """Let the projections that kept their views in a table that was gone begin at the first event:
    their checkpoints would say that its rows stand."""
    for statement in _FOLD_ANEW:
        connection.execute(statement, (table,))


@cache
def _objects() -> Mapping[str, _Object]:
    """As a fresh database has them."""
    with closing(_fresh()) as fresh:
        found = fresh.execute(
            "SELECT lower(name), type, lower(tbl_name), sql FROM sqlite_master"
            " WHERE sql IS NOT NULL AND type IN ('trigger', 'index')"
        )
        return {name: _Object(kind, table, sql) for name, kind, table, sql in found}


@cache
def _tables() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """The tables but for the log: how each is made, and its columns."""
    with closing(_fresh()) as fresh:
        found = fresh.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name <> ?"
            " AND name NOT LIKE 'sqlite%'",
            (_LOG,),
        ).fetchall()
        return {name: (sql, columns_of(fresh, name)) for name, sql in found}


def _fresh() -> sqlite3.Connection:
    fresh = sqlite3.connect(":memory:")
    fresh.executescript("".join(migrations.load().values()))
    return fresh


def _standing(connection: sqlite3.Connection) -> dict[str, _Object]:
    wanted = _objects()
    return {
        name.lower(): _Object(kind, table.lower(), str(sql))
        for name, kind, table, sql in connection.execute(
            f"SELECT name, type, tbl_name, sql FROM sqlite_master WHERE {_is_named()}"
        )
        if (kind, table.lower()) == wanted[name.lower()][:2]
    }


def _named(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return connection.execute(
        f"SELECT name, type, tbl_name FROM sqlite_master WHERE {_is_named()}"
    ).fetchall()


def _is_named() -> str:
    return f"lower(name) IN ({', '.join(repr(name) for name in _objects())})"
