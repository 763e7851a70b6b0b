"""Which projections there are in a database, and taking one out of it."""

from collections.abc import Iterable, Iterator

import msgspec
import structlog

from session_projector.projections.event import MAX_EVENT_BYTES, LogRow
from session_projector.projections.projection import Projection, Table
from session_projector.worker import registry
from session_projector.worker.errors import Finding
from session_projector.worker.storage.port import digest
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import EVENT_COLUMNS

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Listed(msgspec.Struct, frozen=True):
    """A projection as its checkpoint says, and what it keeps; version None: it never ran.

    `code_version` is that of the code that is built in or installed here; None: there is none.
    """

    name: str
    version: int | None
    code_version: int | None
    position: int
    digest: str
    skipped: int
    kept_in: str
    rows: int
    quarantined: int


def listing(client: Client) -> list[Listed]:
    """Every projection that is built in, installed or has a checkpoint, in this order."""
    known = registry.known()
    code = {projection.name: projection.version for projection in known}
    found = {p.name: (None, 0, "", 0, p.table) for p in known} | {
        name: (version, position, digest, skipped, _table(*kept))
        for name, version, position, digest, skipped, *kept in client.rows(
            "SELECT name, version, position, digest, skipped, kept_in, key_column, prefix"
            " FROM checkpoint ORDER BY name"
        )
    }
    return [_listed(client, name, code.get(name), *standing) for name, standing in found.items()]


def warn_of_unknown(client: Client, projections: Iterable[Projection]) -> None:
    """Say which projections this database has and nobody here has the code of."""
    known = {projection.name for projection in projections}
    for (name,) in client.rows("SELECT name FROM checkpoint ORDER BY name"):
        if name not in known:
            log.warning(
                "projection_without_code",
                projection=name,
                hint="install its package or name it with --projection MODULE:NAME; if it is not"
                f" wanted any more: projector projection drop {name}",
            )


def find(client: Client, name: str) -> Listed:
    """One of `listing`; raises `Finding`."""
    known = listing(client)
    for listed in known:
        if listed.name == name:
            return listed
    raise Finding(
        f"there is no projection {name} in {client.path}",
        f"there are {', '.join(listed.name for listed in known)}",
    )


def versions(client: Client, projections: Iterable[Projection]) -> Iterator[tuple[Projection, int]]:
    """Those that have a checkpoint, and the version that it has."""
    found = dict(client.rows("SELECT name, version FROM checkpoint"))
    return ((p, int(found[p.name])) for p in projections if p.name in found)


def fits_log(client: Client, position: int, remembered: str) -> bool:
    """Whether the event at a checkpoint is the one that the checkpoint remembers."""
    rows = client.rows(
        f"SELECT {EVENT_COLUMNS} FROM event_log WHERE seq = :seq",
        {"seq": position, "max": MAX_EVENT_BYTES},
    )
    return not position or any(digest(LogRow(*row)) == remembered for row in rows)


def drop(client: Client, name: str) -> None:
    """Delete a projection's rows, its quarantine and its checkpoint, in one transaction."""
    with client.transaction():
        ((kept_in, key, prefix),) = client.rows(
            "SELECT kept_in, key_column, prefix FROM checkpoint WHERE name = ?", (name,)
        )
        if prefix:
            if _is_there(client, kept_in):
                bounds, column = _table(kept_in, key, prefix).bounds, _quoted(key)
                statement = f"DELETE FROM {_quoted(kept_in)} WHERE {column} >= ? AND {column} < ?"
                client.connection.execute(statement, bounds)
        elif _is_there(client, kept_in):
            client.connection.execute(f"DROP TABLE {_quoted(kept_in)}")
        client.connection.execute("DELETE FROM quarantine WHERE projection = ?", (name,))
        client.connection.execute("DELETE FROM projection_state WHERE projection = ?", (name,))
        client.connection.execute("DELETE FROM checkpoint WHERE name = ?", (name,))


def _listed(
    client: Client,
    name: str,
    code_version: int | None,
    version: int | None,
    position: int,
    digest: str,
    skipped: int,
    table: Table,
) -> Listed:
    name_of, key = _quoted(table.name), _quoted(table.key)
    owned = f"{key} >= ? AND {key} < ?" if table.prefix else "? <> ?"
    counting = f"SELECT count(*) FROM {name_of} WHERE {owned}"
    there = _is_there(client, table.name)
    return Listed(
        name=name,
        version=version,
        code_version=code_version,
        position=position,
        digest=digest,
        skipped=skipped,
        kept_in=f"{table.name} ({table.prefix}…)" if table.prefix else table.name,
        rows=client.value(counting, table.bounds) if there else 0,
        quarantined=client.value("SELECT count(*) FROM quarantine WHERE projection = ?", (name,)),
    )


def _is_there(client: Client, table: str) -> bool:
    found = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
    return bool(client.value(found, (table,)))


def _quoted(name: str) -> str:
    """An identifier, whatever a checkpoint that is not ours may say."""
    return '"' + name.replace('"', '""') + '"'


def _table(kept_in: str, key: str, prefix: str) -> Table:
    return Table(kept_in, {}, key, prefix)
