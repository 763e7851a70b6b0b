"""The checks of what roles may do."""

from collections.abc import Iterator, Sequence
from typing import Final

from session_projector.worker.errors import argument
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.postgres import migrate
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.doctor.asking import (
    OURS,
    as_superuser,
    asked,
    commands,
)
from session_projector.worker.storage.postgres.roles import end_idle, revoked
from session_projector.worker.storage.postgres.target import identifier

_MAY_ADD: Final = ("id", "key", "data", "packed", "created_at")
"""The columns of the log that a writer may write to."""

_MAY_USE: Final = (
    "SELECT has_schema_privilege(%s, oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = %s"
)


def rights(connection: Connection) -> Iterator[Check]:
    """Check whether this role may do what a daemon does, and see what it needs to see."""
    role, reads_all = connection.row(
        "SELECT current_user::text, pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')"
    ) or ("", True)
    owned_by_others = asked(
        connection,
        "SELECT relname::text, pg_catalog.pg_get_userbyid(relowner)::text"
        f" FROM {OURS} WHERE NOT pg_catalog.pg_has_role(relowner, 'USAGE') ORDER BY 1",
    )
    if owned_by_others:
        owners = sorted({owner for _, owner in owned_by_others})
        tables = ", ".join(table for table, _ in owned_by_others)
        said = f"the role {role} does not own {tables}: it cannot run a daemon or replay"
        fix = f"run those as {', '.join(owners)}; this role may read and wait"
        yield Check("rights", "warn", said, fix)
    elif lacking := revoked(connection, migrate.readable(connection)):
        said = (
            f"the owner {lacking[0][1]} lacks rights on {', '.join(table for table, _ in lacking)}"
        )
        fix = "give it back what an owner has: `projector db setup`"
        yield Check("rights", "fail", f"{said}: somebody revoked them", fix)
    elif not reads_all:
        said = f"the role {role} cannot see how long the transactions of other roles have been open"
        grant = f"GRANT pg_read_all_stats TO {identifier(role)}"
        yield Check("rights", "warn", said, as_superuser(connection, grant))
    else:
        yield Check("rights", "ok", f"the role {role} may do all that a daemon does")


def writers(connection: Connection) -> Iterator[Check]:
    """Check that other roles may add events, all of the contract's columns, and change nothing."""
    log = f"{connection.target.prefix}event_log"
    names = _roles(connection)
    adding: set[int] = set()
    too_much: dict[tuple[int, str], set[str]] = {}
    for role, table, privilege, column in _granted(connection):
        if (table, privilege) == ("event_log", "INSERT") and column in _MAY_ADD:
            adding.add(role)
        elif privilege not in ("SELECT", "MAINTAIN", "REFERENCES"):
            too_much.setdefault((role, table), set()).add(f"{privilege} {column or ''}".strip())
    adding |= {role for role, table in too_much if table == "event_log"}
    wrong = [
        _too_much(connection, names.get(role, ("", False))[0], table, privileges)
        for (role, table), privileges in too_much.items()
    ]
    for name in sorted(names[role][0] for role in adding if role in names and not names[role][1]):
        said = f"{name} may leave an event uncommitted for ever, and none after it would be read"
        wrong.append(
            Check("writers", "warn", said, as_superuser(connection, end_idle(connection, name)))
        )
    told = sorted(names[role][0] for role in adding if role in names)
    needs = [(log, column, "INSERT") for column in _MAY_ADD]
    needs += [(log, "seq", "SELECT"), (log, "id", "SELECT")]
    needs += [(f"{connection.target.prefix}checkpoint", "position", "SELECT")]
    wrong += _lacking(connection, "writers", told, needs, "--writer")
    who = ", ".join(told) or "no role but the owner"
    ok = Check("writers", "ok", f"{who} may add events, and change nothing else")
    yield from wrong or [ok]


def readers(connection: Connection) -> Iterator[Check]:
    """Check that the roles that may read the checkpoints may read all the rest."""
    tables = migrate.readable(connection)
    reading = {
        role
        for role, table, privilege, column in _granted(connection)
        if (table, privilege, column) == ("checkpoint", "SELECT", None)
    }
    told = sorted(name for role, (name, _) in _roles(connection).items() if role in reading)
    needs = [(connection.target.prefix + identifier(name), "", "SELECT") for name in tables]
    who = ", ".join(told) or "no role but the owner"
    yield from _lacking(connection, "readers", told, needs, "--reader") or [
        Check("readers", "ok", f"{who} may read all tables")
    ]


