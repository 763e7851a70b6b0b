"""The tables that projections keep their views in: made, and brought to the shape of a version."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

from session_projector.projections.projection import Table
from session_projector.projections.search import BETWEEN, BREAK
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.target import identifier

TYPES: Final = {
    "TEXT": "text",
    "INTEGER": "bigint",
    "REAL": "double precision",
    "BLOB": "bytea",
}
OURS: Final = "views of a projection, made by projector"
"""The comment on each table that is made here."""
_NAME_BYTES: Final = 63
# The server's parser would make one word of an address, a path or a number with its sign, and none
# of a tag: between words there are spaces alone, as for the other engine.
SEPARATORS: Final = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    "\u00a0\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u2010\u2011\u2012\u2013\u2014\u2015\u2018"
    "\u2019\u201a\u201c\u201d\u201e\u2022\u2026\u2039\u203a\u3000\u3001\u3002\u3008\u3009\u300a"
    "\u300b\u300c\u300d\u300e\u300f\u3010\u3011\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\uff1f"
    f"{BETWEEN}{BREAK}"
)
CONFIGURATION: Final = "'pg_catalog.simple'::pg_catalog.regconfig"
_COLUMNS: Final = """
SELECT a.attname::text, format_type(a.atttypid, NULL),
  coalesce(a.attnum = ANY(k.conkey::int2[]), false)
FROM pg_catalog.pg_attribute AS a
LEFT JOIN pg_catalog.pg_constraint AS k ON k.conrelid = a.attrelid AND k.contype = 'p'
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


def named(connection: Connection, table: str) -> str:
    """A table's name in SQL."""
    return connection.prefix + identifier(table).replace("%", "%%")


def value_of(connection: Connection, table: str) -> str:
    """The same as a value for `to_regclass`."""
    return connection.target.prefix + identifier(table)


def columns_of(connection: Connection, table: str) -> dict[str, tuple[str, bool]]:
    """The columns of a table, the type of each and whether it is the key; none where there is no
    such table."""
    rows = connection.rows(_COLUMNS, (value_of(connection, table),))
    return {name: (kind, is_key) for name, kind, is_key in rows}


def indexes_of(connection: Connection, table: str) -> set[str]:
    rows = connection.rows(
        "SELECT c.relname::text FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c"
        " ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass(%s)",
        (value_of(connection, table),),
    )
    return {name for (name,) in rows}


def changes(
    connection: Connection,
    table: Table,
    present: Mapping[str, tuple[str, bool]],
    indexes: Collection[str],
    *,
    newer: bool,
) -> list[str]:
    """What brings a table to its shape: nothing, most of the time.

    `present` is what `columns_of` says of it. Only a `newer` version, which folds all views again,
    may add columns. Those that are not named stay as they are. Raises ValueError where one would
    have to change.
    """
    for name in (table.name, *table.columns):
        if len(name.encode()) > _NAME_BYTES:
            raise ValueError(f"{name} is longer than the {_NAME_BYTES} bytes of a name here")
    wanted = {name: (_type(kind), name == table.key) for name, kind in table.columns.items()}
    at = named(connection, table.name)
    made: list[str] = []
    if not present:
        columns = ", ".join(
            f"{_named(name)} {_defined(kind)}{' PRIMARY KEY' if is_key else ''}"
            for name, (kind, is_key) in wanted.items()
        )
        made = [
            f"CREATE TABLE IF NOT EXISTS {at} ({columns}) WITH (fillfactor = 80)",
            f"COMMENT ON TABLE {at} IS '{OURS}'",
        ]
    for name, (kind, is_key) in wanted.items() if present else ():
        if name not in present and (is_key or not newer):
            raise ValueError(f"it has no column {name}")
        if name not in present:
            made.append(f"ALTER TABLE {at} ADD COLUMN {_named(name)} {_defined(kind)}")
        elif present[name] != (kind, is_key):
            found, is_key = present[name]
            raise ValueError(f"its column {name} is {found}{', the key' if is_key else ''}")
    if any(is_key and name not in wanted for name, (_, is_key) in present.items()):
        raise ValueError("it has another key")
    for index in table.indexes:
        name = _index_name(table, index)
        if name not in indexes:
            columns = ", ".join(map(_named, index.split(", ")))
            made.append(f"CREATE INDEX IF NOT EXISTS {_named(name)} ON {at} ({columns})")
    if table.words and (name := index_of_words(table)) not in indexes:
        made.append(
            f"CREATE INDEX IF NOT EXISTS {_named(name)} ON {at} USING gin"
            f" ({vector(_named(table.words))})"
        )
    return made


def index_of_words(table: Table) -> str:
    """The name of the index by the words of a column."""
    return f"idx_{table.name}_words"


def vector(column: str) -> str:
    """The words of a column, in the same SQL wherever they are asked for."""
    separators = SEPARATORS.replace("'", "''").replace("%", "%%")
    spaces = " " * len(SEPARATORS)
    return f"to_tsvector({CONFIGURATION}, translate({column}, '{separators}', '{spaces}'))"


def _named(name: str) -> str:
    return identifier(name).replace("%", "%%")


def _type(kind: str) -> str:
    try:
        return TYPES[kind.upper()]
    except KeyError:
        raise ValueError(f"{kind} is none of the types {', '.join(TYPES)}") from None


def _defined(kind: str) -> str:
    return f'{kind} COLLATE "C"' if kind == "text" else kind


def _index_name(table: Table, index: str) -> str:
    name = f"idx_{table.name}_{index.replace(', ', '_')}"
    if len(name.encode()) <= _NAME_BYTES:
        return name
    return f"idx_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
