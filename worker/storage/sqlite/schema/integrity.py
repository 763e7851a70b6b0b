"""The schema as the migrations make it: what of it is gone or changed, and putting that back."""

import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import cache
from itertools import count, starmap
from pathlib import Path
from typing import Final, NamedTuple

from session_projector import migrations
from session_projector.projections import BUILT_IN, SEARCH
from session_projector.worker.errors import InterventionRequired, quoted
from session_projector.worker.storage.sqlite import tables
from session_projector.worker.storage.sqlite.sql import (
    FORGET_DEFERRED,
    IS_NAME,
    IS_PREFIX,
    IS_SOUND,
    IS_VERSION,
    MOST_AHEAD,
    identifier,
    is_count,
    is_short,
)

SESSION_KEY: Final = "idx_view_session_key"
_LOG: Final = "event_log"
LOG_COLUMNS: Final = ("seq", "id", "key", "data", "created_at")
_NEWEST_ROW_WINS: Final = (
    "DELETE FROM view WHERE rowid IN (SELECT rowid FROM (SELECT rowid, row_number() OVER"
    " (PARTITION BY key ORDER BY updated_at DESC, rowid DESC) AS n FROM view"
    " WHERE key >= 'session:' AND key < 'session;') WHERE n > 1)"
)
_KEPT_THERE: Final = "(SELECT name FROM checkpoint WHERE kept_in = ? COLLATE NOCASE)"
_FOLD_AGAIN: Final = (
    f"DELETE FROM deferred WHERE projection IN {_KEPT_THERE}",
    f"DELETE FROM projection_state WHERE projection IN {_KEPT_THERE}",
    f"DELETE FROM quarantine WHERE projection IN {_KEPT_THERE}",
    "UPDATE checkpoint SET position = 0, digest = '', skipped = 0, generation = generation + 1"
    " WHERE kept_in = ? COLLATE NOCASE",
)
# Below 0: a rebuild that is not done, and whoever comes next does it.
_REBUILD_ALL: Final = "UPDATE checkpoint SET version = -abs(version), generation = generation + 1"

_ODD: Final = f"SELECT name FROM checkpoint WHERE {IS_NAME} AND NOT ({IS_SOUND})"
_STRAY: Final = f"checkpoint WHERE NOT ({IS_NAME})"
_MAKE_SOUND: Final = (
    f"UPDATE checkpoint SET version = iif({IS_VERSION}, version, 0), position = 0,"
    f" generation = iif({is_count('generation')}, generation, 0) + 1, digest = '', skipped = 0,"
    f" kept_in = iif({is_short('kept_in')}, kept_in, ''),"
    f" key_column = iif({is_short('key_column')}, key_column, ''),"
    f" prefix = iif({IS_PREFIX}, prefix, '') WHERE name = ?"
)


_PLAIN_INDEX: Final = re.compile(r"(?is)^create\s+index\b[^(]*\(((?!\bcollate\b)[^()])*\)\s*$")
"""Not unique, on columns alone and in their own order, and of all rows."""
_NO_PART: Final = re.compile(r"(?s)--[^\n]*|/\*.*?\*/|[\"`\[\]]")
_PLAIN_COLUMN: Final = re.compile(r"\w+( \w+)?")
"""A name and a type at most: it refuses nothing."""


class Object(NamedTuple):
    """A table, SQL view, trigger or index: of which table it is, and how it was created.

    `columns` are those of a table of ours.
    """

    kind: str
    name: str
    table: str
    sql: str
    columns: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """What it is, however it was typed: Kanbatte made some of the indexes too."""
        return self.sql.split() if self.kind == "trigger" else ["".join(self.sql.split()).lower()]


def amiss(connection: sqlite3.Connection, *kinds: str) -> dict[str, str]:
    """Triggers and indexes, or one of the `kinds`, that are `gone`, or `changed` from how the
    migrations make them."""
    there = _objects(connection)
    found = {}
    for key, wanted in _schema().items():
        if wanted.kind in (kinds or ("trigger", "index")):
            one = there.get(key)
            if one is None or one.table.lower() != wanted.table:
                found[wanted.name] = "gone"
            elif one.words != wanted.words:
                found[wanted.name] = "changed"
    return found


