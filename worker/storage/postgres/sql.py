"""Small pieces of SQL, and how rows are bound in it."""

from collections.abc import Sequence
from typing import Any

from session_projector.projections.projection import Table
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.tables import TYPES, named
from session_projector.worker.storage.postgres.target import identifier
from session_projector.worker.storage.postgres.text import escaped, unescaped


def column(name: str) -> str:
    return identifier(name).replace("%", "%%")


def columns(table: Table) -> str:
    return ", ".join(map(column, table.columns))


def owned(table: Table, of: str = "") -> str:
    """Only a projection's own rows, in the words of the index on them, so that it is used."""
    if not table.prefix:
        return "TRUE"
    low, high = table.bounds
    key = of + column(table.key)
    return f"{key} >= '{low}' AND {key} < '{high}'"


def upsert(connection: Connection, table: Table) -> str:
    """The statement that writes rows, new or there already, from an array for each column."""
    kinds = [TYPES[kind.upper()] for kind in table.columns.values()]
    arrays = ", ".join(f"%b::{kind}[]" for kind in kinds)
    updates = ", ".join(f"{column(name)} = excluded.{column(name)}" for name in table.columns)
    return (
        f"INSERT INTO {named(connection, table.name)} ({columns(table)})"
        f" SELECT * FROM unnest({arrays}) ON CONFLICT ({column(table.key)})"
        f"{f' WHERE {owned(table)}' if table.prefix else ''} DO UPDATE SET {updates}"
    )


def arrays(table: Table, rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """The values of some rows, column by column, as they are stored."""
    found = []
    for values, kind in zip(zip(*rows, strict=True), table.columns.values(), strict=True):
        if kind.upper() == "TEXT":
            found.append([escaped(value) for value in values])
        else:
            found.append([*values])
    return found


def row_of(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row as its projection made it."""
    return tuple(map(unescaped, row))
