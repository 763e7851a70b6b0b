"""The tables that projections keep their views in: made, and brought to the shape of a version."""

import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing

from session_projector.projections.projection import Table


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


def changes(
    table: Table,
    standing: Mapping[str, tuple[str, bool]],
    indexes: Collection[str],
    *,
    newer: bool,
) -> list[str]:
    """What brings a table to its shape: nothing, most of the time.

    `standing`: the type of each of its columns, and whether that is its key; empty where there is
    no such table. Only a `newer` version, which folds all views anew, may add columns. Those that
    are not named stay as they are. Raises ValueError where one would have to change.
    """
    wanted = {name: (kind, name == table.key) for name, kind in table.columns.items()}
    if standing:
        for name, (kind, is_key) in wanted.items():
            if name not in standing and (is_key or not newer):
                raise ValueError(f"it has no column {name}")
            if name in standing and standing[name] != (kind, is_key):
                stands = f"{standing[name][0]}{', the key' if standing[name][1] else ''}"
                raise ValueError(f"its column {name} is {stands}")
        if any(is_key and name not in wanted for name, (_, is_key) in standing.items()):
            raise ValueError("it has another key")
        added = [
            f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"
            for name, (kind, _) in wanted.items()
            if name not in standing
        ]
        return added + statements(table, indexes)[1:]
    return statements(table, indexes)


def fault(table: Table) -> str:
    """Why SQLite would not have such a table, '' where it would."""
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
