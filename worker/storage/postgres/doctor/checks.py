"""The checks of a PostgreSQL database: server, schema, log, rights, checkpoints, who holds what.

They only read.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from session_projector import migrations
from session_projector.worker.errors import InterventionRequired, argument, upgrade
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import FOLD_AGAIN, Check, Checks, Holder, digest
from session_projector.worker.storage.postgres import migrate, sequence
from session_projector.worker.storage.postgres.checkpoints import PostgresCheckpoints
from session_projector.worker.storage.postgres.connection import (
    KEEPALIVES,
    Connection,
    refuse_pooler,
)
from session_projector.worker.storage.postgres.doctor.asking import (
    OURS,
    as_superuser,
    asked,
    commands,
)
from session_projector.worker.storage.postgres.doctor.rights import readers, rights, writers
from session_projector.worker.storage.postgres.errors import psql
from session_projector.worker.storage.postgres.log import PostgresLog, literal
from session_projector.worker.storage.postgres.migrate import SESSION_KEY
from session_projector.worker.storage.postgres.roles import ender_name
from session_projector.worker.storage.postgres.target import Target, identifier

LOOK_TIMEOUT_S: Final = 1.0
MIB: Final = 1024 * 1024
_APART_S: Final = 60
LONG_S: Final = 3600
"""A transaction that is older keeps VACUUM from clearing away what was replaced meanwhile."""
LOCKED_S: Final = 2.0
"""Whoever holds a lock for longer is no writer at work."""
_GONE_AFTER_S: Final = 60
_SETUP: Final = "`projector db setup`"


@contextmanager
def checks(target: Target, code_versions: Mapping[str, int]) -> Iterator[tuple[Checks, Checks]]:
    """As `worker.storage.port.Database.checks`; one connection is made, by the first of them."""
    made: list[Connection] = []

    def looking(check: Callable[[Connection], Iterator[Check]]) -> Callable[[], Iterator[Check]]:
        def look() -> Iterator[Check]:
            if not made:
                made.append(Connection(target, busy_timeout_s=LOOK_TIMEOUT_S, writable=False))
            yield from check(made[0])

        return look

    inside = {
        "database": database,
        "schema": schema,
        "seq": seq,
        "triggers": triggers,
        "indexes": indexes,
        "clock": clock,
        "checkpoint": lambda connection: checkpoint(connection, code_versions),
        "held back": held_back,
        "compression": compression,
        "rights": rights,
        "writers": writers,
        "readers": readers,
    }
    around = {
        "postgresql": server,
        "pooler": pooler,
        "keepalives": keepalives,
        "prepared": prepared,
        "vacuum": vacuum,
    }
    try:
        yield (
            {name: looking(check) for name, check in inside.items()},
            {name: looking(check) for name, check in around.items()},
        )
    finally:
        for connection in made:
            connection.close()


def database(connection: Connection) -> Iterator[Check]:
    if (encoding := connection.raw.info.parameter_status("server_encoding")) != "UTF8":
        said = f"{connection.name} stores text as {encoding}, which cannot hold all events"
        fix = "create a database with ENCODING 'UTF8' TEMPLATE template0, and name that"
        yield Check("database", "fail", said, fix)
        return
    size = connection.value("SELECT pg_catalog.pg_database_size(current_database())")
    yield Check("database", "ok", f"{connection.name}, {size / MIB:,.1f} MiB, UTF8")


def schema(connection: Connection) -> Iterator[Check]:
    migrate.check(connection)
    yield Check("schema", "ok", [*migrations.load("postgres")][-1])


def seq(connection: Connection) -> Iterator[Check]:
    """Check that positions are drawn one by one, each above the one before."""
    if wrong := sequence.amiss(connection):
        yield Check("seq", "fail", wrong[0], _SETUP)
    else:
        yield Check("seq", "ok", "GENERATED ALWAYS AS IDENTITY, CACHE 1")


def triggers(connection: Connection) -> Iterator[Check]:
    wrong = [f"{n} is {how}" for n, how in migrate.amiss(connection, "TRIGGER", "FUNCTION").items()]
    if wrong:
        said = f"the log can be rewritten, or its events are heard of late: {', '.join(wrong)}"
        yield Check("triggers", "fail", said, _SETUP)
        return
    ours = [name for kind, name in migrate.objects() if kind == "TRIGGER"]
    others = asked(
        connection,
        "SELECT 'TRIGGER', tgname::text, relname::text"
        f" FROM {OURS} JOIN pg_catalog.pg_trigger ON tgrelid = ours.oid"
        " WHERE NOT tgisinternal AND tgenabled <> 'D' AND NOT tgname = ANY (%(ours)s)"
        " UNION ALL SELECT 'RULE', rulename::text, relname::text"
        f" FROM {OURS} JOIN pg_catalog.pg_rewrite ON ev_class = ours.oid"
        f" UNION ALL SELECT '', '', relname::text FROM {OURS} WHERE relrowsecurity ORDER BY 1, 2",
        ours=ours,
    )
    for kind, name, table in others:
        at = connection.target.prefix + table
        said = f"a {kind.lower()} of another program, {name}, may refuse or change what is written"
        fix = f"DROP {kind} {identifier(name)} ON {at}"
        if not kind:
            said = "row security may hide rows from a role that should see them, or refuse them,"
            fix = f"ALTER TABLE {at} DISABLE ROW LEVEL SECURITY"
        fix = f"if nothing needs it: {commands(connection, fix)}"
        yield Check("triggers", "warn", f"{said} in {table}", fix)
    if not others:
        yield Check("triggers", "ok", "the log is append-only, for all and always")


def indexes(connection: Connection) -> Iterator[Check]:
    """Check the indexes that make reading fast, and the one that keeps a session in one row."""
    wrong = migrate.amiss(connection, "INDEX", "CONSTRAINT")
    ours = [name for kind, name in migrate.objects() if kind in ("INDEX", "CONSTRAINT")]
    others = asked(
        connection,
        "SELECT i.relname::text, ours.relname::text, conname::text"
        f" FROM {OURS} JOIN pg_catalog.pg_index ON indrelid = ours.oid"
        " JOIN pg_catalog.pg_class AS i ON i.oid = indexrelid"
        " LEFT JOIN pg_catalog.pg_constraint ON conindid = i.oid AND conrelid = ours.oid"
        " WHERE (indisunique OR indexprs IS NOT NULL OR indpred IS NOT NULL)"
        " AND NOT i.relname = ANY (%(ours)s) ORDER BY 1",
        ours=ours,
    )
    for name, table, constraint in others:
        said = f"an index of another program may refuse what is written to {table}: {name}"
        prefix = connection.target.prefix
        drop = f"DROP INDEX {prefix}{identifier(name)}"
        if constraint:
            drop = f"ALTER TABLE {prefix}{table} DROP CONSTRAINT {identifier(constraint)}"
        yield Check("indexes", "warn", said, f"if nothing needs it: {commands(connection, drop)}")
    how = wrong.pop(SESSION_KEY, "")
    if wrong:
        named = ", ".join(f"{name} is {how}" for name, how in wrong.items())
        said = f"{named}: reading is slow without, or rows that must not be are taken"
        yield Check("indexes", "fail", said, _SETUP)
    elif not others:
        yield Check("indexes", "ok", "all are there")
    if how:
        said = f"nothing keeps a session from having two rows: {SESSION_KEY} is {how}"
        yield Check("session keys", "fail", said, f"{_SETUP}, then `projector replay`")
    else:
        yield Check("session keys", "ok", "each session has one row at most")


def clock(connection: Connection) -> Iterator[Check]:
    """Check whether the clock of the server is that of this machine."""
    now_ms = time.time_ns() // 1_000_000
    there_ms = connection.value("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    if abs(apart_s := (float(there_ms) - now_ms) / 1000) > _APART_S:
        said = f"the clocks of the server and of this machine are {abs(apart_s):,.0f} s apart"
        fix = "set the clock of both: `timedatectl set-ntp true`"
        yield Check("clock", "warn", said, fix)
    else:
        yield Check("clock", "ok", "the server and this machine agree")


def checkpoint(connection: Connection, code_versions: Mapping[str, int]) -> Iterator[Check]:
    """Check that each checkpoint fits the log, and that its version is not newer than the code."""
    wrong = []
    log = PostgresLog(connection, Limits())
    for name, stored in PostgresCheckpoints(connection).all().items():
        here, position = stored.checkpoint, stored.checkpoint.position
        version, code = abs(here.version), code_versions.get(name, abs(here.version))
        row = log.event(position) if position else None
        if position and (row is None or digest(row) != here.digest):
            said = f"event_log was truncated or replaced: checkpoint {name}@{position} does not"
            wrong.append(Check("checkpoint", "fail", f"{said} match", FOLD_AGAIN))
        elif version > code:
            said = f"the views of {name} are of version {version}, the code here of {code}"
            fix = (
                f"{upgrade()}, or its package;"
                " where no newer one ever ran here, somebody wrote that: let the next run build"
                f" them again: `projector projection drop {argument(name)}`"
            )
            wrong.append(Check("checkpoint", "fail", said, fix))
    yield from wrong or [Check("checkpoint", "ok", "fits the log")]


def held_back(connection: Connection) -> Iterator[Check]:
    """Check for transactions that have added an event and do not end: none after it is read."""
    found = PostgresLog(connection, Limits()).held_back_by()
    for holder in found:
        said = f"an event that is not committed keeps those after it from being read: {holder.who}"
        yield Check("held back", "warn", said, f"end it where it was forgotten: {holder.cure}")
    if not found:
        yield Check("held back", "ok", "no transaction keeps events from being read")


def blocking(connection: Connection) -> list[Holder]:
    """Who holds a lock that a daemon waits for, in a transaction that is no longer young."""
    rows = connection.rows(
        "SELECT DISTINCT b.pid, b.usename::text, coalesce(nullif(b.application_name, ''), '?')"
        " FROM pg_catalog.pg_stat_activity AS w"
        " CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(w.pid)) AS blocking (pid)"
        " JOIN pg_catalog.pg_stat_activity AS b ON b.pid = blocking.pid"
        " WHERE w.datname = current_database() AND w.application_name LIKE 'projector@%%'"
        " AND b.application_name NOT LIKE 'projector@%%'"
        " AND coalesce(clock_timestamp() - b.xact_start >= make_interval(secs => %s), true)",
        (LOCKED_S,),
    )
    return [
        Holder(
            f"the transaction of {application} ({role}, process {pid} of the server)",
            "end it where it was forgotten:"
            f" `{psql(ender_name(connection, role), f'SELECT pg_terminate_backend({pid})')}`",
        )
        for pid, role, application in rows
    ]


def server(connection: Connection) -> Iterator[Check]:
    version, standby, *switches = connection.row(
        "SELECT current_setting('server_version'), pg_catalog.pg_is_in_recovery(),"
        " current_setting('fsync'), current_setting('full_page_writes')"
    ) or ("?", False)
    off = [n for n, at in zip(("fsync", "full_page_writes"), switches, strict=False) if at == "off"]
    if standby:
        said = f"PostgreSQL {version}, a standby: nothing can be written there"
        fix = "name the primary in the URL, or all hosts (target_session_attrs=read-write)"
        yield Check("postgresql", "warn", said, fix)
    elif off:
        said = f"{' and '.join(off)} off: events may be lost when the server's machine crashes"
        resets = [f"ALTER SYSTEM SET {name} = on" for name in off]
        fix = as_superuser(connection, *resets, "SELECT pg_reload_conf()")
        yield Check("postgresql", "warn", f"PostgreSQL {version} has {said}", fix)
    else:
        yield Check("postgresql", "ok", f"PostgreSQL {version}")


def pooler(connection: Connection) -> Iterator[Check]:
    try:
        refuse_pooler(connection.name, connection.raw)
    except InterventionRequired as error:
        yield Check("pooler", "warn", str(error), error.hint)
    else:
        yield Check("pooler", "ok", "the server itself answers")


def keepalives(connection: Connection) -> Iterator[Check]:
    """Check how soon either end notices that the other's host is gone without a word."""
    if connection.raw.info.host.startswith("/"):
        yield Check("keepalives", "ok", "not needed, the server is on this machine")
        return
    here = {**KEEPALIVES, **connection.target.settings}
    there = dict(
        connection.rows(
            "SELECT name::text, setting::int FROM pg_catalog.pg_settings"
            " WHERE name LIKE 'tcp_keepalives_%%'"
        )
    )
    idle, interval, probes = (
        int(here[f"keepalives_{name}"]) for name in ("idle", "interval", "count")
    )
    our_s = 0 if here.get("keepalives") == "0" or not idle else idle + interval * probes
    idle, interval, probes = (
        there[f"tcp_keepalives_{name}"] for name in ("idle", "interval", "count")
    )
    their_s = idle + interval * probes if idle and interval else 0
    for end, gone_s, fix in (
        ("this end", our_s, "leave keepalives out of the URL, which are short where it has none"),
        ("the server", their_s, "give the server's own address, or run it where the system has it"),
    ):
        if not 0 < gone_s <= _GONE_AFTER_S:
            after = f"{gone_s:,} s" if gone_s else "hours"
            said = f"{end} notices only after {after} that the other's host is gone"
            yield Check("keepalives", "warn", said, fix)
            return
    yield Check("keepalives", "ok", f"a host that is gone is noticed after {our_s} s by either end")


