"""The checks of what roles may do."""

from collections.abc import Iterator
from typing import Final

from session_projector.worker.errors import argument
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.doctor.asking import (
    OURS,
    as_superuser,
    asked,
    commands,
)
from session_projector.worker.storage.postgres.target import identifier

_MAY_ADD: Final = ("id", "key", "data", "packed", "created_at")
"""The columns of the log that a writer may write to."""


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
    elif not reads_all:
        said = f"the role {role} cannot see how long the transactions of other roles have been open"
        grant = f"GRANT pg_read_all_stats TO {identifier(role)}"
        yield Check("rights", "warn", said, f"as a superuser: {commands(connection, grant)}")
    else:
        yield Check("rights", "ok", f"the role {role} may do all that a daemon does")


def writers(connection: Connection) -> Iterator[Check]:
    """Check that other roles may add events and do nothing else to the log."""
    log = f"{connection.target.prefix}event_log"
    granted = connection.rows(
        "SELECT a.grantee, a.privilege_type, NULL FROM pg_catalog.pg_class,"
        " LATERAL aclexplode(relacl) AS a WHERE oid = %(log)s::regclass AND a.grantee <> relowner"
        " UNION ALL SELECT a.grantee, a.privilege_type, attname::text FROM pg_catalog.pg_attribute"
        " JOIN pg_catalog.pg_class AS c ON c.oid = attrelid, LATERAL aclexplode(attacl) AS a"
        " WHERE attrelid = %(log)s::regclass AND a.grantee <> relowner"
        " UNION ALL SELECT a.grantee, 'SEQUENCE ' || a.privilege_type, NULL"
        " FROM pg_catalog.pg_class, LATERAL aclexplode(relacl) AS a"
        " WHERE oid = to_regclass(%(log)s || '_seq_seq')"
        " AND a.grantee <> relowner AND a.privilege_type <> 'SELECT'",
        {"log": log},
    )
    names = {
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
    adding: set[int] = set()
    too_much: dict[int, set[str]] = {}
    for role, privilege, column in granted:
        if privilege == "INSERT" and column in _MAY_ADD:
            adding.add(role)
        elif privilege not in ("SELECT", "MAINTAIN", "REFERENCES"):
            adding.add(role)
            too_much.setdefault(role, set()).add(f"{privilege} {column or ''}".strip())
    endless = [names[role][0] for role in adding if role in names and not names[role][1]]
    for role, privileges in too_much.items():
        name = names.get(role, ("everybody", False))[0]
        said = f"{name} may do more than add events to event_log: {', '.join(sorted(privileges))}"
        fix = f"leave it what a writer needs: `projector db setup --writer {argument(name)}`"
        if role not in names:  # PUBLIC
            revoke = f"REVOKE ALL ON {log}, {log}_seq_seq FROM PUBLIC"
            fix = commands(connection, revoke)
        yield Check("writers", "warn", said, fix)
    for name in endless:
        said = f"{name} may leave an event uncommitted for ever, and none after it would be read"
        sets = f"ALTER ROLE {identifier(name)} SET idle_in_transaction_session_timeout = '60s'"
        yield Check("writers", "warn", said, as_superuser(connection, sets))
    if not too_much and not endless:
        told = ", ".join(sorted(names[role][0] for role in adding)) or "no role but the owner"
        yield Check("writers", "ok", f"{told} may add events, and do nothing else to the log")
