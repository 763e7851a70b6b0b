"""What PostgreSQL says, as errors of this program with a hint."""

import re
from typing import Final

import psycopg

from session_projector.worker.errors import (
    DatabaseUnavailable,
    InterventionRequired,
    ProjectionFailed,
    ProjectorError,
    argument,
    no_memory,
    quoted,
)
from session_projector.worker.storage.postgres.target import Target, identifier

_SEE_SERVER: Final = "see the server's log, then try again; a daemon does so by itself"
_OF_ONE_PROJECTION: Final = ("22", "23", "42P01", "42703", "42804", "54000", "P0001")
"""Codes, or how they begin, of what can only be wrong with the rows of one projection."""
_REFUSED_ROW: Final = ("23", "P0001")
# A server that refuses a connection says no code that libpq hands on, so its words are looked at,
# in the language of most; of what is not known here a daemon waits for the end.
_REFUSED: Final = {
    "password authentication failed": "give the right password, in ~/.pgpass or PGPASSFILE",
    "no password supplied": "give the password, in ~/.pgpass or PGPASSFILE",
    "no pg_hba.conf entry": "let the server admit this user and host (pg_hba.conf)",
    "authentication failed": "see who the server takes this user for (pg_hba.conf)",
    "role .* does not exist": "correct the URL, or create the role, with a superuser: {role}",
    "database .* does not exist": "correct the URL, or create the database: {database}",
    "permission denied for database": "let the role in, with a superuser: {connect}",
    "certificate|sslmode|SSL is not enabled|does not support SSL": "see sslmode and its files",
    "invalid connection option|invalid .* value|definition of service": "correct the URL",
}


def unreachable(target: Target, error: psycopg.Error) -> ProjectorError:
    """The error of a connection that cannot be had."""
    name, said = target.name, first_line(error)
    for words, hint in _REFUSED.items():
        if re.search(words, said) and "starting up" not in said:
            return InterventionRequired(f"{name}: {said}", hint.format(**_cures(target, said)))
    hint = "see whether the server runs and can be reached, then try again"
    if "slots" in said or "too many" in said:
        hint = (
            "the server has no connection left (max_connections, or a limit of the role or"
            " database): end some, or raise it, then try again"
        )
    return DatabaseUnavailable(f"{name} cannot be reached ({said})", hint)


def _cures(target: Target, said: str) -> dict[str, str]:
    """The commands that make what a refused connection lacks, by what they make."""
    named = re.search('"(.*)"', said)
    lacking = named[1] if named else ""
    role = target.settings.get("user", "")
    database = target.settings.get("dbname", role)
    create_role = f"CREATE ROLE {identifier(lacking)} LOGIN"
    create = f"CREATE DATABASE {identifier(lacking)}"
    let_in = f"GRANT CONNECT ON DATABASE {identifier(database)} TO {identifier(role)}"
    as_superuser = target.name_for("postgres", "postgres")
    return {
        "role": f"`{psql(as_superuser, create_role)}`",
        "database": f"`{psql(target.name_for(role, 'postgres'), create)}`",
        "connect": f"`{psql(as_superuser, let_in)}`",
    }


def first_line(error: Exception) -> str:
    """What an error says in one line, without what libpq says of each address it tried."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    fatal = [line for line in lines if "FATAL:" in line]
    line = (fatal or lines)[0]
    return re.sub(r"^.*FATAL:\s*", "", line)


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone: the server ended it, or cannot be reached any more."""
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate in ("57P01", "57P02", "57P03", "57P05", "25P03")
        or error.sqlstate.startswith("08")
    )  # fmt: skip


class translated:  # noqa: N801 - a class, as a generator would cost each statement 1 µs more
    """Raise what PostgreSQL says in the block as an error with a hint.

    `name` is the database's. With `projection`, what can only be wrong with the rows of that one is
    its failure alone.
    """

    def __init__(self, name: str, projection: str | None = None) -> None:
        self._name = name
        self._projection = projection

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if isinstance(error, psycopg.Error):
            raise _translate(self._name, error, self._projection) from error
        if isinstance(error, MemoryError):
            raise no_memory() from error
        if isinstance(error, OverflowError | ValueError) and self._projection is not None:
            raise _failed(self._projection, str(error)) from error


def _failed(name: str, said: str, code: str = "") -> ProjectionFailed:
    hint = f"build its views again: `projector projection drop {argument(name)}`, then run again"
    if code.startswith(_REFUSED_ROW):
        hint = (
            "a trigger, an index or a constraint that somebody gave its table refuses the row; see"
            " which: `projector doctor`"
        )
    return ProjectionFailed(name, f"PostgreSQL says: {said}", hint)


def _translate(name: str, error: psycopg.Error, projection: str | None) -> ProjectorError:
    said, code = first_line(error), error.sqlstate or ""
    if is_lost(error):
        return DatabaseUnavailable(f"{name}: the connection was lost ({said})", _SEE_SERVER)
    if projection is not None and (
        code.startswith(_OF_ONE_PROJECTION) or isinstance(error, psycopg.DataError)
    ):
        return _failed(projection, said, code)
    match code:
        case "55P03":
            return DatabaseUnavailable(
                f"{name}: another session holds a lock for too long ({said})",
                _see_locks(name),
                lacks="lock",
            )
        case "40001" | "40P01" | "25P02":
            return DatabaseUnavailable(f"{name}: {said}", "try again")
        case "57014":
            return DatabaseUnavailable(
                f"{name}: a statement did not end, and was stopped ({said})", _see_locks(name)
            )
        case "25006":
            return DatabaseUnavailable(
                f"{name}: the server takes no writes now, as a standby does ({said})",
                "name the primary in the URL, or all hosts (target_session_attrs=read-write)",
            )
        case _ if code.startswith("53"):
            return DatabaseUnavailable(
                f"{name}: the server is short of something ({said})",
                "make room on its disk, or give it more memory or connections, then try again",
                lacks="space" if code == "53100" else "database",
            )
        case _ if code.startswith(("58", "F0")):
            return DatabaseUnavailable(f"{name}: {said}", "see the server's log, then try again")
        case "42501":
            return InterventionRequired(
                f"{name}: this role may not do that ({said})",
                "name the role that owns the schema in the URL, or let that role give this one what"
                " it lacks, by the options --writer and --reader of db setup; where it is the owner"
                " itself that lacks it: `projector db setup`",
            )
        case "42P01" | "42703" | "3F000" | "42883":
            return InterventionRequired(
                f"{name}: {said}", "create what is gone again: `projector db setup`"
            )
        case _ if code.startswith("XX"):
            return InterventionRequired(
                f"{name}: the server found damage ({said})", "restore a backup, or ask who runs it"
            )
    return InterventionRequired(
        f"{name}: PostgreSQL says: {said}", "see what is wrong: `projector doctor`"
    )


def _see_locks(name: str) -> str:
    look = (
        "SELECT pid, usename, application_name, state, now() - xact_start AS age, left(query, 60)"
        " FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start"
    )
    return f"see who is in the way, then try again: `{psql(name, look)}`"


def psql(name: str, sql: str) -> str:
    """The shell command that runs a statement."""
    return f"psql {quoted(without_schema(name))} -c {quoted(sql)}"


def without_schema(url: str) -> str:
    """A URL as libpq takes it."""
    return re.sub(r"\bschema=[^&]*&?", "", url).rstrip("?&")
