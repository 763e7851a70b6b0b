"""Set-up: it creates the schema beside others' tables, and makes whole what somebody broke."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from urllib.parse import quote

import psycopg
import pytest
from support.postgres import Server

from session_projector import migrations
from session_projector.worker.errors import DatabaseUnavailable, InterventionRequired, UsageError
from session_projector.worker.storage.postgres import migrate
from session_projector.worker.storage.postgres.connection import Connection, opened
from session_projector.worker.storage.postgres.target import Target, parse

NAMES = [*migrations.load("postgres")]
SQLITE = {
    "view": ["id", "key", "data", "last_offset_id", "created_at", "updated_at"],
    "checkpoint": [
        *("name", "version", "position", "generation", "digest", "skipped"),
        *("kept_in", "key_column", "prefix"),
    ],
    "quarantine": ["projection", "seq", "id", "key", "reason"],
    "dismissed": ["seq", "id", "note", "dismissed_at"],
}


@pytest.fixture
def target(postgres: Server) -> Iterator[Target]:
    """An empty database."""
    with postgres.database() as url:
        yield parse(url)


@pytest.fixture
def ready(target: Target) -> Iterator[Connection]:
    """A connection to a database that is set up."""
    migrate.setup(target)
    with opened(target) as connection:
        yield connection


def elsewhere(target: Target, schema: str) -> Target:
    return target._replace(schema=schema)


def test_a_schema_is_created_once_and_told(target: Target) -> None:
    done = migrate.setup(target)

    assert done.applied == NAMES
    assert migrate.status(target) == [(name, True) for name in NAMES]
    again = migrate.setup(target)
    assert (again.applied, again.restored, again.doubled_keys) == ([], [], [])
    with opened(target) as connection:
        migrate.check(connection)
        assert migrate.is_there(connection)
        for table, columns in SQLITE.items():
            cursor = connection.raw.execute(f"SELECT * FROM public.{table}".encode())
            assert [one.name for one in cursor.description or ()] == columns


def test_what_is_not_set_up_says_how_it_is_done(target: Target) -> None:
    with opened(target) as connection:
        assert not migrate.is_there(connection)
        with pytest.raises(InterventionRequired) as refused:
            migrate.check(connection)

    assert "projector db setup" in refused.value.hint
    assert migrate.status(target) == [(name, False) for name in NAMES]


@pytest.mark.parametrize("name", ["mine", "We ird", "it's", 'a"b', "select", "a$$b{x}", "Ä%s"])
def test_any_name_of_a_schema_is_created_with_it(target: Target, name: str) -> None:
    there = parse(f"{target.name}&schema={quote(name, safe='')}")

    done = migrate.setup(there)

    assert done.applied == NAMES
    assert migrate.setup(there).restored == []
    with opened(there) as connection:
        insert = f"INSERT INTO {connection.prefix}event_log (id, data) VALUES ('a', '{{}}')"
        assert connection.value(f"{insert} RETURNING seq") == 1
        migrate.check(connection)
    assert migrate.status(target) == [(name, False) for name in NAMES]


@pytest.mark.parametrize(
    "made",
    [
        "TABLE public.event_log (id text)",
        "VIEW public.view AS SELECT 1 AS one",
        "TABLE public.things (checkpoint int CONSTRAINT checkpoint_pkey PRIMARY KEY)",
        "FUNCTION public.event_log_bell() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SEQUENCE public.event_log_seq_seq",
        "TYPE public.deferred AS (n int)",
    ],
)
def test_a_name_that_another_program_uses_is_refused_and_nothing_is_touched(
    target: Target, made: str
) -> None:
    with opened(target) as connection:
        connection.rows("CREATE TABLE public.theirs (n int)")
        connection.rows(f"CREATE {made}")
        before = connection.rows("SELECT oid, relname, relacl::text FROM pg_class ORDER BY 1")

        with pytest.raises(InterventionRequired, match="another program uses") as refused:
            migrate.setup(target)

        assert "?schema=" in refused.value.hint
        after = connection.rows("SELECT oid, relname, relacl::text FROM pg_class ORDER BY 1")
        assert before == after
    assert migrate.setup(elsewhere(target, "ours")).applied == NAMES


def test_the_history_may_be_another_tools_too(target: Target) -> None:
    with opened(target) as connection:
        connection.rows("CREATE TABLE public.umzug_meta (name varchar(255) PRIMARY KEY)")
        connection.rows("INSERT INTO public.umzug_meta VALUES ('0099-theirs')")

        assert migrate.setup(target).applied == NAMES

        migrate.check(connection)
        assert migrate.status(target) == [(name, True) for name in NAMES]
        assert ("0099-theirs",) in connection.rows("SELECT name::text FROM public.umzug_meta")


def test_a_newer_schema_is_refused_and_told(ready: Connection) -> None:
    ready.rows("INSERT INTO public.umzug_meta (name) VALUES ('9999-projector-later')")

    for attempt in (lambda: migrate.setup(ready.target), lambda: migrate.check(ready)):
        with pytest.raises(InterventionRequired, match=r"newer.*9999-projector-later"):
            attempt()
    assert migrate.status(ready.target)[-1] == ("9999-projector-later", True)


def test_two_set_ups_at_once_are_one_and_one_that_finds_all_done(target: Target) -> None:
    start = Barrier(4)

    def setup(_: int) -> list[str]:
        start.wait()
        return migrate.setup(elsewhere(target, "new")).applied

    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(setup, range(4))]

    assert sorted(done) == [[], [], [], NAMES]


def test_a_set_up_that_fails_leaves_nothing(target: Target) -> None:
    with opened(target) as connection:
        connection.rows("CREATE TABLE public.event_log (id text)")
        with pytest.raises(InterventionRequired):
            migrate.setup(target)
        assert connection.rows("SELECT 1 FROM pg_class WHERE relname = 'umzug_meta'") == []


OBJECTS = [one for one in migrate.objects().values() if one.name != "event_log"]


@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: f"{one[0]} {one[1]}")
def test_what_somebody_dropped_is_put_back_and_said(ready: Connection, one: migrate.Object) -> None:
    drop = {
        "CONSTRAINT": f"ALTER TABLE public.{one.table} DROP CONSTRAINT {one.name}",
        "TRIGGER": f"DROP TRIGGER {one.name} ON public.{one.table}",
    }
    ready.rows(drop.get(one.kind, f"DROP {one.kind} public.{one.name} CASCADE"))
    assert one.name in migrate.amiss(ready)

    assert one.name in migrate.setup(ready.target).restored

    assert migrate.amiss(ready) == {}
    assert migrate.setup(ready.target).restored == []
    migrate.check(ready)


LOG = "ALTER TABLE public.event_log"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (f"{LOG} DISABLE TRIGGER event_log_append_only", "event_log_append_only"),
        (f"{LOG} DISABLE TRIGGER ALL", "event_log_insert"),
        (f"{LOG} ENABLE REPLICA TRIGGER event_log_insert", "event_log_insert"),
        (f"{LOG} ENABLE TRIGGER event_log_bell", "event_log_bell"),
        ("ALTER FUNCTION public.event_log_insert() SECURITY INVOKER", "event_log_insert"),
        ("ALTER FUNCTION public.event_log_insert() RESET search_path", "event_log_insert"),
        (
            "CREATE OR REPLACE FUNCTION public.event_log_append_only() RETURNS trigger"
            " LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "event_log_append_only",
        ),
        ("ALTER INDEX public.idx_event_log_key RENAME TO other", "idx_event_log_key"),
        (
            "DROP INDEX public.idx_view_session_key;"
            " CREATE INDEX idx_view_session_key ON public.view (key)",
            "idx_view_session_key",
        ),
        (
            f"{LOG} DROP CONSTRAINT event_log_data_check;"
            f" {LOG} ADD CONSTRAINT event_log_data_check CHECK (key IS NOT NULL)",
            "event_log_data_check",
        ),
    ],
)
def test_what_somebody_changed_is_put_back_and_said(
    ready: Connection, changed: str, name: str
) -> None:
    ready.raw.execute(changed.encode())
    assert name in migrate.amiss(ready)

    assert name in migrate.setup(ready.target).restored

    assert migrate.amiss(ready) == {}


def test_of_rows_that_doubled_while_the_index_was_gone_the_newest_stays(ready: Connection) -> None:
    ready.rows("DROP INDEX public.idx_view_session_key")
    for key in ("session:a", "session:b", "project:x"):
        for n in (1, 2) if key != "session:b" else (1,):
            row = (f"{key}{n}", key, b"", "e", n, n)
            ready.rows("INSERT INTO public.view VALUES (%s, %s, %s, %s, %s, %s)", row)

    assert migrate.setup(ready.target).doubled_keys == ["session:a"]

    kept = ready.rows("SELECT id FROM public.view ORDER BY id")
    assert kept == [("project:x1",), ("project:x2",), ("session:a2",), ("session:b1",)]


def test_a_table_of_views_that_is_gone_is_folded_again(ready: Connection) -> None:
    ready.rows(
        "INSERT INTO public.checkpoint VALUES ('sessions', 1, 9, 3, 'd', 1, 'view', 'key', ''),"
        " ('other', 1, 9, 3, 'd', 1, 'others', 'key', '')"
    )
    ready.rows("INSERT INTO public.quarantine VALUES ('sessions', 1, 'a', 'k', 'why')")
    select = "SELECT name, version, position, generation, digest FROM public.checkpoint ORDER BY 1"

    ready.rows("DROP TABLE public.view")
    assert migrate.setup(ready.target).restored == ["view"]
    assert ready.rows(select) == [("other", 1, 9, 3, "d"), ("sessions", 1, 0, 4, "")]
    assert ready.rows("SELECT * FROM public.quarantine") == []

    ready.rows("DROP TABLE public.quarantine, public.dismissed")
    assert migrate.setup(ready.target).restored == ["quarantine", "dismissed"]
    assert ready.rows(select) == [("other", -1, 9, 4, "d"), ("sessions", -1, 0, 5, "")]


@pytest.mark.parametrize("change", ["DROP COLUMN reason", "RENAME reason TO why"])
def test_a_table_without_its_columns_is_refused(ready: Connection, change: str) -> None:
    ready.rows(f"ALTER TABLE public.quarantine {change}")

    with pytest.raises(InterventionRequired, match=r"quarantine\.reason"):
        migrate.check(ready)
    ready.rows("ALTER TABLE public.quarantine RENAME TO aside")
    with pytest.raises(InterventionRequired, match="lacks quarantine") as refused:
        migrate.check(ready)
    assert "projector db setup" in refused.value.hint


def test_a_log_that_is_gone_is_never_created_empty(ready: Connection) -> None:
    ready.rows("ALTER TABLE public.event_log RENAME TO aside")

    for attempt in (lambda: migrate.setup(ready.target), lambda: migrate.check(ready)):
        with pytest.raises(InterventionRequired, match="lacks event_log"):
            attempt()
    ready.rows("ALTER TABLE public.aside RENAME TO event_log")
    assert migrate.setup(ready.target).restored == []


def test_a_database_in_another_encoding_is_refused(postgres: Server) -> None:
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(InterventionRequired, match="stores text as LATIN1") as refused:
            migrate.setup(parse(postgres.url("latin")))
    finally:
        postgres.sql("DROP DATABASE latin")

    assert "ENCODING 'UTF8'" in refused.value.hint


def test_a_lock_that_another_holds_is_waited_for_and_then_said(ready: Connection) -> None:
    ready.rows("DROP TRIGGER event_log_bell ON public.event_log")
    with psycopg.connect(**ready.target.settings) as other:
        other.execute("INSERT INTO public.event_log (id) VALUES ('open')")
        with pytest.raises(DatabaseUnavailable):
            migrate.setup(ready.target, lock_timeout_s=0.05)
        other.rollback()

    assert migrate.setup(ready.target).restored == ["event_log_bell"]


def test_a_role_that_may_not_create_is_told_what_it_lacks(postgres: Server, target: Target) -> None:
    postgres.sql("CREATE ROLE plain LOGIN")
    try:
        plain = target._replace(settings={**target.settings, "user": "plain"})
        with opened(target) as connection:
            connection.rows("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            for place, grant in (
                (plain, 'GRANT CREATE ON SCHEMA "public" TO "plain"'),
                (elsewhere(plain, "new"), "GRANT CREATE ON DATABASE "),
            ):
                with pytest.raises(InterventionRequired, match="may not create") as refused:
                    migrate.setup(place)
                assert grant in refused.value.hint
                connection.rows(refused.value.hint.partition(": ")[2].partition(";")[0])
                assert migrate.setup(place).applied == NAMES
    finally:
        with opened(target) as connection:
            connection.rows("DROP OWNED BY plain CASCADE")
        postgres.sql("DROP ROLE plain")


def test_roles_that_are_not_there_are_told_with_the_command(target: Target) -> None:
    with pytest.raises(UsageError, match="no role nobody-here") as refused:
        migrate.setup(target, writer="nobody-here")
    assert 'CREATE ROLE "nobody-here" LOGIN' in refused.value.hint
    with pytest.raises(UsageError, match="is a superuser"):
        migrate.setup(target, reader="postgres")
    with opened(target) as connection:
        assert not migrate.is_there(connection)
