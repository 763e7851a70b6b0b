"""Small pieces of SQL, and how values are bound in it."""

from collections.abc import Sequence
from typing import Any

from session_projector.projections.event import is_utf8
from session_projector.projections.projection import Table


def upsert(table: Table, rows: int) -> str:
    """So many rows at once."""
    columns = ", ".join(table.columns)
    updates = ", ".join(f"{column} = excluded.{column}" for column in table.columns)
    values = ", ".join([f"({placeholders([*table.columns])})"] * rows)
    return (
        f"INSERT INTO {table.name} ({columns}) VALUES {values}"
        f" ON CONFLICT ({table.key}) WHERE {owned(table)} DO UPDATE SET {updates}"
    )


def owned(table: Table) -> str:
    """Only a projection's own rows, in the words of the index on them, so that it is used."""
    if not table.prefix:
        return "TRUE"
    low, high = table.bounds
    return f"{table.key} >= '{low}' AND {table.key} < '{high}'"


def bound(parameter: str, value: Any) -> str:
    """How a value is bound: text that is not UTF-8 can only go in as its bytes."""
    return f"CAST({parameter} AS TEXT)" if isinstance(raw(value), _Bytes) else parameter


def raw(value: Any) -> Any:
    if isinstance(value, str) and not is_utf8(value):
        return _Bytes(value.encode("utf-8", "surrogateescape"))
    return value


class _Bytes(bytes):
    """The bytes of a text, where a plain `bytes` is a BLOB."""


def identifier(name: str) -> str:
    """A name in quotes, whatever a checkpoint that somebody else wrote may say."""
    return '"' + name.replace('"', '""') + '"'


def placeholders(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
