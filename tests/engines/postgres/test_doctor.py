"""`projector doctor` on PostgreSQL: broken in each way, what it says, and that this fixes it."""

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from threading import Thread
from typing import Any

import anyio
import msgspec
import psycopg
import pytest
from support import PROJECTOR, projector
from support.postgres import Server

from session_projector.projections import BUILT_IN
from session_projector.worker.daemon import supervisor
from session_projector.worker.doctor.examine import examine
from session_projector.worker.errors import naming
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Check
from session_projector.worker.storage.postgres.connection import opened
from session_projector.worker.storage.postgres.doctor import checks
from session_projector.worker.storage.postgres.target import parse

OF_THE_SERVER = {"postgresql", "daemon"}
CREATED = '{"type": "session_created", "data": {"project": "P", "messages": []}}'
INSERT = "INSERT INTO event_log (id, key, data, created_at) VALUES (%s, 'session:s', %s, 1)"
LOG = "ALTER TABLE public.event_log"


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    """A database with one session, folded."""
    with postgres.database(template=postgres.template) as url:
        run(url, INSERT, ("a", CREATED))
        anyio.run(supervisor.run_once, storage.database(url), BUILT_IN)
        yield url


@pytest.fixture
def role(postgres: Server) -> Iterator[str]:
    """A role that may do nothing yet."""
    postgres.sql("CREATE ROLE somebody LOGIN")
    yield "somebody"
    postgres.sql("DROP ROLE somebody")


def run(url: str, statement: str, values: Any = None) -> list[Any]:
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def found(url: str) -> list[Check]:
    checks = examine(storage.database(url))
    return [msgspec.structs.replace(one, fix=naming(url, one.fix)) for one in checks]


def look(url: str, check: str) -> Check:
    """What a check found, the worst of it."""
    levels = ["ok", "warn", "fail"]
    return max(
        (one for one in found(url) if one.check == check),
        key=lambda one: levels.index(one.level),
    )


def wrong(url: str) -> set[str]:
    return {one.check for one in found(url) if one.level != "ok"} - OF_THE_SERVER


