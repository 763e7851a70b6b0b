"""The schema: which migrations are applied, what of it is gone or changed, and making it whole."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec

from session_projector import migrations
from session_projector.projections import BUILT_IN
from session_projector.worker.errors import InterventionRequired, upgrade
from session_projector.worker.storage.port import Setup
from session_projector.worker.storage.postgres import roles, sequence
from session_projector.worker.storage.postgres import tables as shapes
from session_projector.worker.storage.postgres.checkpoints import PostgresCheckpoints
from session_projector.worker.storage.postgres.connection import Connection, opened
from session_projector.worker.storage.postgres.locks import SETUP_CLASS
from session_projector.worker.storage.postgres.target import Target

SESSION_KEY: Final = "idx_view_session_key"
_OURS: Final = "-projector-"
_BUILT_IN: Final = [one.table for one in BUILT_IN if not one.table.prefix]
LOCK_TIMEOUT_S: Final = 10.0
_MADE: Final = re.compile(
    r"(?m)^(?:CREATE (?:OR REPLACE |UNIQUE )?(TABLE|INDEX|FUNCTION|TRIGGER) (?:\{schema\}\.)?(\w+)"
    r"|(?:ALTER TABLE \{schema\}\.(?:\w+)\s+)ADD (CONSTRAINT) (\w+))"
)
_OF_TABLE: Final = re.compile(r"(?:CREATE TABLE|ALTER TABLE|\bON) \{schema\}\.(\w+)")
_COLUMN: Final = re.compile(r"(?m)^  (\w+) (text|bigint|bytea)\b")
_DOUBLED: Final = (
    "SELECT key FROM {0}view WHERE key >= 'session:' AND key < 'session;' GROUP BY key"
    " HAVING count(*) > 1 ORDER BY key"
)
_NEWEST_ROW_WINS: Final = (
    "DELETE FROM {0}view WHERE ctid IN (SELECT ctid FROM (SELECT ctid, row_number() OVER"
    " (PARTITION BY key ORDER BY updated_at DESC, ctid DESC) AS n FROM {0}view"
    " WHERE key >= 'session:' AND key < 'session;') AS ranked WHERE n > 1)"
)
# Below 0: a rebuild that is not done, and whoever comes next does it.
_REBUILD_ALL: Final = (
    "UPDATE {0}checkpoint SET version = -abs(version), generation = generation + 1"
)
_HISTORY: Final = (
    'CREATE TABLE IF NOT EXISTS {0}umzug_meta (name text COLLATE "C" PRIMARY KEY, applied_at'
    " bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
)
# Names that no projection can have were not given by one.
_MAKE_SOUND: Final = (
    "DELETE FROM {0}deferred WHERE projection = ANY (%(names)s)",
    "DELETE FROM {0}checkpoint WHERE name = ANY (%(names)s) AND name !~ '^[a-zA-Z0-9_]{{1,200}}$'",
    "UPDATE {0}checkpoint SET position = 0, digest = '', skipped = 0, prefix = '',"
    " version = CASE WHEN abs(version / 2) < 1073741824 THEN version ELSE 0 END,"
    " generation = CASE WHEN generation BETWEEN 0 AND 1 << 30 THEN generation ELSE 0 END + 1,"
    " kept_in = left(kept_in, 200), key_column = left(key_column, 200)"
    " WHERE name = ANY (%(names)s)",
)
_KEPT_THERE: Final = "(SELECT name FROM {0}checkpoint WHERE kept_in = 'view')"
_FOLD_AGAIN: Final = (
    f"DELETE FROM {{0}}deferred WHERE projection IN {_KEPT_THERE};"
    f" DELETE FROM {{0}}projection_state WHERE projection IN {_KEPT_THERE};"
    f" DELETE FROM {{0}}quarantine WHERE projection IN {_KEPT_THERE};"
    " UPDATE {0}checkpoint SET position = 0, digest = '', skipped = 0, generation = generation + 1"
    " WHERE kept_in = 'view'"
)


class Object(NamedTuple):
    """What the migrations make, and the statements that make it; `table` is the one it is of."""

    kind: str
    name: str
    table: str
    sql: str

    @property
    def columns(self) -> dict[str, str]:
        """Of a table: name to type."""
        return dict(_COLUMN.findall(self.sql))


@cache
def objects() -> dict[tuple[str, str], Object]:
    """All that the migrations make, by kind and name, in their order."""
    found = {}
    for text in migrations.load("postgres").values():
        for block in re.split(r"\n\s*\n", text):
            if made := _MADE.search(block):
                kind, name = made[1] or made[3], made[2] or made[4]
                table = _OF_TABLE.search(block)
                found[kind, name] = Object(kind, name, table[1] if table else "", block)
    return found


def tables() -> dict[str, Object]:
    return {one.name: one for one in objects().values() if one.kind == "TABLE"}


def is_there(connection: Connection) -> bool:
    """Whether any of our migrations is applied."""
    return bool(_applied(connection))


def status(target: Target) -> list[tuple[str, bool]]:
    """Every migration and whether it is applied, oldest first."""
    with opened(target, writable=False) as connection:
        applied = _applied(connection)
    known = migrations.load("postgres").keys()
    return [(name, name in applied) for name in sorted({*known, *applied})]


def check(connection: Connection) -> None:
    """Refuse a schema that is older or newer than this program's, or not whole."""
    applied, known = _applied(connection), migrations.load("postgres").keys()
    name, schema = connection.name, connection.target.schema
    if not applied:
        raise InterventionRequired(
            f"{name} has no event log in the schema {schema}", "create it with `projector db setup`"
        )
    if newer := sorted(applied - known):
        raise InterventionRequired(
            f"{name} has a newer schema than this projector ({', '.join(newer)})",
            f"{upgrade()}; where no newer one ever ran"
            f" here, somebody wrote that: delete it from {connection.prefix}umzug_meta",
        )
    if missing := sorted(known - applied):
        raise InterventionRequired(
            f"{name} lacks {', '.join(missing)}", "upgrade it with `projector db setup`"
        )
    _check_columns(connection)
    if odd := PostgresCheckpoints(connection).unsound(strays=False):
        raise InterventionRequired(
            f"{name}: the checkpoint of {', '.join(odd)} is no position: somebody wrote to it",
            "let the projection begin at the first event again: `projector db setup`",
        )


