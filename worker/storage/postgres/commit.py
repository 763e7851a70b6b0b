"""What a change of a projection is in SQL."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec.structs import astuple

from session_projector.projections.event import MAX_NAME_BYTES
from session_projector.worker.storage.port import Change, Checkpoint, size_of
from session_projector.worker.storage.postgres.checkpoints import forget
from session_projector.worker.storage.postgres.connection import Connection, Values
from session_projector.worker.storage.postgres.sql import arrays, column, owned, upsert
from session_projector.worker.storage.postgres.tables import named
from session_projector.worker.storage.postgres.text import escaped

MOST_ROWS: Final = 1000
MOST_BYTES: Final = 8 * 1024 * 1024
"""Of a statement."""
SHOWN: Final = 1000
_ONE_STATEMENT: Final = 5
"""Not so many that rows have to be written in parts."""
_MOVE: Final = (
    "UPDATE {0}checkpoint SET version = %s, position = %s, generation = %s, digest = %s,"
    " skipped = %s WHERE name = %s AND version = %s AND position = %s AND generation = %s"
    " AND digest = %s"
)
Statement = tuple[str, Values]


def move(connection: Connection, change: Change) -> Statement:
    """The compare-and-set of a checkpoint, which gives a row where it succeeds."""
    before, after = change.before, change.after
    moved = (after.version, after.complete, after.generation, after.digest, after.skipped)
    known = (before.name, before.version, before.complete, before.generation, before.digest)
    return f"{_MOVE.format(connection.prefix)} RETURNING 1", (*moved, *known)


def all_at_once(connection: Connection, changes: Sequence[Change]) -> list[Statement]:
    """Statements for one transaction: one alone, if it may, as each takes its time. They fail, by a
    division by zero, where a checkpoint is not moved."""
    moves = [move(connection, change) for change in changes]
    others = [[*rest(connection, change)] for change in changes]
    if all(len(some) <= _ONE_STATEMENT for some in others) and not any(
        change.before.deferred or change.after.deferred for change in changes
    ):
        return [_joined(moves, [one for some in others for one in some])]
    return [
        one
        for moved, some in zip(moves, others, strict=True)
        for one in (_joined([moved], []), *some)
    ]


def _joined(moves: Sequence[Statement], others: Sequence[Statement]) -> Statement:
    """One statement of several, none of which sees what another does."""
    every = [*moves, *others]
    withs = ", ".join(f"s{n} AS ({sql})" for n, (sql, _) in enumerate(every))
    found = ", ".join(f"1 / (SELECT count(*) FROM s{n})" for n in range(len(moves)))
    return f"WITH {withs} SELECT {found}", [one for _, values in every for one in values]


def rest(connection: Connection, change: Change) -> Iterator[Statement]:
    """What follows it in the transaction."""
    before, after, table, p = change.before, change.after, change.table, connection.prefix
    if before.deferred or after.deferred:
        yield from _defer(p, before, after)
    if (after.version, after.position) != (before.version, before.position):
        yield forget(connection, before.name)
    sql = upsert(connection, table) if change.rows else ""
    for rows in _parts(change.rows):
        yield sql, arrays(table, rows)
    if change.removed:
        yield (
            f"DELETE FROM {named(connection, table.name)} WHERE {owned(table)}"
            f" AND {column(table.key)} = ANY(%b::text[])",
            ([escaped(key) for key in change.removed],),
        )
    if change.quarantined:
        yield (
            f"INSERT INTO {p}quarantine (projection, seq, id, key, reason)"
            f" SELECT %s, e.seq, {_shown('e.id')}, {_shown('e.key')}, r.reason"
            " FROM unnest(%b::bigint[], %b::text[]) AS r (seq, reason)"
            f" JOIN {p}event_log AS e ON e.seq = r.seq"
            " ON CONFLICT (projection, seq) DO UPDATE"
            " SET id = excluded.id, key = excluded.key, reason = excluded.reason",
            (
                before.name,
                [rejected.seq for rejected in change.quarantined],
                [escaped(rejected.reason) for rejected in change.quarantined],
            ),
        )
    if change.cleared:
        yield (
            f"DELETE FROM {p}quarantine WHERE projection = %s AND seq = ANY(%b::bigint[])",
            (before.name, [*change.cleared]),
        )


def _defer(p: str, before: Checkpoint, after: Checkpoint) -> Iterator[Statement]:
    """Only what changed, as there may be many."""
    if gone := before.deferred.keys() - after.deferred.keys():
        yield (
            f"DELETE FROM {p}deferred WHERE projection = %s AND key = ANY(%s::text[])",
            (after.name, [*map(escaped, gone)]),
        )
    if after.position != before.position and len(gone) < len(before.deferred):
        yield (
            f"UPDATE {p}deferred SET read_position = %s WHERE projection = %s",
            (after.position, after.name),
        )
    for key, view in after.deferred.items():
        if before.deferred.get(key) != view:
            yield (
                f"INSERT INTO {p}deferred"
                " (projection, key, folded_position, read_position, bytes, cost_ms, since)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (projection, key) DO UPDATE SET"
                " folded_position = excluded.folded_position, bytes = excluded.bytes,"
                " read_position = excluded.read_position, cost_ms = excluded.cost_ms,"
                " since = excluded.since",
                (after.name, escaped(key), view.position, after.position, *astuple(view)[1:]),
            )


def _shown(name: str) -> str:
    """What the quarantine keeps of an `id` or `key`."""
    return (
        f"CASE WHEN octet_length({name}) > {MAX_NAME_BYTES} THEN left({name}, {SHOWN})"
        f" ELSE {name} END"
    )


def _parts(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The rows of each statement."""
    start = size = 0
    for at, row in enumerate(rows):
        if at > start and (at - start >= MOST_ROWS or size + size_of(row) > MOST_BYTES):
            yield rows[start:at]
            start, size = at, 0
        size += size_of(row)
    if start < len(rows):
        yield rows[start:]