def fix(one: Check, server: Server) -> None:
    """Run the commands that a finding gives, one after the other, in a shell."""
    commands = re.findall("`([^`]*)`", one.fix)
    assert commands, one
    ours = f'projector() {{ {shlex.join(PROJECTOR)} "$@"; }}\n'
    for command in commands:
        done = subprocess.run(
            ["bash", "-euc", ours + command],
            env={**os.environ, "PATH": f"{server.binaries}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done)


def test_all_is_ok_of_a_healthy_database(url: str) -> None:
    assert wrong(url) == set()
    names = [one.check for one in found(url)]
    assert names[:6] == ["database", "schema", "seq", "triggers", "indexes", "session keys"]
    assert len(names) == len({*names})


def test_a_database_without_a_schema_is_set_up_by_the_command(postgres: Server) -> None:
    with postgres.database() as url:
        one = look(url, "schema")
        assert one.level == "fail"
        fix(one, postgres)
        assert wrong(url) == set()


def test_a_role_that_does_not_exist_is_created_by_the_command(postgres: Server) -> None:
    there_is_none = look(postgres.url("postgres").replace("postgres@", "nobody@"), "database")
    assert "does not exist" in there_is_none.found
    fix(there_is_none, postgres)
    postgres.sql("DROP ROLE nobody")


def test_a_server_that_cannot_be_reached_and_one_in_another_encoding_are_said(
    postgres: Server,
) -> None:
    there_is_none = look(postgres.url("nowhere"), "database")
    assert "does not exist" in there_is_none.found
    fix(there_is_none, postgres)
    try:
        assert look(postgres.url("nowhere"), "schema").level == "fail"
    finally:
        postgres.sql("DROP DATABASE nowhere")
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        assert "stores text as LATIN1" in look(postgres.url("latin"), "database").found
    finally:
        postgres.sql("DROP DATABASE latin")


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        ("DROP TABLE deferred", "schema", "lacks deferred"),
        (f"{LOG} ALTER seq SET CACHE 20", "seq", "CACHE 20"),
        (f"{LOG} ALTER seq SET CYCLE", "seq", "CYCLE"),
        (f"{LOG} ALTER seq SET INCREMENT -1", "seq", "INCREMENT -1"),
        (f"{LOG} ALTER seq SET GENERATED BY DEFAULT", "seq", "BY DEFAULT"),
        (f"{LOG} ALTER seq DROP IDENTITY", "seq", "no identity column"),
        (
            INSERT.replace("%s", "'b'", 1).replace("%s", "NULL")
            + "; SELECT setval('event_log_seq_seq', 1)",
            "seq",
            "the next position, 2, is not above the newest one, 2",
        ),
        (
            INSERT.replace("%s", "'b'", 1).replace("%s", "NULL") + f"; {LOG} ALTER seq RESTART 1",
            "seq",
            "the next position, 1, is not above the newest one, 2",
        ),
        (f"{LOG} DISABLE TRIGGER event_log_insert", "triggers", "event_log_insert is disabled"),
        (f"{LOG} ENABLE TRIGGER event_log_append_only", "triggers", "append_only is changed"),
        ("DROP TRIGGER event_log_bell ON event_log", "triggers", "event_log_bell is gone"),
        (
            "CREATE TRIGGER mine BEFORE INSERT ON view FOR EACH STATEMENT"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "triggers",
            "a trigger of another program, mine, ",
        ),
        ("CREATE RULE r AS ON INSERT TO event_log DO INSTEAD NOTHING", "triggers", "a rule of"),
        ("ALTER TABLE view ENABLE ROW LEVEL SECURITY", "triggers", "row security"),
        ("DROP INDEX idx_event_log_key", "indexes", "idx_event_log_key is gone"),
        ("ALTER TABLE quarantine DROP CONSTRAINT quarantine_pkey", "indexes", "pkey is gone"),
        ("CREATE UNIQUE INDEX theirs ON view (last_offset_id)", "indexes", "theirs"),
        ("ALTER TABLE view ADD CONSTRAINT one UNIQUE (updated_at)", "indexes", "one"),
        ("CREATE INDEX slow ON view ((length(key)))", "indexes", "slow"),
        ("DROP INDEX idx_view_session_key", "session keys", "is gone"),
        ("UPDATE checkpoint SET digest = 'x'", "checkpoint", "does not match"),
        ("UPDATE checkpoint SET position = 99", "checkpoint", "does not match"),
        ("GRANT UPDATE ON event_log TO PUBLIC", "writers", "everybody may do more"),
        ("GRANT UPDATE ON view TO PUBLIC", "writers", "everybody may do more than read view"),
        ("ALTER TABLE view SET (autovacuum_enabled = false)", "vacuum", "off for view"),
        ("ALTER TABLE view SET (toast.autovacuum_enabled = off)", "vacuum", "view's TOAST"),
        (
            "ALTER TABLE view ALTER data SET STORAGE EXTENDED, ALTER data SET COMPRESSION pglz",
            "compression",
            "compressed by pglz",
        ),
    ],
)
def test_what_is_broken_is_found_and_the_command_fixes_it(
    url: str, postgres: Server, broken: str, check: str, words: str
) -> None:
    run(url, broken)

    one = look(url, check)

    assert one.level != "ok"
    assert words in one.found
    fix(one, postgres)
    assert wrong(url) == set()


def test_a_view_of_a_newer_version_is_found(url: str) -> None:
    run(url, "UPDATE checkpoint SET version = 99 WHERE name = 'sessions'")

    one = look(url, "checkpoint")

    assert "of version 99, the code here" in one.found
    assert "pip install -U session-projector" in one.fix


def test_events_of_the_future_are_found(url: str) -> None:
    run(url, INSERT.replace("1)", "9999999999999)"), ("b", "{}"))

    assert "in the future" in look(url, "clock").found


@pytest.mark.parametrize(
    ("taken", "check", "words"),
    [
        ("INSERT (packed) ON event_log", "writers", "lacks INSERT on event_log packed"),
        ("SELECT (seq) ON event_log", "writers", "lacks SELECT on event_log seq"),
        ("SELECT (position) ON checkpoint", "writers", "lacks SELECT on checkpoint position"),
        ("USAGE ON SCHEMA there", "writers", "lacks USAGE of the schema"),
    ],
)
def test_a_writer_that_lost_a_right_is_found_and_given_it_back(
    postgres: Server, role: str, taken: str, check: str, words: str
) -> None:
    with postgres.database() as url:
        there = f"{url}&schema=there"
        storage.database(there).setup(writer=role)
        run(url, f"SET search_path = there; REVOKE {taken} FROM {role}")
        one = look(there, check)
        assert words in one.found
        fix(one, postgres)
        assert look(there, check).level == "ok"


