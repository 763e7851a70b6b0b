"""What draws the positions of the log: one by one, each above the one before."""

from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.log import literal


def amiss(connection: Connection) -> tuple[str, str] | None:
    """What is wrong with it, and the statement that puts it right; None where nothing is."""
    log = f"{connection.target.prefix}event_log"
    row = connection.row(
        "SELECT attidentity::text, seqcache, seqincrement, seqcycle, s.last_value,"
        f" (SELECT coalesce(max(seq), 0) FROM {connection.prefix}event_log)"
        " FROM pg_catalog.pg_attribute LEFT JOIN pg_catalog.pg_sequence ON seqrelid ="
        " pg_catalog.pg_get_serial_sequence(%(log)s, 'seq')::regclass"
        " LEFT JOIN pg_catalog.pg_sequences AS s ON schemaname = %(schema)s"
        " AND sequencename = 'event_log_seq_seq'"
        " WHERE attrelid = %(log)s::regclass AND attname = 'seq'",
        {"log": log, "schema": connection.target.schema},
    )
    identity, cache, increment, cycles, last, newest = row or ("", 1, 1, False, 0, 0)
    alter = f"ALTER TABLE {log} ALTER COLUMN seq"
    if not identity:
        said = "event_log.seq is no identity column any more: no event can be added"
        add = f"GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {log}_seq_seq START {newest + 1})"
        return said, f"{alter} ADD {add}"
    if identity != "a":
        said = "event_log.seq is an identity column BY DEFAULT, not ALWAYS"
        return said, f"{alter} SET GENERATED ALWAYS"
    if (cache, increment, cycles) != (1, 1, False):
        said = (
            f"positions are drawn with CACHE {cache}, INCREMENT {increment}"
            f"{', CYCLE' if cycles else ''}: an event may get a position below one that was read"
        )
        return said, f"{alter} SET CACHE 1 SET INCREMENT 1 SET NO CYCLE"
    if (following := _following(connection, log, last)) is not None and following <= newest:
        said = f"the next position, {following:,}, is not above the newest one, {newest:,}"
        return said, f"SELECT setval({literal(f'{log}_seq_seq')}, (SELECT max(seq) FROM {log}))"
    return None


def _following(connection: Connection, log: str, last: int | None) -> int | None:
    """The position that is drawn next, None where this role may not know."""
    if last is not None:
        return last + 1
    named = f"{log}_seq_seq"  # which was set, and not drawn from since then
    if not connection.value("SELECT has_sequence_privilege(%s, 'SELECT')", (named,)):
        return None
    return int(connection.value(f"SELECT last_value FROM {connection.prefix}event_log_seq_seq"))
