"""What the checks ask, and the commands that they give."""

from collections.abc import Sequence
from typing import Any, Final

from session_projector.worker.storage.postgres import migrate
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.errors import psql
from session_projector.worker.storage.postgres.roles import owner_name

OURS: Final = (
    "(SELECT c.* FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n"
    " ON n.oid = relnamespace WHERE nspname = %(schema)s AND relname = ANY (%(tables)s)"
    " AND relkind IN ('r', 'p')) AS ours"
)


def commands(connection: Connection, *statements: str) -> str:
    """The commands by which the owner runs statements, one after the other."""
    return _run_by(owner_name(connection), statements)


def as_superuser(connection: Connection, *statements: str) -> str:
    """The same, of statements that no other role may run: by `postgres`, unless this one may."""
    is_one = connection.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    if is_one:
        return _run_by(connection.name, statements)
    fix = _run_by(connection.target.name_for("postgres"), statements)
    return f"this role may not; with a superuser, such as postgres: {fix}"


def _run_by(name: str, statements: Sequence[str]) -> str:
    return ", then ".join(f"`{psql(name, one)}`" for one in statements)


def asked(connection: Connection, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    """The answer to a question about our tables, which stand in `OURS`."""
    tables = [*migrate.tables()]
    return connection.rows(sql, {"schema": connection.target.schema, "tables": tables, **values})