def test_a_reader_that_lost_a_table_is_found_and_given_it_back(
    url: str, postgres: Server, role: str
) -> None:
    storage.database(url).setup(reader=role)
    try:
        assert wrong(url) == set()
        run(url, f"REVOKE SELECT ON session_index, quarantine FROM {role}")
        one = look(url, "readers")
        assert f"{role} lacks SELECT on" in one.found
        assert "session_index" in one.found
        fix(one, postgres)
        assert wrong(url) == set()
    finally:
        run(url, f"DROP OWNED BY {role}")


@pytest.mark.parametrize(
    "granted", ["UPDATE ON view", "INSERT (key) ON view", "TRIGGER ON deferred"]
)
def test_a_role_that_may_change_what_is_folded_is_found_and_its_rights_taken_back(
    url: str, postgres: Server, role: str, granted: str
) -> None:
    run(url, f"GRANT {granted} TO {role}")
    try:
        one = look(url, "writers")
        assert f"{role} may do more than read" in one.found
        fix(one, postgres)
        assert wrong(url) == set()
    finally:
        run(url, f"DROP OWNED BY {role}")


def test_cures_name_the_role_that_may_run_them(url: str, postgres: Server, role: str) -> None:
    storage.database(url).setup(reader=role)
    theirs = url.replace("postgres@", f"{role}@")
    try:
        run(
            url,
            f"{LOG} DISABLE TRIGGER event_log_insert;"
            " ALTER TABLE view SET (autovacuum_enabled = false)",
        )
        told = projector("doctor", "-d", theirs, check=1)
        assert f"projector db setup -d '{url}'" in told.stdout
        assert f"psql '{url}' -c" in told.stdout
        refused = projector("board", "--allow-actions", "-d", theirs, check=2).stderr
        assert f"projector board --allow-actions -d '{url}'" in refused
        for one in (look(url, "triggers"), look(theirs, "vacuum")):
            fix(one, postgres)
        assert wrong(url) == set()
    finally:
        run(url, f"DROP OWNED BY {role}")


def test_a_server_that_cannot_be_had_is_said_once(postgres: Server) -> None:
    assert [one.check for one in found(postgres.url("nowhere"))] == ["database"]


@pytest.mark.parametrize(
    "granted",
    [
        "INSERT ON event_log",
        "UPDATE, TRIGGER ON event_log",
        "INSERT (seq) ON event_log",
        "USAGE ON SEQUENCE event_log_seq_seq",
    ],
)
def test_a_writer_that_may_do_more_is_found_and_its_rights_taken_back(
    url: str, postgres: Server, role: str, granted: str
) -> None:
    run(url, f"GRANT {granted} TO {role}")
    try:
        one = look(url, "writers")
        assert f"{role} may do more than add events" in one.found
        fix(one, postgres)
        assert wrong(url) == set()
        assert f"{role} may add events, and change nothing else" in look(url, "writers").found
    finally:
        run(url, f"DROP OWNED BY {role}")


def test_a_writer_whose_transactions_may_stay_idle_is_found(
    url: str, postgres: Server, role: str
) -> None:
    storage.database(url).setup(writer=role)
    run(
        url, f'ALTER ROLE {role} IN DATABASE "{url.partition("?")[0].rpartition("/")[2]}" RESET ALL'
    )
    try:
        one = look(url, "writers")
        assert f"{role} may leave an event uncommitted for ever" in one.found
        fix(one, postgres)
        assert wrong(url) == set()
    finally:
        run(url, f"DROP OWNED BY {role}")


def test_a_role_that_does_not_own_the_tables_is_told(url: str, role: str) -> None:
    storage.database(url).setup(reader=role)
    try:
        one = look(url.replace("postgres@", f"{role}@"), "rights")
        assert f"the role {role} does not own checkpoint" in one.found
        assert "run those as postgres" in one.fix
    finally:
        run(url, f"DROP OWNED BY {role}")


def test_an_owner_that_cannot_see_how_old_transactions_are_is_told_and_names_them_still(
    postgres: Server, role: str
) -> None:
    with postgres.database() as url:
        run(url, f"GRANT CREATE ON SCHEMA public TO {role}")
        theirs = url.replace("postgres@", f"{role}@")
        storage.database(theirs).setup()
        assert "cannot see how long" in look(theirs, "rights").found
        with closing(psycopg.connect(url)) as writer:
            writer.execute(INSERT, ("open", "{}"))
            run(url, INSERT, ("next", "{}"))
            one = look(theirs, "held back")
            assert f"process {writer.info.backend_pid} of the server" in one.found
            assert "postgres" in one.found

        one = look(theirs, "rights")
        as_superuser = one.fix.replace(f"{role}@", "postgres@")
        fix(msgspec.structs.replace(one, fix=as_superuser), postgres)
        assert look(theirs, "rights").level == "ok"
        run(url, f"DROP OWNED BY {role} CASCADE")