def prepared(connection: Connection, *, old_s: float = LONG_S) -> Iterator[Check]:
    """Check for transactions that were prepared and forgotten, which nothing ends by itself."""
    found = connection.rows(
        "SELECT gid, owner::text, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age"
        " FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY 3 DESC"
    )
    old = [row for row in found if row[2] >= old_s]
    for gid, owner, age_s in old:
        said = f"the prepared transaction {gid} of {owner} keeps its locks for {age_s:,.0f} s now"
        end = f"ROLLBACK PREPARED {literal(gid)}"
        fix = (
            f"COMMIT PREPARED it, or where it was forgotten, with the role {owner} or a superuser:"
            f" `{psql(ender_name(connection, owner), end)}`"
        )
        yield Check("prepared", "warn", said, fix)
    if not old:
        said = f"transactions: {len(found)}, none of them old" if found else "no transaction is"
        yield Check("prepared", "ok", said)


def vacuum(connection: Connection, *, old_s: float = LONG_S) -> Iterator[Check]:
    """Check that what each new row of a view replaces is cleared away."""
    wrong = []
    if connection.value("SELECT current_setting('autovacuum')") == "off":
        sets = ("ALTER SYSTEM SET autovacuum = on", "SELECT pg_reload_conf()")
        fix = as_superuser(connection, *sets)
        wrong.append(("autovacuum is off: the tables of views grow with each event", fix))
    off = asked(
        connection,
        "SELECT ours.relname::text, toast.reloptions::text LIKE '%%autovacuum_enabled=%%'"
        f" FROM {OURS} LEFT JOIN pg_catalog.pg_class AS toast ON toast.oid = ours.reltoastrelid,"
        " unnest(coalesce(ours.reloptions, '{}') || coalesce(toast.reloptions, '{}')) AS option"
        " WHERE option ~ '^autovacuum_enabled=(f|off|n|0)' ORDER BY 1",
    )
    for table, is_toast in off:
        name = "toast.autovacuum_enabled" if is_toast else "autovacuum_enabled"
        reset = f"ALTER TABLE {connection.target.prefix}{table} RESET ({name})"
        where = f"{table}'s TOAST table" if is_toast else table
        said = f"autovacuum is off for {where}: it grows with each event"
        wrong.append((said, commands(connection, reset)))
    for pid, role, application, age_s in connection.rows(
        "SELECT pid, usename::text, application_name,"
        " extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age"
        " FROM pg_catalog.pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL"
        " AND clock_timestamp() - xact_start >= make_interval(secs => %s) ORDER BY 4 DESC",
        (float(old_s),),
    ):
        said = (
            f"the transaction of {application} ({role}, process {pid} of the server),"
            f" {age_s:,.0f} s old, keeps what was replaced since from being cleared away"
        )
        end = psql(ender_name(connection, role), f"SELECT pg_terminate_backend({pid})")
        wrong.append((said, f"end it where it was forgotten: `{end}`"))
    for said, fix in wrong:
        yield Check("vacuum", "warn", said, fix)
    if not wrong:
        yield Check("vacuum", "ok", "autovacuum is on, and nothing old holds it back")


def compression(connection: Connection) -> Iterator[Check]:
    """Check that views are compressed fast, or not at all."""
    how, storage, has_lz4 = connection.row(
        "SELECT attcompression::text, attstorage::text, (SELECT 'lz4' = ANY (enumvals)"
        " FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression')"
        " FROM pg_catalog.pg_attribute WHERE attrelid = %s::regclass AND attname = 'data'",
        (f"{connection.target.prefix}view",),
    ) or ("", "", False)
    if how == "l" or storage == "e":
        said = "lz4" if how == "l" and storage != "e" else "none"
        yield Check("compression", "ok", f"of views: {said}")
        return
    sets = "SET COMPRESSION lz4" if has_lz4 else "SET STORAGE EXTERNAL"
    alter = f"ALTER TABLE {connection.target.prefix}view ALTER COLUMN data {sets}"
    said = "views are compressed by pglz, which makes writing a large one twice as slow"
    yield Check("compression", "warn", said, commands(connection, alter))