def lacking(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Tables that are gone or lack columns, but for the log: name to these, none if it is gone."""
    found = {}
    for name, wanted in _tables().items():
        there = {column.lower() for column in tables.columns_of(connection, name)}
        if missing := [column for column in wanted.columns if column.lower() not in there]:
            found[name] = missing if there else []
    return found


def altered(connection: sqlite3.Connection) -> list[str]:
    """Tables that somebody made in another way than the migrations do: with a constraint, a
    collation or a computed column, which may refuse or change what is written. A column more that
    is plain does neither."""
    there = _objects(connection)
    found = [
        name
        for name, sql in _made().items()
        if (one := there.get(("table", name))) and not _is_made_so(one.sql, sql)
    ]
    if history := there.get(("table", "umzug_meta")):  # which may be another tool's
        columns = tables.columns_of(connection, history.name)
        if "name" not in columns or re.search(r"(?i)\bcheck\b", history.sql):
            found.append("umzug_meta")
    return found


def virtual(connection: sqlite3.Connection) -> list[str]:
    """Virtual tables under the names of ours but the log's: their module may be nowhere, and then
    not even their columns can be asked for."""
    names = {*_made(), "umzug_meta"} - {_LOG}
    return [
        name
        for (kind, name), one in _objects(connection).items()
        if kind == "table" and name in names and _is_virtual(one)
    ]


def _is_virtual(table: Object) -> bool:
    return _tail(table.sql)[0].startswith("create virtual")


def _is_made_so(found: str, wanted: str) -> bool:
    (*ends, parts), (*ours, columns) = _tail(found), _tail(wanted)
    return ends == ours and columns <= parts and all(map(_PLAIN_COLUMN.fullmatch, parts - columns))


def _tail(sql: str) -> tuple[str, str, frozenset[str]]:
    """What a statement makes, with which option, and its columns and constraints in pieces."""
    head, _, rest = _NO_PART.sub(" ", sql).lower().partition("(")
    body, _, tail = rest.rpartition(")")
    made, options, *pieces = (" ".join(one.split()) for one in (head, tail, *body.split(",")))
    return made, options, frozenset(pieces)


def put_aside(connection: sqlite3.Connection, path: Path, names: Iterable[str]) -> str:
    """The command that gives tables another name, whatever else is in the schema, and makes them
    again. A virtual table, whose module may be nowhere, is taken out of the schema instead."""
    there = _objects(connection)
    taken = {name for _, name in there}
    steps = ["PRAGMA legacy_alter_table = ON"]
    for table in names:
        for one in there.values():
            ours = one.kind == "index" and one.name.lower().startswith(f"idx_{table}_")
            if ours and one.table.lower() == table:
                steps.append(f"DROP INDEX {identifier(one.name)}")
        if _is_virtual(there["table", table]):
            steps += [
                "PRAGMA writable_schema = ON",
                f"DELETE FROM sqlite_master WHERE type = 'table' AND lower(name) = '{table}'",
                "PRAGMA writable_schema = RESET",
            ]
        else:
            names_aside = (f"{table}_aside{number or ''}" for number in count())
            free = next(name for name in names_aside if name not in taken)
            steps.append(f"ALTER TABLE {table} RENAME TO {free}")
    return _set_up_after(path, "; ".join(steps))


def foreign(connection: sqlite3.Connection) -> list[Object]:
    """What the migrations did not make."""
    return [one for key, one in _objects(connection).items() if key not in _schema()]


def foreign_indexes(connection: sqlite3.Connection) -> list[Object]:
    """Indexes of other programs that may refuse a row of ours: unique ones, or on an expression."""
    ours = _written(connection)
    return [
        one
        for one in foreign(connection)
        if one.kind == "index" and one.table.lower() in ours and not _PLAIN_INDEX.search(one.sql)
    ]


def foreign_triggers(connection: sqlite3.Connection) -> list[tuple[str, str, bool]]:
    """Those of others on the log, on our tables and on those of projections.

    Name, table, and whether one may refuse or lose what is written there, or writes there itself.
    """
    ours = _written(connection)
    of_words = tables.index_of_words(SEARCH.table).values()
    own = _tables().keys() - {"view"}
    names = "|".join(map(re.escape, ours))
    into = rf"(?:update(?:\s+or\s+\w+)?|into|delete\s+from)\s+[\"'`\[]?(?:{names})\b"
    meddles = re.compile(rf"\braise\b|\brecursive\b|\b{into}", re.IGNORECASE)
    return [
        (
            one.name,
            one.table,
            one.table.lower() in own or bool(meddles.search(one.sql.partition(one.table)[2])),
        )
        for one in foreign(connection)
        if one.kind == "trigger" and one.table.lower() in ours and one.sql not in of_words
    ]


def refuse_views_in_place(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse SQL views that another program made under the name of a table of ours."""
    views = [one.name for one in foreign(connection) if one.kind == "view"]
    names = [name for name in views if is_of_the_schema(name)]
    if not names:
        return
    schema = " ".join(quoted(f".schema {name}") for name in names)
    drop = "; ".join(f"DROP VIEW {name}" for name in names)
    then = f"Then put the table back: {_set_up_after(path, drop)}"
    if _LOG in map(str.lower, names):  # which nothing can fold again
        then = _log_back(connection, path, drop)
    raise InterventionRequired(
        f"{path}: an SQL view of another program stands in the place of the table"
        f" {', '.join(names)}",
        f"see how it was made: `sqlite3 -safe -readonly {quoted(path)} {schema}`. {then}",
    )


def _log_back(connection: sqlite3.Connection, path: Path, drop: str) -> str:
    """How to give the log, which has another name now, its own again."""
    logs = [
        one.name
        for one in foreign(connection)
        if one.kind == "table"
        if (*tables.columns_of(connection, one.name),) in (LOG_COLUMNS, LOG_COLUMNS[1:])
    ]
    if not logs:
        return "No table here has the columns of the log: restore a backup"
    if len(logs) > 1:
        return (
            f"Then find out which table holds the log ({', '.join(logs)}), drop the view and rename"
            f" that: {drop}; ALTER TABLE NAME RENAME TO {_LOG}"
        )
    rename = f"ALTER TABLE {identifier(logs[0])} RENAME TO {_LOG}"
    back = _set_up_after(path, f"{drop}; {rename}")
    return f"Then give the table that holds the log its name back: {back}"


def _set_up_after(path: Path, sql: str) -> str:
    return f"`sqlite3 -safe {quoted(path)} {quoted(sql)} && projector db setup`"


def sequence(connection: sqlite3.Connection) -> int | None:
    """What the next position of the log must follow, where somebody raised it so that the log is
    closed or soon will be; None where it is as it should be."""
    ((kept, newest),) = connection.execute(
        "SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'event_log'),"
        " (SELECT coalesce(max(seq), 0) FROM event_log)"
    )
    if kept is None or (isinstance(kept, int) and kept <= newest + MOST_AHEAD):
        return None
    ((folded,),) = connection.execute(
        f"SELECT coalesce(max(position), 0) FROM checkpoint WHERE {IS_NAME} AND {IS_SOUND}"
    )
    return int(min(max(newest, folded), newest + MOST_AHEAD))


def is_of_the_schema(table: str) -> bool:
    """Whether a table, or a projection that is built in, is what the migrations make."""
    built_in = (projection.table.name for projection in BUILT_IN)
    return table.lower() in {_LOG, "umzug_meta", *_tables(), *built_in}


def refused(connection: sqlite3.Connection) -> dict[str, str]:
    """Tables that no row can be written to, and why: a trigger on it names what is gone, say."""
    found = {}
    for table in sorted(_written(connection) - {_LOG}):
        if columns := tables.columns_of(connection, table):
            column = identifier(next(iter(columns)))
            for sql in ("INSERT INTO {0} DEFAULT VALUES", "UPDATE {0} SET {1} = {1}"):
                try:
                    statement = sql.format(identifier(table), column)
                    connection.execute(f"EXPLAIN {statement}").close()
                except sqlite3.Error as error:
                    found[table] = str(error)
    return found


def _written(connection: sqlite3.Connection) -> set[str]:
    """The log, our tables and those of projections."""
    kept = connection.execute(
        f"SELECT DISTINCT lower(kept_in) FROM checkpoint WHERE {IS_NAME} AND {IS_SOUND}"
    )
    return {_LOG, *_tables(), *(table for (table,) in kept)}


def obstacles(connection: sqlite3.Connection) -> list[Object]:
    """Indexes of others that may refuse a row of a table that nobody else has to do with."""
    own = _tables().keys() - {"view"}
    return [one for one in foreign_indexes(connection) if one.table.lower() in own]


def odd_checkpoints(connection: sqlite3.Connection) -> list[str]:
    """Projections whose checkpoint is no position: somebody wrote something else there."""
    return [str(name) for (name,) in connection.execute(_ODD)]


def stray_checkpoints(connection: sqlite3.Connection) -> int:
    """How many rows of `checkpoint` can be no projection's, by their name."""
    return int(connection.execute(f"SELECT count(*) FROM {_STRAY}").fetchone()[0])


def is_whole(connection: sqlite3.Connection) -> bool:
    """Whether there is nothing to restore."""
    return not (
        _gone(connection)
        or amiss(connection)
        or odd_checkpoints(connection)
        or stray_checkpoints(connection)
        or obstacles(connection)
        or sequence(connection) is not None
    )


def restore(connection: sqlite3.Connection) -> list[str]:
    """Put back what is gone or changed, within the caller's transaction; returns the names.

    A table is created empty, and what stood in it is folded again. Raises `InterventionRequired`
    where one of the names is taken by something of another program's.
    """
    gone = _gone(connection)
    for statements in gone.values():
        for statement in statements:
            connection.execute(statement)
    if {"quarantine", "deferred"} & gone.keys():
        connection.execute(_REBUILD_ALL)
    kept = [table for table in gone if _fold_again(connection, table)]
    hindering = obstacles(connection)
    for one in hindering:
        connection.execute(f"DROP INDEX {identifier(one.name)}")
    if (newest := sequence(connection)) is not None:
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'event_log'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('event_log', ?)", (newest,))
    counter = [] if newest is None else [f"the counter of positions at {newest:,}"]
    odd = odd_checkpoints(connection)
    for name in odd:
        connection.execute(FORGET_DEFERRED, (name,))
        connection.execute(_MAKE_SOUND, (name,))
    if stray := stray_checkpoints(connection):
        connection.execute(f"DELETE FROM {_STRAY}")
    faults = amiss(connection)
    ours = {wanted.name: wanted for wanted in _schema().values()}
    for one in _objects(connection).values():
        wanted = ours.get(one.name.lower(), one)
        if wanted.name in faults and (one.kind, one.table.lower()) != (wanted.kind, wanted.table):
            raise InterventionRequired(
                f"{one.name} is {one.kind} of {one.table}: another program took the name of what"
                " keeps the log and the views sound",
                f"give that {one.kind} another name, and run this again",
            )
    for name, how in faults.items():
        if how == "changed":
            connection.execute(f"DROP {ours[name].kind} {name}")
        if name == SESSION_KEY:
            connection.execute(_NEWEST_ROW_WINS)
        connection.execute(ours[name].sql)
    without = [f"{one.table} without the index {one.name}" for one in hindering]
    strays = [f"checkpoint without {stray} rows of no projection"] if stray else []
    made = [table for table in gone if table in _tables() or table in kept]
    return [
        *made,
        *(f"the checkpoint of {name}" for name in odd),
        *strays,
        *without,
        *counter,
        *faults,
    ]


def _fold_again(connection: sqlite3.Connection, table: str) -> bool:
    """Let projections whose table was gone begin at the first event; returns whether there are any.

    Their checkpoints say that the rows are there.
    """
    changed = [connection.execute(statement, (table,)).rowcount for statement in _FOLD_AGAIN]
    return changed[-1] > 0


def _gone(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Tables that are gone, but for the log, and what makes each: also those of the projections
    that are built in.

    What there is and does not fit is left to its projection, which says so when it runs.
    """
    there = _objects(connection)
    gone = {name: [one.sql] for name, one in _tables().items() if ("table", name) not in there}
    for table in (projection.table for projection in BUILT_IN):
        if not table.prefix and not {("table", table.name), ("view", table.name)} & there.keys():
            gone[table.name] = tables.statements(table)
    return gone


def _tables() -> dict[str, Object]:
    return {name: one for (kind, name), one in _schema().items() if kind == "table"}


@cache
def _schema() -> Mapping[tuple[str, str], Object]:
    """As a fresh database has it, but for the log."""
    with closing(_fresh()) as fresh:
        return {
            key: one._replace(columns=(*tables.columns_of(fresh, one.name),))
            for key, one in _objects(fresh).items()
            if one.name != _LOG
        }


@cache
def _made() -> Mapping[str, str]:
    """How each table is made in a fresh database, by its name."""
    with closing(_fresh()) as fresh:
        for table in (projection.table for projection in BUILT_IN):
            if not table.prefix:
                fresh.execute(tables.statements(table)[0])
        return {name: one.sql for (kind, name), one in _objects(fresh).items() if kind == "table"}


def _fresh() -> sqlite3.Connection:
    fresh = sqlite3.connect(":memory:")
    fresh.executescript("".join(migrations.load().values()))
    return fresh


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], Object]:
    """All that was created, by kind and name in small letters."""
    rows = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master"
        " WHERE sql IS NOT NULL AND name NOT GLOB 'sqlite_*'"
    )
    return {(one.kind, one.name.lower()): one for one in starmap(Object, rows)}
