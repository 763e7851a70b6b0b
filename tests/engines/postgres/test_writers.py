"""Writers: the contract's INSERT in their own role, and nothing that they try rewrites the log."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from support import projector
from support.extensions import PerProject
from support.postgres import Server

from session_projector.worker.storage import open as storage
from session_projector.worker.storage.postgres import migrate
from session_projector.worker.storage.postgres.connection import opened
from session_projector.worker.storage.postgres.target import Target, parse

Plain = psycopg.Connection[Any]
INSERT = "INSERT INTO event_log (id, key, data, created_at) VALUES ('a', 'session:s', '{}', 1)"
OTHERS = [
    INSERT.replace("session:s", "session:t"),
    INSERT.replace("{}", '{"type": 1}'),
    INSERT.replace("data", "packed"),
    INSERT.replace("'{}'", "NULL"),
]
DENIED = psycopg.errors.InsufficientPrivilege
LOG = "SELECT seq, id, key, data, packed, created_at FROM public.event_log ORDER BY seq"


@pytest.fixture
def target(postgres: Server) -> Iterator[Target]:
    """A database that is set up for a writer and a reader, with one event."""
    postgres.sql("CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN")
    try:
        with postgres.database() as url:
            migrate.setup(parse(url), writer="writer", reader="reader")
            with opened(parse(url)) as connection:
                connection.rows(INSERT.replace("event_log", "public.event_log"))
            yield parse(url)
    finally:
        postgres.sql("DROP ROLE writer, reader")


def connected(target: Target, user: str = "postgres") -> Plain:
    return psycopg.connect(**{**target.settings, "user": user}, autocommit=True)


@pytest.fixture
def owner(target: Target) -> Iterator[Plain]:
    with connected(target) as connection:
        yield connection


@pytest.fixture
def writer(target: Target) -> Iterator[Plain]:
    with connected(target, "writer") as connection:
        yield connection


@pytest.fixture
def reader(target: Target) -> Iterator[Plain]:
    with connected(target, "reader") as connection:
        yield connection


def log(owner: Plain) -> list[Any]:
    return owner.execute(LOG).fetchall()


def test_a_writer_adds_events_in_both_forms_and_waits_for_them(owner: Plain, writer: Plain) -> None:
    json = writer.execute(
        "INSERT INTO event_log (id, key, data, created_at) VALUES (%s, %s, %s, %s) RETURNING seq",
        ("j", "session:s", r'{"a": "C:\\temp\u0000"}', 1),
    ).fetchone()
    packed = writer.execute(
        "INSERT INTO event_log (id, key, packed, created_at) VALUES (%s, %s, %s, %s) RETURNING seq",
        ("p", None, b"\x80\x00", 2),
    ).fetchone()

    assert (json, packed) == ((2,), (3,))
    assert log(owner)[1:] == [
        (2, "j", "session:s", r'{"a": "C:\\temp\u0000"}', None, 1),
        (3, "p", None, None, b"\x80\x00", 2),
    ]
    assert writer.execute("SELECT seq FROM event_log WHERE id = 'p'").fetchone() == (3,)
    waits = "SELECT 1 FROM checkpoint WHERE name = 'sessions' AND position >= 3"
    assert writer.execute(waits).fetchall() == []


def test_an_equal_retry_is_ignored_whenever_it_was_created(owner: Plain, writer: Plain) -> None:
    for retry in (INSERT, INSERT.replace(" 1)", " 2)"), f"{INSERT} ON CONFLICT DO NOTHING"):
        assert writer.execute(retry).statusmessage == "INSERT 0 0"
        assert writer.execute(f"{retry} RETURNING seq").fetchall() == []

    writer.execute("INSERT INTO event_log (id, packed) VALUES ('p', '\\x80')")
    again = writer.execute("INSERT INTO event_log (id, packed) VALUES ('p', '\\x80')")
    assert again.statusmessage == "INSERT 0 0"
    assert [row[1] for row in log(owner)] == ["a", "p"]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("clause", ["", " ON CONFLICT DO NOTHING", " ON CONFLICT (id) DO NOTHING"])
def test_other_content_under_a_known_id_is_refused(
    owner: Plain, writer: Plain, other: str, clause: str
) -> None:
    before = log(owner)
    words = "event_log is append-only: this id is there with another key or data"

    for one in (writer, owner):
        with pytest.raises(psycopg.errors.UniqueViolation, match=words) as refused:
            one.execute(other + clause)

    assert refused.value.diag.constraint_name == "event_log_id_key"
    assert log(owner) == before


def test_one_statement_may_bring_many_events_of_which_some_are_there(
    owner: Plain, writer: Plain
) -> None:
    done = writer.execute(
        "INSERT INTO event_log (id, key, data, created_at) VALUES"
        " ('b', 'k', '{}', 1), ('a', 'session:s', '{}', 1), ('b', 'k', '{}', 9), (NULL, NULL, NULL,"
        " NULL), (NULL, NULL, NULL, NULL)"
    )

    assert done.statusmessage == "INSERT 0 3"
    assert [row[1] for row in log(owner)] == ["a", "b", None, None]


def test_two_that_write_one_event_at_once_write_it_once(owner: Plain, target: Target) -> None:
    with connected(target, "writer") as one, connected(target, "writer") as other:
        same = INSERT.replace("'a'", "'new'")
        with one.transaction():
            one.execute(same)
            other.execute("SET lock_timeout = '20ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(same)
        assert other.execute(same).statusmessage == "INSERT 0 0"

    assert [row[1] for row in log(owner)] == ["a", "new"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event_log SET key = 'x'",
        "UPDATE event_log SET id = id",
        "DELETE FROM event_log",
        "DELETE FROM event_log WHERE false",
        "TRUNCATE event_log",
        "DROP TABLE event_log",
        "SELECT * FROM event_log",
        "SELECT data FROM event_log",
        "SELECT seq FROM event_log FOR UPDATE",
        "DO 'BEGIN LOCK TABLE event_log IN EXCLUSIVE MODE; END'",
        f"{INSERT} ON CONFLICT (id) DO UPDATE SET data = '[]'",
        "INSERT INTO event_log (seq, id) VALUES (DEFAULT, 'b')",
        "INSERT INTO event_log (seq, id) OVERRIDING SYSTEM VALUE VALUES (1000000, 'b')",
        "INSERT INTO event_log (seq, id) OVERRIDING USER VALUE VALUES (1000000, 'b')",
        "SELECT setval('event_log_seq_seq', 1)",
        "SELECT nextval('event_log_seq_seq')",
        "ALTER SEQUENCE event_log_seq_seq RESTART",
        "ALTER TABLE event_log ALTER seq RESTART",
        "ALTER TABLE event_log DISABLE TRIGGER ALL",
        "DROP TRIGGER event_log_append_only ON event_log",
        "CREATE RULE nothing AS ON INSERT TO event_log DO INSTEAD NOTHING",
        "CREATE TRIGGER mine BEFORE INSERT ON event_log EXECUTE FUNCTION event_log_bell()",
        "CREATE OR REPLACE FUNCTION event_log_insert() RETURNS trigger LANGUAGE plpgsql AS ''",
        "SET session_replication_role = replica",
        "SET SESSION AUTHORIZATION postgres",
        "COPY event_log TO STDOUT",
        "COPY event_log (seq, id) FROM STDIN",
        "SELECT * FROM view",
        "INSERT INTO checkpoint (name) VALUES ('x')",
        "DELETE FROM quarantine",
        "DELETE FROM umzug_meta",
        "CREATE TABLE event_log_2 (n int)",
    ],
)
def test_a_writer_can_do_nothing_else(
    owner: Plain, writer: Plain, statement: str, target: Target
) -> None:
    if statement.startswith("CREATE TABLE") and owner.info.server_version < 150000:
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    before = log(owner)

    with pytest.raises(DENIED):
        writer.execute(statement)

    assert log(owner) == before
    with opened(target) as connection:
        assert migrate.amiss(connection) == {}


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE public.event_log SET key = 'x'", "UPDATE"),
        ("UPDATE ONLY public.event_log SET key = 'x' WHERE false", "UPDATE"),
        ("DELETE FROM public.event_log", "DELETE"),
        ("TRUNCATE public.event_log", "TRUNCATE"),
        (f"{INSERT} ON CONFLICT (id) DO UPDATE SET data = '[]'", "UPDATE"),
        (f"{INSERT} ON CONFLICT (seq) DO UPDATE SET data = '[]'", "UPDATE"),
        (
            "WITH gone AS (DELETE FROM public.event_log RETURNING *)"
            " INSERT INTO public.event_log (id) SELECT id FROM gone",
            "DELETE",
        ),
    ],
)
@pytest.mark.parametrize("role", ["origin", "replica", "local"])
def test_the_owner_rewrites_nothing_either(
    owner: Plain, statement: str, word: str, role: str
) -> None:
    before = log(owner)
    owner.execute(f"SET session_replication_role = {role}".encode())

    with pytest.raises(psycopg.Error, match=f"event_log is append-only: no {word}"):
        owner.execute(statement.encode())

    assert log(owner) == before


@pytest.mark.parametrize("seq", [-5, 1, 2, 3, 2**62])
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_a_seq_of_ones_own_is_refused_to_the_owner_too(owner: Plain, seq: int, role: str) -> None:
    own = "INSERT INTO public.event_log (seq, id) OVERRIDING SYSTEM VALUE VALUES (%s, 'b')"
    owner.execute(f"SET session_replication_role = {role}".encode())
    copy = "COPY public.event_log (seq, id) FROM STDIN (FORMAT csv)"

    for _ in range(2):  # in a session that has drawn none yet, and in one that has
        with pytest.raises(psycopg.Error):
            owner.execute(own, (seq,))
        with pytest.raises(psycopg.Error), owner.cursor().copy(copy.encode()) as rows:
            rows.write(f"{seq},b\n")
        with pytest.raises(psycopg.errors.GeneratedAlways):
            owner.execute("INSERT INTO public.event_log (seq, id) VALUES (%s, 'b')", (seq,))
        owner.execute("INSERT INTO public.event_log (id) VALUES (NULL)")

    assert [row[1] for row in log(owner)] == ["a", None, None]


def test_a_writer_may_copy_events_in(owner: Plain, writer: Plain) -> None:
    with writer.cursor().copy("COPY event_log (id, key, data) FROM STDIN (FORMAT csv)") as rows:
        rows.write("a,session:s,{}\nb,session:s,{}\n")

    assert [row[:3] for row in log(owner)] == [(1, "a", "session:s"), (3, "b", "session:s")]


def test_a_log_is_restored_with_its_positions_by_who_owns_it(owner: Plain) -> None:
    """The way that is told beside the trigger, for `projector copy`."""
    owner.execute(
        "INSERT INTO public.event_log (seq, id, data) OVERRIDING SYSTEM VALUE"
        " SELECT setval('public.event_log_seq_seq', r.seq), r.id, r.data"
        " FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS r (seq, id, data)",
        ([5, 6, 90], ["x", "y", "z"], ["{}", None, "{}"]),
    )
    owner.execute("INSERT INTO public.event_log (id) VALUES ('next')")

    assert [row[:2] for row in log(owner)] == [
        (1, "a"),
        (5, "x"),
        (6, "y"),
        (90, "z"),
        (91, "next"),
    ]


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_a_trigger_function_of_ours_is_nobody_elses(
    target: Target, role: str, owner: Plain
) -> None:
    owner.execute(f"CREATE SCHEMA mine AUTHORIZATION {role}".encode())
    with connected(target, role) as other:
        other.execute("CREATE TABLE mine.t (seq bigint, id text)")
        with pytest.raises(DENIED):
            other.execute(
                "CREATE TRIGGER t BEFORE INSERT ON mine.t FOR EACH ROW"
                " EXECUTE FUNCTION public.event_log_insert()"
            )


def test_what_a_role_shadows_in_its_session_changes_nothing(owner: Plain, writer: Plain) -> None:
    owner.execute("GRANT TEMP ON DATABASE " + owner.info.dbname + " TO writer")
    writer.execute("CREATE TEMP TABLE event_log (id text, key text, data text, packed bytea)")
    writer.execute(
        "CREATE FUNCTION pg_temp.currval(text) RETURNS bigint LANGUAGE sql AS 'SELECT 9::bigint'"
    )
    writer.execute("SET search_path = pg_temp, public")

    for retry in OTHERS:
        with pytest.raises(psycopg.errors.UniqueViolation):
            writer.execute(retry.replace("event_log", "public.event_log"))
    assert len(log(owner)) == 1


def test_a_reader_reads_all_and_writes_nothing(owner: Plain, reader: Plain) -> None:
    for table in [*migrate.tables(), "umzug_meta"]:
        reader.execute(f"SELECT * FROM {table}".encode())
        for statement in (f"DELETE FROM {table}", f"INSERT INTO {table} DEFAULT VALUES"):
            with pytest.raises(DENIED):
                reader.execute(statement.encode())
    assert len(log(owner)) == 1


def test_a_new_table_of_a_projection_is_read_by_readers_too(target: Target, reader: Plain) -> None:
    with storage.database(target.name).open(writable=True) as store:
        store.views.prepare(PerProject())

    assert reader.execute("SELECT * FROM per_project").fetchall() == []
    with connected(target, "writer") as writer, pytest.raises(DENIED):
        writer.execute("SELECT * FROM per_project")


def test_a_writer_that_leaves_a_transaction_idle_is_ended(writer: Plain) -> None:
    assert writer.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("1min",)


def test_the_time_that_somebody_chose_for_that_stays(target: Target, owner: Plain) -> None:
    owner.execute("ALTER ROLE writer SET idle_in_transaction_session_timeout = '5min'")
    database = owner.info.dbname.encode()
    owner.execute(b"ALTER ROLE writer IN DATABASE " + database + b" RESET ALL")

    migrate.setup(target, writer="writer")

    with connected(target, "writer") as writer:
        chosen = writer.execute("SHOW idle_in_transaction_session_timeout").fetchone()
    assert chosen == ("5min",)


def test_rights_that_a_role_had_before_are_taken_back(target: Target, owner: Plain) -> None:
    owner.execute("GRANT ALL ON public.event_log, public.event_log_seq_seq TO writer")

    migrate.setup(target, writer="writer")

    with connected(target, "writer") as writer, pytest.raises(DENIED):
        writer.execute("DELETE FROM event_log")


def test_a_reader_gets_view_json_back_where_nobody_may_call_functions(
    target: Target, owner: Plain, reader: Plain
) -> None:
    view_json = r"SELECT public.view_json('\x80'::bytea)"
    owner.execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC, reader")
    with pytest.raises(DENIED):
        reader.execute(view_json)

    migrate.setup(target, reader="reader")

    assert reader.execute(view_json).fetchall() == [({},)]


def test_the_command_grants_roles_what_they_need_and_says_so(postgres: Server) -> None:
    postgres.sql("CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN")
    try:
        with postgres.database() as url:
            grant = ["db", "setup", "-d", url, "--writer", "writer", "--reader", "reader"]
            first, again = (projector(*grant).stdout for _ in range(2))
            status = projector("db", "status", "-d", url).stdout
            refused = projector("db", "setup", "-d", url, "--group", "users", check=2)
            nobody = projector("db", "setup", "-d", url, "--writer", "nobody-here", check=2)
            with connected(parse(url), "writer") as writer:
                writer.execute(INSERT)
    finally:
        postgres.sql("DROP ROLE writer, reader")

    assert "the role writer may add events" in first
    assert "the role reader may read events and views" in first
    assert "nothing to do" in again
    assert {line.split()[0] for line in status.splitlines()} == {"applied"}
    assert "projector db setup --writer ROLE" in refused.stderr
    assert 'CREATE ROLE "nobody-here"' in nobody.stderr


def test_an_owner_that_is_no_superuser_sets_all_up(postgres: Server) -> None:
    postgres.sql("CREATE ROLE plain LOGIN; CREATE ROLE writer LOGIN; CREATE ROLE reader LOGIN")
    try:
        with postgres.database() as url:
            name = parse(url).settings["dbname"]
            postgres.sql(f"GRANT CREATE ON DATABASE {name} TO plain")
            target = parse(f"{url.replace('postgres@', 'plain@')}&schema=events")

            migrate.setup(target, writer="writer", reader="reader")

            with opened(target) as connection:
                migrate.check(connection)
            with connected(target, "writer") as writer:
                writer.execute(INSERT.replace("event_log", "events.event_log"))
            with connected(target, "reader") as reader:
                assert len(reader.execute("SELECT * FROM events.event_log").fetchall()) == 1
    finally:
        postgres.sql("DROP ROLE plain, writer, reader")


def test_a_two_phase_commit_is_possible_while_a_daemon_waits_for_the_bell(
    owner: Plain, writer: Plain
) -> None:
    owner.execute("SELECT pg_advisory_lock(1886547818, 'public.event_log'::regclass::oid::int)")
    writer.execute("BEGIN")
    writer.execute("SET LOCAL projector.bell = off")
    writer.execute(INSERT.replace("'a'", "'b'"))
    writer.execute("PREPARE TRANSACTION 'writer'")
    writer.execute("COMMIT PREPARED 'writer'")

    assert [row[1] for row in log(owner)] == ["a", "b"]


def test_the_bell_rings_only_who_waits(owner: Plain, writer: Plain) -> None:
    oid = owner.execute("SELECT 'public.event_log'::regclass::oid::int").fetchone()
    assert oid is not None
    owner.execute(f"LISTEN projector_{oid[0]}".encode())
    writer.execute(INSERT.replace("'a'", "'unheard'"))
    owner.execute("SELECT pg_advisory_lock(1886547818, %s::int4)", oid)
    writer.execute(INSERT.replace("'a'", "'heard'"))

    heard = next(owner.notifies(timeout=20))

    assert (heard.channel, heard.payload) == (f"projector_{oid[0]}", "")
    assert list(owner.notifies(timeout=0)) == []
