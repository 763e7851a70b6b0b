"""Small pieces of SQL, and how values are bound in it."""

from collections.abc import Sequence
from typing import Any, Final

from session_projector.projections.event import MAX_NAME_BYTES, is_utf8
from session_projector.projections.projection import Table

SHOWN_BYTES: Final = 1000
# Anybody may write any row into `checkpoint`. This is what those of projections are, by the rules
# of the registry, and with room for one more.
MOST_COUNTED: Final = 1 << 62
MOST_AHEAD: Final = 1_000_000
"""How far above the newest event the trigger on the log lets the next one be."""
NAME_BYTES: Final = 200
"""The longest name of a projection, a table or a column, and more than a digest has."""


def is_short(column: str) -> str:
    """That a column of a row of `checkpoint` holds no long text; `length` alone ends at a NUL."""
    return f"typeof({column}) = 'text' AND length(CAST({column} AS BLOB)) <= {NAME_BYTES}"


IS_NAME: Final = (
    f"{is_short('name')} AND length(name) = length(CAST(name AS BLOB)) AND name <> ''"
    " AND name NOT GLOB '*[^a-zA-Z0-9_]*'"
)
IS_VERSION: Final = "typeof(version) = 'integer' AND abs(version / 2) < 1 << 30"
IS_PREFIX: Final = "typeof(prefix) = 'text' AND prefix IN ('', 'session:')"


def is_count(column: str) -> str:
    """That a column of a row of `checkpoint` holds a number that may be counted on from."""
    return f"typeof({column}) = 'integer' AND {column} BETWEEN 0 AND {MOST_COUNTED}"


_IS_DEFERRED: Final = " AND ".join(
    [
        "typeof(key) = 'text' AND length(CAST(key AS BLOB)) < 1 << 17",  # an id has 64 KiB at most
        "folded_position BETWEEN position AND read_position",
        *map(is_count, ("folded_position", "read_position", "bytes", "cost_ms", "since")),
    ]
)
_IS_CHECKPOINT: Final = " AND ".join(
    [
        IS_VERSION,
        *map(is_count, ("position", "generation", "skipped")),
        *map(is_short, ("digest", "kept_in", "key_column")),
        IS_PREFIX,
    ]
)
MOST_DEFERRED: Final = 4096
"""Views of a projection that may be behind. One is so for 60 s at most, after a write of 20 ms: a
daemon leaves 3,000 of them, and those of one batch (`CHUNKED_VIEWS`)."""
IS_SOUND: Final = (
    f"{_IS_CHECKPOINT} AND (SELECT count(*) FROM deferred WHERE projection = name)"
    f" <= {MOST_DEFERRED} AND NOT EXISTS"
    f" (SELECT 1 FROM deferred WHERE projection = name AND NOT ({_IS_DEFERRED}))"
)
IS_SOUND_JOINED: Final = f"{_IS_CHECKPOINT} AND (key IS NULL OR {_IS_DEFERRED})"
"""The same of each row where those of `deferred` are joined."""
READ_POSITION: Final = (
    "coalesce((SELECT max(read_position) FROM deferred WHERE projection = name), position)"
)
"""Of a row of `checkpoint`: the position of the event whose digest it has. Its `position` says what
all views hold, also those that are deferred."""
FORGET_DEFERRED: Final = "DELETE FROM deferred WHERE projection = ?"


def shown(column: str) -> str:
    """What the quarantine keeps of an `id` or `key`: of one that is longer than any event may have,
    the beginning."""
    size = f"typeof({column}) IN ('text', 'blob') AND length(CAST({column} AS BLOB))"
    head = f"substr(CAST({column} AS BLOB), 1, {SHOWN_BYTES})"
    return (
        f"CASE WHEN {size} > {MAX_NAME_BYTES} THEN"
        f" iif(typeof({column}) = 'text', CAST({head} AS TEXT), {head}) ELSE {column} END"
    )


def upsert(table: Table, rows: int) -> str:
    """The statement that writes a number of rows, new or there already."""
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
