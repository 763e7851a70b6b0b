"""What a change of a projection is in SQL."""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

from msgspec.structs import astuple

from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Table
from session_projector.worker.errors import InterventionRequired, LostRace, ProjectionFailed, quoted
from session_projector.worker.storage.port import Change, Checkpoint, size_of
from session_projector.worker.storage.sqlite.checkpoints import FORGET_STATUS
from session_projector.worker.storage.sqlite.connection import (
    Connection,
    bounded,
    event,
    is_too_big,
)
from session_projector.worker.storage.sqlite.errors import see_triggers
from session_projector.worker.storage.sqlite.sql import (
    bound,
    owned,
    raw,
    shown,
    upsert,
)

MOST_ROWS: Final = 256
MOST_BYTES: Final = 2 * 1024 * 1024
"""Of a statement, as SQLite gets copies of all its values."""
_MOVE: Final = (
    "UPDATE checkpoint SET version = ?, position = ?, generation = ?, digest = ?, skipped = ?"
    " WHERE name = ? AND version = ? AND position = ? AND generation = ? AND digest = ?"
)
_UNMOVED: Final = (
    "SELECT 1 FROM checkpoint"
    " WHERE name = ? AND version = ? AND position = ? AND generation = ? AND digest = ?"
)
_DEFER: Final = (
    "INSERT OR REPLACE INTO deferred"
    " (projection, key, folded_position, read_position, bytes, cost_ms, since)"
    " VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?)"
)
_READ_ON: Final = "UPDATE deferred SET read_position = ? WHERE projection = ?"
_WRITTEN: Final = "DELETE FROM deferred WHERE projection = ? AND key = CAST(? AS TEXT)"
_QUARANTINE: Final = (
    "INSERT INTO quarantine (projection, seq, id, key, reason)"
    f" SELECT :name, seq, {shown('id')}, {shown('key')}, :reason FROM {{}} WHERE seq = :seq"
    " ON CONFLICT (projection, seq) DO UPDATE"
    " SET id = excluded.id, key = excluded.key, reason = excluded.reason"
)


def apply(connection: Connection, change: Change) -> None:
    """Within a transaction; raises `LostRace` where the checkpoint is not `before`, and
    `InterventionRequired` where it is and stays so."""
    before, after, table = change.before, change.after, change.table
    execute = connection.raw.execute
    moved = (after.version, after.complete, after.generation, after.digest, after.skipped)
    known = (before.name, before.version, before.complete, before.generation, before.digest)
    if (rows := execute(_MOVE, (*moved, *known)).rowcount) != 1:
        if rows > 1:
            raise InterventionRequired(
                f"{connection.path}: {before.name} has {rows} checkpoints: somebody made the table"
                " again, without a key",
                "see how to put it right: `projector doctor`",
            )
        if execute(_UNMOVED, known).fetchone():
            raise InterventionRequired(
                f"{connection.path}: the checkpoint of {before.name} stays at {before.position}"
                " whatever is written to it: a trigger keeps it there",
                see_triggers(connection.path, "checkpoint"),
            )
        raise LostRace
    if (after.version, after.position) != (before.version, before.position):
        execute(FORGET_STATUS, (before.name,))
    if before.deferred or after.deferred:
        _defer(connection.raw, before, after)
    with connection.errors(before.name):
        if change.rows:
            _write(connection, before.name, table, change.rows)
        for key in change.removed:
            execute(
                f"DELETE FROM {table.name} WHERE {owned(table)}"
                f" AND {table.key} = {bound('?', key)}",
                (raw(key),),
            )
    for rejected in change.quarantined:
        _reject(connection.raw, before.name, rejected)
    for seq in change.cleared:
        execute(
            f"DELETE FROM quarantine WHERE projection = ? AND seq = {bound('?', seq)}",
            (before.name, raw(seq)),
        )


def _defer(connection: sqlite3.Connection, before: Checkpoint, after: Checkpoint) -> None:
    """Only what changed, as there may be many."""
    gone = before.deferred.keys() - after.deferred.keys()
    connection.executemany(_WRITTEN, [(after.name, raw(key)) for key in gone])
    if after.position != before.position and len(gone) < len(before.deferred):
        connection.execute(_READ_ON, (after.position, after.name))
    connection.executemany(
        _DEFER,
        [
            (after.name, raw(key), view.position, after.position, *astuple(view)[1:])
            for key, view in after.deferred.items()
            if before.deferred.get(key) != view
        ],
    )


def _reject(connection: sqlite3.Connection, name: str, rejected: Rejected) -> None:
    values: dict[str, Any] = {"name": name, "seq": rejected.seq, "reason": rejected.reason}
    try:
        with bounded(connection):
            connection.execute(_QUARANTINE.format("event_log"), values)
        return
    except sqlite3.DataError as error:
        if not is_too_big(error):
            raise
    # Again, from as much of its id and key as is kept at most: neither is read whole.
    _, event_id, key, *_ = event(connection, rejected.seq) or (None, None, None)
    columns = f"SELECT :seq AS seq, {bound(':id', event_id)} AS id, {bound(':key', key)} AS key"
    values |= {"id": raw(event_id), "key": raw(key)}
    connection.execute(_QUARANTINE.format(f"({columns})"), values)


def _write(
    connection: Connection, name: str, table: Table, rows: Sequence[tuple[Any, ...]]
) -> None:
    try:
        _upsert(connection.raw, table, rows)
        return
    except sqlite3.IntegrityError as error:
        if not _is_id_taken(table, error):
            raise
    # A corrupt row of ours has the id of another one, and is met when that is written.
    columns = [*table.columns]
    id_at, key_at = columns.index("id"), columns.index(table.key)
    connection.raw.executemany(
        f"UPDATE OR IGNORE {table.name} SET id = {table.key}"
        f" WHERE {owned(table)} AND id = ? AND {table.key} <> ?",
        [(row[id_at], row[key_at]) for row in rows],
    )
    try:
        _upsert(connection.raw, table, rows)
    except sqlite3.IntegrityError as error:
        if not _is_id_taken(table, error):
            raise
        raise ProjectionFailed(
            name,
            f"{connection.path}: a row of {table.name} cannot be written ({error}): another"
            " program's row has the id that it must have",
            "see which, and let who wrote it take another id (or `UPDATE` it in the same shell):"
            f" `sqlite3 -safe -readonly {quoted(connection.path)} {quoted(_squatters(table))}`",
        ) from None


def _squatters(table: Table) -> str:
    prefix = f"{table.prefix}%"
    return (
        f"SELECT id, {table.key} FROM {table.name}"
        f" WHERE id LIKE '{prefix}' AND {table.key} NOT LIKE '{prefix}'"
    )


def _upsert(connection: sqlite3.Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Many rows by each statement: between two of them Python has to be waited for."""
    at = 0
    while at < len(rows):
        many = min(1 << (len(rows) - at).bit_length() - 1, MOST_ROWS)
        while many > 1 and sum(map(size_of, rows[at : at + many])) > MOST_BYTES:
            many //= 2
        connection.execute(upsert(table, many), [*chain.from_iterable(rows[at : at + many])])
        at += many


def _is_id_taken(table: Table, error: sqlite3.IntegrityError) -> bool:
    """Of a table that is shared with others; what their triggers refuse is another thing."""
    return bool(table.prefix) and error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