def _check_columns(connection: Connection, *, gone_too: bool = True) -> None:
    """Refuse tables that are gone or whose columns are not those of the migrations."""
    there = _columns(connection)
    gone = [name for name in tables() if name not in there]
    if "event_log" in gone:
        raise InterventionRequired(
            f"{connection.name} lacks event_log, which nothing can create again: somebody dropped"
            " or renamed it",
            "give it its name back (ALTER TABLE … RENAME TO event_log), or restore a backup",
        )
    if gone and gone_too:
        raise InterventionRequired(
            f"{connection.name} lacks {', '.join(gone)}: somebody dropped what the migrations made",
            "create it again with `projector db setup`",
        )
    odd = [
        f"{name}.{column} {kind}"
        for name, table in tables().items()
        for column, kind in table.columns.items()
        if name in there and there[name].get(column) != kind
    ]
    if odd:
        raise InterventionRequired(
            f"{connection.name} lacks the columns {', '.join(odd)}: somebody changed the table",
            "give each its name and type back (ALTER TABLE), or rename the table and create it"
            " again with `projector db setup`",
        )


def _columns(connection: Connection) -> dict[str, dict[str, str]]:
    """The columns of tables under the names of ours, with their types."""
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in connection.rows(
        "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)"
        " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)"
        " AND c.relname = ANY (%s) AND c.relkind IN ('r', 'p') AND a.attnum > 0"
        " AND NOT a.attisdropped",
        (connection.target.schema, list(tables())),
    ):
        found.setdefault(table, {})[column] = kind
    return found


