"""What the roles of writers and readers may do."""

from collections.abc import Sequence
from typing import Final

import psycopg

from session_projector.worker.errors import UsageError
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.target import identifier

_OF_AN_OWNER: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
_IDLE: Final = "idle_in_transaction_session_timeout"
_IDLE_S: Final = 60
"""An event left uncommitted keeps all after it from being read: its writer is ended then."""


def owner_name(connection: Connection) -> str:
    """The URL by which the owner of the log opens it, where this role has not its rights."""
    owner = connection.row(
        "SELECT rolname::text FROM pg_catalog.pg_class, pg_catalog.pg_roles AS r"
        " WHERE relname = 'event_log' AND relnamespace = (SELECT oid FROM"
        " pg_catalog.pg_namespace WHERE nspname = %s) AND pg_catalog.pg_has_role(r.oid, relowner,"
        " 'USAGE') AND NOT pg_catalog.pg_has_role(relowner, 'USAGE')"
        " ORDER BY rolcanlogin DESC, r.oid <> relowner, rolsuper, rolname LIMIT 1",
        (connection.target.schema,),
    )
    return connection.target.name_for(owner[0]) if owner else connection.name


def ender_name(connection: Connection, role: str) -> str:
    """The URL by which a session of a role can be ended: its own role may, and a superuser."""
    may = connection.value(
        "SELECT rolsuper OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE') FROM"
        " pg_catalog.pg_roles WHERE rolname = current_user"
    )
    return connection.name if may else connection.target.name_for(role)


def check(connection: Connection, *roles: str | None) -> None:
    """Refuse roles that are not there, or that may do everything anyway."""
    for role in filter(None, roles):
        found = connection.row(
            "SELECT rolsuper, pg_catalog.pg_has_role(oid, coalesce((SELECT relowner FROM"
            " pg_catalog.pg_class WHERE relname = 'event_log' AND relnamespace ="
            " (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)),"
            " (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)), 'USAGE')"
            " FROM pg_catalog.pg_roles WHERE rolname = %s",
            (connection.target.schema, role),
        )
        if found is None:
            raise UsageError(
                f"{connection.name}: there is no role {role}",
                f"create it, and run this again: CREATE ROLE {identifier(role)} LOGIN PASSWORD '…'",
            )
        if any(found):
            raise UsageError(
                f"{connection.name}: the role {role} is a superuser, or owns event_log: it may do"
                " everything there",
                "name a role of its own: CREATE ROLE NAME LOGIN PASSWORD '…'",
            )


def revoked(connection: Connection, tables: Sequence[str]) -> list[tuple[str, str]]:
    """The tables on which their owner lacks what an owner has by default, and who that is; those
    that this role has the owner's rights to put right."""
    return connection.rows(
        "SELECT relname::text, pg_catalog.pg_get_userbyid(relowner)::text"
        " FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p') AND relname = ANY (%s)"
        " AND relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)"
        " AND pg_catalog.pg_has_role(relowner, 'USAGE') AND NOT (SELECT bool_and("
        "pg_catalog.has_table_privilege(relowner, pg_class.oid, privilege))"
        " FROM unnest(%s::text[]) AS privilege) ORDER BY 1",
        ([*tables], connection.target.schema, [*_OF_AN_OWNER]),
    )


def let_own(connection: Connection, tables: Sequence[str]) -> list[str]:
    """Give owners back what was revoked from them; returns what that was."""
    found = revoked(connection, tables)
    for table, owner in found:
        connection.rows(f"GRANT ALL ON {connection.prefix}{_named(table)} TO {_named(owner)}")
    return [f"the rights of {owner} on {table}" for table, owner in found]


def let_write(connection: Connection, role: str) -> None:
    """Let a role add events and wait for them, and do nothing else to the log."""
    log, to = f"{connection.prefix}event_log", _named(role)
    connection.rows(f"GRANT USAGE ON SCHEMA {connection.prefix[:-1]} TO {to}")
    connection.rows(f"REVOKE ALL ON {log} FROM {to}")
    connection.rows(f"REVOKE ALL ON SEQUENCE {log}_seq_seq FROM {to}")
    connection.rows(
        f"GRANT INSERT (id, key, data, packed, created_at), SELECT (seq, id) ON {log} TO {to}"
    )
    # As `position >= seq` is how a writer waits until its event is in the views.
    connection.rows(f"GRANT SELECT (name, position) ON {connection.prefix}checkpoint TO {to}")
    _end_when_idle(connection, role)


def _end_when_idle(connection: Connection, role: str) -> None:
    """Let no transaction of a role stay idle, unless somebody chose how long, or we may not."""
    chosen = connection.row(
        "SELECT 1 FROM pg_catalog.pg_db_role_setting WHERE array_to_string(setconfig, ' ') LIKE %s"
        " AND setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)",
        (f"%{_IDLE}=%", role),
    )
    if chosen is None:
        try:
            with connection.raw.transaction():
                connection.raw.execute(end_idle(connection, role).encode())
        except psycopg.errors.InsufficientPrivilege:
            return  # doctor says so


def end_idle(connection: Connection, role: str) -> str:
    """The statement that lets no transaction of a role stay idle in this database."""
    database = connection.value("SELECT current_database()::text")
    return (
        f"ALTER ROLE {identifier(role)} IN DATABASE {identifier(database)}"
        f" SET {_IDLE} = '{_IDLE_S}s'"
    )


def let_read(connection: Connection, role: str, tables: list[str]) -> None:
    """Let a role read some tables."""
    to = _named(role)
    connection.rows(f"GRANT USAGE ON SCHEMA {connection.prefix[:-1]} TO {to}")
    named = ", ".join(connection.prefix + _named(table) for table in tables)
    connection.rows(f"GRANT SELECT ON {named} TO {to}")
    connection.rows(f"GRANT EXECUTE ON FUNCTION {connection.prefix}view_json(bytea) TO {to}")


def let_readers_read(connection: Connection, table: str) -> None:
    """Let those who may read `checkpoint` read a new table of a projection, too."""
    readers = connection.rows(
        "SELECT a.grantee::pg_catalog.regrole::text FROM pg_catalog.pg_class,"
        " LATERAL pg_catalog.aclexplode(relacl) AS a WHERE relname = 'checkpoint' AND relnamespace"
        " = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s) AND a.grantee <> relowner"
        " AND a.privilege_type = 'SELECT'",
        (connection.target.schema,),
    )
    for (role,) in readers:  # quoted by the server where it must be; '-' is everybody
        to = "PUBLIC" if role == "-" else role.replace("%", "%%")
        connection.rows(f"GRANT SELECT ON {connection.prefix}{_named(table)} TO {to}")


def _named(name: str) -> str:
    """A name as it stands in a statement that the driver looks through for values."""
    return identifier(name).replace("%", "%%")
