"""The tables that projections keep their views in: made, and brought to the shape of a version."""

import re
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from typing import Final

from session_projector import migrations
from session_projector.projections.projection import Table

# Names of other programs' tables, and those that our statements give to other things.
_TAKEN: Final = {"schema_migrations", "excluded", "gathered", "temp", "main", "new", "old", "rowid"}
_OF_SQLITE: Final = ("sqlite_", "pragma_", "json_")


def statements(table: Table, indexes: Collection[str] = ()) -> list[str]:
    """What makes a table and those of its indexes that are not there."""
    columns = ", ".join(
        f"{name} {kind}{' PRIMARY KEY' if name == table.key else ''}"
        for name, kind in table.columns.items()
    )
    named = {f"idx_{table.name}_{index.replace(', ', '_')}": index for index in table.indexes}
    return [
        f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}) WITHOUT ROWID",
        *(
            f"CREATE INDEX IF NOT EXISTS {name} ON {table.name} ({index})"
            for name, index in named.items()
            if name not in indexes
        ),
    ]


def index_of_words(table: Table) -> dict[str, str]:
    """What makes an index by the words of a column, an FTS5 table, by the names of its parts.

    It holds no text: a view of the rows is its content, with which FTS5 can compare it, and from
    which it can be built again. Triggers on the rows keep it, whoever writes them.
    """
    name, text, words = table.name, table.words, f"{table.name}_words"
    old, new = (f"CAST(substr({which}.{table.key}, 2) AS INTEGER)" for which in ("old", "new"))
    remove = f"INSERT INTO {words} ({words}, rowid, {text}) VALUES ('delete', {old}, old.{text});"
    add = f"INSERT INTO {words} (rowid, {text}) VALUES ({new}, new.{text});"
    return {
        f"{name}_rows": f"CREATE VIEW {name}_rows AS SELECT"
        f" CAST(substr({table.key}, 2) AS INTEGER) AS seq, {text} FROM {name}",
        words: f"CREATE VIRTUAL TABLE {words} USING fts5({text}, content='{name}_rows',"
        " content_rowid='seq', tokenize='unicode61 remove_diacritics 0')",
        f"{words}_insert": f"CREATE TRIGGER {words}_insert AFTER INSERT ON {name} BEGIN {add} END",
        f"{words}_delete": f"CREATE TRIGGER {words}_delete AFTER DELETE ON {name}"
        f" BEGIN {remove} END",
        f"{words}_update": f"CREATE TRIGGER {words}_update AFTER UPDATE ON {name} WHEN"
        f" old.{text} IS NOT new.{text} OR old.{table.key} IS NOT new.{table.key}"
        f" BEGIN {remove} {add} END",
    }


def columns_of(connection: sqlite3.Connection, table: str) -> dict[str, tuple[str, bool]]:
    """The columns of a table, the type of each in capitals and whether it is the key; none where
    there is no such table."""
    # Through sqlite_master, because pragma_table_info alone goes on answering from the schema that
    # was read before another process changed it.
    rows = connection.execute(
        "SELECT c.name, c.type, c.pk > 0 FROM sqlite_master AS t, pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' AND t.name = ? COLLATE NOCASE ORDER BY c.cid",
        (table,),
    )
    return {name: (kind.upper(), bool(is_key)) for name, kind, is_key in rows}


def changes(
    table: Table, present: Mapping[str, tuple[str, bool]], indexes: Collection[str], *, newer: bool
) -> list[str]:
    """What brings a table to its shape: nothing, most of the time.

    `present` is what `columns_of` says of it. Only a `newer` version, which folds all views again,
    may add columns. Those that are not named stay as they are. Raises ValueError where one would
    have to change.
    """
    if not present:
        return statements(table, indexes)
    wanted = {name: (kind, name == table.key) for name, kind in table.columns.items()}
    for name, (kind, is_key) in wanted.items():
        if name not in present and (is_key or not newer):
            raise ValueError(f"it has no column {name}")
        if name in present and present[name] != (kind, is_key):
            found, is_key = present[name]
            raise ValueError(f"its column {name} is {found}{', the key' if is_key else ''}")
    if any(is_key and name not in wanted for name, (_, is_key) in present.items()):
        raise ValueError("it has another key")
    added = [
        f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"
        for name, (kind, _) in wanted.items()
        if name not in present
    ]
    return added + statements(table, indexes)[1:]


def fault(table: Table) -> str:
    """Why a projection cannot have such a table, '' where it can."""
    if table.name.lower() in _TAKEN | our_tables() or table.name.lower().startswith(_OF_SQLITE):
        return f"the table {table.name} belongs to another program"
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            for statement in statements(table):
                connection.execute(statement)
            connection.execute(
                f"SELECT {', '.join(f'v.{name}' for name in table.columns)} FROM {table.name} AS v"
                f" WHERE {table.key} = '' ORDER BY {table.key}"
            )
        except sqlite3.Error as error:
            return f"SQLite cannot make its table: {error}"
    return ""


def our_tables() -> set[str]:
    """The names of the tables that migrations make, in small letters."""
    sql = " ".join(migrations.load().values())
    return {name.lower() for name in re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", sql)}