def old(url: str, pid: int) -> None:
    """Wait until the transaction of a session has been there for longer than a moment."""
    age = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND now() - xact_start > '1s'"
    while not run(url, age, (pid,)):
        run(url, "SELECT pg_sleep(0.05)")


def test_who_leaves_an_event_uncommitted_is_found_and_ended_by_the_command(
    url: str, postgres: Server
) -> None:
    with closing(psycopg.connect(url, application_name="agent")) as writer:
        writer.execute(INSERT, ("open", "{}"))
        run(url, INSERT, ("next", "{}"))
        old(url, writer.info.backend_pid)

        one = look(url, "held back")

        assert one.level == "warn"
        assert f"agent (postgres, process {writer.info.backend_pid} of the server)" in one.found
        fix(one, postgres)
        assert wrong(url) == set()
        with suppress(psycopg.Error):
            writer.rollback()


def test_a_prepared_transaction_that_was_forgotten_is_found(url: str, postgres: Server) -> None:
    with closing(psycopg.connect(url, autocommit=True)) as writer:
        writer.execute("BEGIN")
        writer.execute(INSERT, ("open", "{}"))
        writer.execute("PREPARE TRANSACTION 'it''s'")
    with opened(parse(url)) as connection:
        (now,) = checks.prepared(connection)
        (late,) = checks.prepared(connection, old_s=0)

    assert (now.level, late.level) == ("ok", "warn")
    assert "it's of postgres" in late.found
    fix(late, postgres)
    assert run(url, "SELECT 1 FROM pg_prepared_xacts WHERE database = current_database()") == []


def test_a_transaction_that_holds_vacuum_back_is_found(url: str, postgres: Server) -> None:
    with closing(psycopg.connect(url, application_name="report")) as reader:
        reader.execute("SET default_transaction_isolation = 'repeatable read'")
        reader.commit()
        reader.execute("SELECT * FROM view")
        with opened(parse(url)) as connection:
            (now,) = checks.vacuum(connection)
            (late,) = checks.vacuum(connection, old_s=0)

        assert (now.level, late.level) == ("ok", "warn")
        assert f"report (postgres, process {reader.info.backend_pid} of the server)" in late.found
        fix(late, postgres)
        with opened(parse(url)) as connection:
            assert [one.level for one in checks.vacuum(connection, old_s=0)] == ["ok"]


@contextmanager
def forwarded(url: str, *, pooled: bool = False) -> Iterator[str]:
    """The URL by TCP of a server that has but a socket; or as a pooler gives it, which tells each
    client a number of its own."""
    path = f"{parse(url).settings['host']}/.s.PGSQL.5432"
    listening = socket.create_server(("127.0.0.1", 0))

    def pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                at = data.find(b"K\0\0\0\x0c")
                if pooled and other.family == socket.AF_INET and at >= 0:
                    data = data[: at + 5] + b"\0\0\0\1" + data[at + 9 :]
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        one.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(path)
                for pair in ((client, there), (there, client)):
                    Thread(target=pump, args=pair, daemon=True).start()

    accepting = Thread(target=accept, daemon=True)
    accepting.start()
    database = parse(url).settings["dbname"]
    try:
        yield f"postgresql://postgres@127.0.0.1:{listening.getsockname()[1]}/{database}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()


def test_a_pooler_between_is_found(url: str) -> None:
    with forwarded(url, pooled=True) as there:
        one = look(there, "pooler")

    assert one.level == "warn"
    assert "is behind a pooler" in one.found


@pytest.mark.parametrize(("options", "end"), [("", "the server"), ("?keepalives=0", "this end")])
def test_an_end_that_hears_late_of_a_host_that_is_gone_is_found(
    url: str, options: str, end: str
) -> None:
    with forwarded(url) as there:  # the server's own end is no TCP, which knows no keepalives
        one = look(there + options, "keepalives")

    assert f"{end} notices only after hours" in one.found
    assert look(url, "keepalives").level == "ok"