def _granted(connection: Connection) -> list[tuple[int, str, str, str | None]]:
    """What others than the owner may do with our tables: role, table, privilege, column."""
    return connection.rows(
        "WITH ours AS (SELECT c.oid, relname, relowner, relacl FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace WHERE nspname = %s"
        " AND relname = ANY (%s))"
        " SELECT a.grantee, relname::text, a.privilege_type, NULL FROM ours,"
        " LATERAL pg_catalog.aclexplode(relacl) AS a"
        " WHERE a.grantee <> relowner AND relname <> 'event_log_seq_seq'"
        " UNION ALL SELECT a.grantee, relname::text, a.privilege_type, attname::text FROM ours"
        " JOIN pg_catalog.pg_attribute ON attrelid = ours.oid,"
        " LATERAL pg_catalog.aclexplode(attacl) AS a WHERE a.grantee <> relowner"
        " UNION ALL SELECT a.grantee, 'event_log', 'SEQUENCE ' || a.privilege_type, NULL FROM ours,"
        " LATERAL pg_catalog.aclexplode(relacl) AS a WHERE relname = 'event_log_seq_seq'"
        " AND a.grantee <> relowner AND a.privilege_type <> 'SELECT'",
        (connection.target.schema, [*migrate.readable(connection), "event_log_seq_seq"]),
    )


def _roles(connection: Connection) -> dict[int, tuple[str, bool]]:
    """The roles of the server, and whether a transaction of theirs that stays idle is ended."""
    return {
        oid: (name, is_ended)
        for oid, name, is_ended in connection.rows(
            "SELECT r.oid, rolname::text, EXISTS (SELECT 1 FROM pg_catalog.pg_db_role_setting AS s"
            " WHERE setrole IN (0, r.oid) AND setdatabase IN (0, (SELECT oid FROM"
            " pg_catalog.pg_database WHERE datname = current_database()))"
            " AND array_to_string(setconfig, ' ') ~ '(^| )idle_in_transaction_session_timeout=')"
            " OR (SELECT reset_val <> '0' AND source <> 'session' FROM pg_catalog.pg_settings"
            " WHERE name = 'idle_in_transaction_session_timeout') FROM pg_catalog.pg_roles AS r"
        )
    }


def _too_much(connection: Connection, role: str, table: str, privileges: set[str]) -> Check:
    """The finding for a role, or for everybody (''), that may change what only a daemon should."""
    said = f"{role or 'everybody'} may do more than "
    said += f"add events to {table}" if table == "event_log" else f"read {table}"
    said += f": {', '.join(sorted(privileges))}"
    if role and table == "event_log":
        fix = f"leave it what a writer needs: `projector db setup --writer {argument(role)}`"
    else:
        at = connection.target.prefix + identifier(table)
        at += f", {connection.target.prefix}event_log_seq_seq" if table == "event_log" else ""
        to = identifier(role) if role else "PUBLIC"
        rights = "ALL" if table == "event_log" else "INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER"
        fix = commands(connection, f"REVOKE {rights} ON {at} FROM {to}")
    return Check("writers", "warn", said, fix)


def _lacking(
    connection: Connection,
    check: str,
    roles: Sequence[str],
    needs: Sequence[tuple[str, str, str]],
    option: str,
) -> list[Check]:
    """The findings for roles that lack some of the rights that they need."""
    wrong = []
    for role in roles:
        lacks = (
            []
            if connection.value(_MAY_USE, (role, connection.target.schema))
            else ["USAGE of the schema"]
        )
        lacks += [
            f"{privilege} on {table.rpartition('.')[2]} {column}".strip()
            for table, column, privilege in needs
            if not connection.value(
                "SELECT has_column_privilege(%(role)s, %(table)s, %(column)s, %(privilege)s)"
                if column
                else "SELECT has_table_privilege(%(role)s, %(table)s, %(privilege)s)",
                {"role": role, "table": table, "column": column, "privilege": privilege},
            )
        ]
        if lacks:
            fix = f"give it back: `projector db setup {option} {argument(role)}`"
            wrong.append(Check(check, "warn", f"{role} lacks {', '.join(lacks)}", fix))
    return wrong