def setup(
    target: Target,
    *,
    writer: str | None = None,
    reader: str | None = None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> Setup:
    """Create or upgrade the schema, and put back what somebody dropped or disabled; `writer` may
    add events then, and `reader` read all."""
    with opened(target, busy_timeout_s=lock_timeout_s) as connection:
        roles.check(connection, writer, reader)
        given = roles.let_own(connection, [*tables(), "umzug_meta"])  # which are read first
        done = _setup(connection, lock_timeout_s)
        made = [*given, *_make_built_in(connection)]
        made += roles.let_own(connection, readable(connection))
        with connection.writing():
            if writer:
                roles.let_write(connection, writer)
            if reader:
                roles.let_read(connection, reader, readable(connection))
    return done if done.applied else msgspec.structs.replace(done, restored=[*done.restored, *made])


def _make_built_in(connection: Connection) -> list[str]:
    """Make the tables of the built-in projections that are gone; returns their names."""
    made = []
    for table in _BUILT_IN:
        if not shapes.columns_of(connection, table.name):
            for sql in shapes.changes(connection, table, {}, (), newer=False):
                connection.rows(sql)
            made.append(table.name)
    return made


def readable(connection: Connection) -> list[str]:
    """Our tables, and those of projections."""
    kept = connection.rows(
        f"SELECT DISTINCT kept_in FROM {connection.prefix}checkpoint WHERE EXISTS (SELECT 1 FROM"
        " pg_catalog.pg_class WHERE relname = kept_in AND relkind IN ('r', 'p') AND relnamespace ="
        " (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s))",
        (connection.target.schema,),
    )
    built_in = (table.name for table in _BUILT_IN)
    return [*dict.fromkeys([*tables(), "umzug_meta", *built_in, *(name for (name,) in kept)])]


def _setup(connection: Connection, lock_timeout_s: float) -> Setup:
    if (encoding := connection.raw.info.parameter_status("server_encoding")) != "UTF8":
        raise InterventionRequired(
            f"{connection.name} stores text as {encoding}, which cannot hold all events",
            "create a database with ENCODING 'UTF8' TEMPLATE template0, and name that",
        )
    known = migrations.load("postgres")
    checkpoints = PostgresCheckpoints(connection)
    whole = _known_of(connection) == known.keys() and not amiss(connection)
    if whole and not sequence.amiss(connection) and not checkpoints.unsound():
        return Setup([], None, [])
    with connection.writing():
        _begin(connection, lock_timeout_s)
        applied = _known_of(connection)
        if not applied:
            _refuse_taken_names(connection)
        connection.rows(_HISTORY.format(connection.prefix))
        names = [name for name in known if name not in applied]
        for name in names:
            _run(connection, known[name])
            connection.rows(
                f"INSERT INTO {connection.prefix}umzug_meta (name) VALUES (%s)", (name,)
            )
        doubled, restored = _restore(connection) if applied else ([], [])
        for sql in _MAKE_SOUND:
            connection.rows(sql.format(connection.prefix), {"names": checkpoints.unsound()})
    return Setup(names, None, doubled, restored)


def _begin(connection: Connection, lock_timeout_s: float) -> None:
    """Wait for another set-up, and create the schema unless it is there."""
    schema = connection.target.schema
    connection.rows("SET LOCAL search_path = pg_catalog, pg_temp")
    lock_timeout = f"{lock_timeout_s * 1000:.0f}"  # also behind a pooler
    connection.rows("SELECT set_config('lock_timeout', %s, true)", (lock_timeout,))
    connection.rows("SELECT pg_advisory_xact_lock(%s::int4, hashtext(%s))", (SETUP_CLASS, schema))
    role, may_create, database, exists, may_use = connection.row(
        "SELECT current_user::text, has_database_privilege(current_database(), 'CREATE'),"
        " quote_ident(current_database()), n.oid IS NOT NULL,"
        " coalesce(has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE'),"
        " false)"
        " FROM (VALUES (%s)) AS wanted (name) LEFT JOIN pg_namespace AS n ON nspname = name",
        (schema,),
    ) or ("", False, "", False, False)
    on = f"SCHEMA {connection.prefix[:-1]}" if exists else f"DATABASE {database}"
    if not (may_use if exists else may_create):
        raise InterventionRequired(
            f"{connection.name}: the role {role} may not create anything in the"
            f" {'schema ' + schema if exists else 'database ' + database}",
            f'let it, as the owner: GRANT CREATE ON {on} TO "{role}"; or name another schema in the'
            " URL (?schema=NAME)",
        )
    if not exists:
        connection.rows(f"CREATE SCHEMA {connection.prefix[:-1]}")


def _refuse_taken_names(connection: Connection) -> None:
    """Refuse a schema where another program uses one of our names."""
    names = [*(name for _, name in objects()), "event_log_seq_seq"]
    taken = connection.rows(
        "WITH n AS (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)"
        " SELECT relname::text FROM pg_class, n WHERE relnamespace = n.oid"
        " AND relname = ANY (%(names)s)"
        " UNION SELECT proname::text FROM pg_proc, n WHERE pronamespace = n.oid"
        " AND proname = ANY (%(names)s) ORDER BY 1",
        {"schema": connection.target.schema, "names": names},
    )
    if taken:
        raise InterventionRequired(
            f"{connection.name}: another program uses {', '.join(name for (name,) in taken)} in the"
            f" schema {connection.target.schema}; nothing was changed",
            "name another schema in the URL (?schema=NAME), and run this again",
        )


def _run(connection: Connection, sql: str) -> None:
    """Many statements at once."""
    with connection.errors():
        connection.raw.execute(_filled(connection, sql).encode())


def _filled(connection: Connection, sql: str) -> str:
    """A migration for this schema, written as the server writes it."""
    schema, sequence = connection.row(
        "SELECT quote_ident(%s), quote_literal(quote_ident(%s) || '.event_log_seq_seq')",
        (connection.target.schema, connection.target.schema),
    ) or ("", "")
    return sql.replace("{schema}", schema).replace("{sequence}", sequence)


def amiss(connection: Connection, *kinds: str) -> dict[str, str]:
    """What is `gone`, or `changed` from how the migrations make it, by name, or of that some
    `kinds`; for tables only what is gone."""
    return {one.name: how for one, how in _amiss(connection) if one.kind in kinds or not kinds}


def _amiss(connection: Connection) -> Iterator[tuple[Object, str]]:
    there = _definitions(connection)
    for (kind, name), wanted in objects().items():
        found = there.get((kind, name))
        if found is None:
            yield wanted, "gone"
        elif kind != "TABLE" and found != _definition(wanted, _filled(connection, wanted.sql)):
            switch = found[-1:] if kind == "TRIGGER" else ""
            yield wanted, "disabled" if switch == "D" else "changed"


def _definition(wanted: Object, sql: str) -> str:
    """As `_definitions` has it."""
    if wanted.kind == "FUNCTION":
        head, body, _ = sql.split("$function$")
        settings = re.findall(r"\bSET (\w+) = (.+?)(?= SET | AS$)", " ".join(head.split()))
        told = ",".join(f"{name}={value}" for name, value in settings)
        return f"{'SECURITY DEFINER' in head} {told} {body}"
    # Its comment is above it, and what else is done to it below.
    statement = re.sub(r"(?m)^--.*\n", "", sql).strip().rstrip(";").split(";\n")[0]
    words = " ".join(statement.split())
    if wanted.kind == "CONSTRAINT":
        return words.partition(f"CONSTRAINT {wanted.name} ")[2]
    return f"{words} A" if wanted.kind == "TRIGGER" else words


_DEFINED: Final = """
WITH n AS (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s),
ours AS (SELECT c.oid, c.relname FROM pg_class AS c, n
  WHERE c.relnamespace = n.oid AND c.relname = ANY (%(tables)s) AND c.relkind IN ('r', 'p'))
SELECT 'TABLE', relname::text, '' FROM ours
UNION ALL SELECT 'INDEX', i.relname::text,
  pg_get_indexdef(i.oid) || CASE WHEN indisvalid THEN '' ELSE ' INVALID' END
  FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class AS i ON i.oid = indexrelid
UNION ALL SELECT 'CONSTRAINT', conname::text,
  pg_get_constraintdef(o.oid) FROM ours JOIN pg_constraint AS o ON conrelid = ours.oid
UNION ALL SELECT 'TRIGGER', tgname::text, pg_get_triggerdef(t.oid) || ' ' || tgenabled::text
  FROM ours JOIN pg_trigger AS t ON tgrelid = ours.oid WHERE NOT tgisinternal
UNION ALL SELECT 'FUNCTION', proname::text, CASE WHEN prosecdef THEN 'True' ELSE 'False' END || ' '
  || coalesce(array_to_string(proconfig, ','), '') || ' ' || prosrc
  FROM pg_proc, n
  WHERE pronamespace = n.oid AND proargtypes::text IN ('', 'bytea'::regtype::oid::text)
"""


def _definitions(connection: Connection) -> dict[tuple[str, str], str]:
    """How the server defines what is there, by kind and name."""
    values: dict[str, Any] = {"schema": connection.target.schema, "tables": list(tables())}
    with connection.errors(), connection.raw.transaction():
        connection.raw.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        rows = connection.rows(_DEFINED, values)
    return {(kind, name): definition for kind, name, definition in rows}


def _restore(connection: Connection) -> tuple[list[str], list[str]]:
    """Put back what is gone or changed; returns doubled keys and the names of what it was.

    A table is created empty, and what stood in it is folded again.
    """
    prefix = connection.prefix
    _check_columns(connection, gone_too=False)
    found = list(_amiss(connection))
    doubled: list[str] = []
    gone = {one.name for one, _ in found if one.kind == "TABLE"}
    for one, how in found:
        if how != "gone" and one.kind == "CONSTRAINT":
            connection.rows(f"ALTER TABLE {prefix}{one.table} DROP CONSTRAINT {one.name}")
        elif how != "gone" and one.kind == "TRIGGER":
            connection.rows(f"DROP TRIGGER {one.name} ON {prefix}{one.table}")
        elif how != "gone" and one.kind == "INDEX":
            connection.rows(f"DROP INDEX {prefix}{one.name}")
        if one.name == SESSION_KEY:
            doubled = [key for (key,) in connection.rows(_DOUBLED.format(prefix))]
            connection.rows(_NEWEST_ROW_WINS.format(prefix))
        _run(connection, one.sql)
    redrawn = []
    for _ in range(3):  # as it has three sides
        if wrong := sequence.amiss(connection):
            redrawn = ["event_log.seq"]
            connection.raw.execute(wrong[1].encode())
    if {"quarantine", "deferred"} & gone:
        connection.rows(_REBUILD_ALL.format(prefix))
    if "view" in gone:
        _run(connection, _FOLD_AGAIN.format(connection.target.prefix))
    names = [one.name for one, _ in found if one.kind == "TABLE" or one.table not in gone]
    return doubled, names + redrawn


def _applied(connection: Connection) -> set[str]:
    """Our migrations in the history; it may be another tool's and hold that one's too."""
    row = connection.row(
        "SELECT 1 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute ON attrelid = c.oid"
        " WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)"
        " AND relname = 'umzug_meta' AND attname = 'name'",
        (connection.target.schema,),
    )
    if row is None:
        return set()
    rows = connection.rows(f"SELECT name::text FROM {connection.prefix}umzug_meta")
    return {name for (name,) in rows if name is not None and _OURS in name}


def _known_of(connection: Connection) -> set[str]:
    """The same; refuses a newer schema."""
    applied = _applied(connection)
    if applied - migrations.load("postgres").keys():
        check(connection)
    return applied
