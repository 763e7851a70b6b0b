"""A server that restarts, is replaced, refuses or ends sessions: waited out, said, and no event is
skipped."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import PROJECTOR, Daemon, daemon, projector
from support.nodes import Log, folds
from support.postgres import Server

from session_projector.worker.storage import open as storage

NAMES = ["sessions", "session_index"]


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that may be stopped."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def log(server: Server) -> Log:
    server.sql("CREATE DATABASE log")
    storage.database(server.url("log")).setup()
    return Log(server.url("log"))


def comes_back(running: Daemon, log: Log) -> None:
    """It says that the database is available again, and has folded all."""
    running.wait_for("database_available_again")
    folds(running, log)
    projector("verify", "-d", log.url)


@pytest.mark.parametrize("how", ["SIGINT", "SIGQUIT"])
def test_a_restart_is_waited_out(server: Server, log: Log, how: str) -> None:
    with daemon(log.url) as running:
        running.wait_for("started")
        for _ in range(2):
            folds(running, log)
            log.created()
            server.stop(how)
            running.wait_for("database_unavailable")
            server.start()
            comes_back(running, log)
        assert running.stop(signal.SIGTERM) == 0


def test_a_daemon_that_starts_before_its_server_waits(server: Server, log: Log) -> None:
    position = log.created()
    server.stop()
    with daemon(log.url) as running:
        running.wait_for("database_unavailable")
        server.start()
        running.wait_for("database_available_again")
        running.wait_for("started", projections=NAMES)
        running.wait_until_at(position)
    server.stop()
    with daemon(log.url) as running:
        running.wait_for("database_unavailable")
        assert running.stop(signal.SIGTERM) == 0
    assert projector("run", "--once", "-d", log.url, check=None).returncode == 3


def test_one_that_stands_by_waits_too(server: Server, log: Log) -> None:
    with daemon(log.url) as first:
        first.wait_for("started")
        with daemon(log.url) as second:
            second.wait_for("standing_by")
            server.stop("SIGQUIT")
            second.wait_for("database_unavailable")
            first.process.kill()
            server.start()
            second.wait_for("started")
            folds(second, log)


def test_connections_that_are_lacking_are_waited_for(server: Server, log: Log) -> None:
    server.sql("CREATE ROLE small LOGIN CONNECTION LIMIT 0")
    own = ("GRANT CREATE ON DATABASE log TO small", "GRANT ALL ON SCHEMA small TO small")
    for statement in ("CREATE SCHEMA small", *own, "ALTER ROLE small CONNECTION LIMIT -1"):
        server.sql(statement, database="log")
    url = log.url.replace("//postgres@", "//small@") + "&schema=small"
    storage.database(url).setup()
    small = Log(url, schema="small")
    server.sql("ALTER ROLE small CONNECTION LIMIT 0")
    with daemon(url) as running:
        said = running.wait_for("database_unavailable")
        assert "max_connections, or a limit" in said["hint"]
        server.sql("ALTER ROLE small CONNECTION LIMIT -1")
        running.wait_for("started")
        folds(running, small)
        server.sql("ALTER ROLE small CONNECTION LIMIT 0")
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'small'")
        said = running.wait_for("database_unavailable")
        server.sql("ALTER ROLE small CONNECTION LIMIT -1")
        comes_back(running, small)


def test_each_session_that_is_ended_is_made_again(log: Log) -> None:
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'projector@%'"
    with daemon(log.url) as running:
        running.wait_for("started")
        folds(running, log)
        before: set[int] = set()
        while len(before) < 3:  # the store's, the bell's and the one of the locks
            before = {pid for (pid,) in log.sql(sessions)}
        for pid in before:
            log.sql("SELECT pg_terminate_backend(%s)", pid)
            folds(running, log)
        while before & {pid for (pid,) in log.sql(sessions)}:
            pass
        folds(running, log)
    projector("verify", "-d", log.url)


def test_times_that_a_role_has_are_not_the_daemons(server: Server, log: Log) -> None:
    for name in ("statement_timeout", "idle_session_timeout", "transaction_timeout"):
        if server.sql(f"SELECT 1 FROM pg_settings WHERE name = '{name}'"):
            server.sql(f"ALTER ROLE postgres IN DATABASE log SET {name} = '20ms'")
    # The writer may be slow.
    own = Log(f"{log.url}&options=-c%20statement_timeout%3D0%20-c%20idle_session_timeout%3D0")
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'projector@%'"
    with daemon(log.url) as running:
        running.wait_for("started")
        folds(running, own)
        while len(before := server.sql(sessions)) < 3:
            pass
        for _ in range(3):
            server.sql("SELECT pg_sleep(0.05)")
            folds(running, own)
        assert sorted(server.sql(sessions)) == sorted(before)


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A server that follows another one, until it is promoted."""
    standby = Server(wal_level="replica", max_wal_senders=4)
    try:
        standby.stop()
        data = standby.socket / "data"
        owner = standby.socket.stat()
        shutil.rmtree(data)
        subprocess.run(
            [
                *(primary.binaries / "pg_basebackup", "-R", "-D", data, "-h", primary.socket),
                *("-U", "postgres", "-X", "stream", "--checkpoint=fast"),
            ],
            check=True,
            cwd="/",
            **as_owner(owner),
        )
        standby.start()
        yield standby
    finally:
        standby.close()


def as_owner(owner: os.stat_result) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def test_another_host_of_the_url_is_used_once_it_is_promoted() -> None:
    primary = Server(wal_level="replica", max_wal_senders=4)
    try:
        primary.sql("CREATE DATABASE log")
        storage.database(primary.url("log")).setup()
        with standby_of(primary) as standby:
            both = f"{primary.url('log')},{standby.socket}"
            log = Log(both + "&target_session_attrs=read-write")
            with daemon(both) as running:
                running.wait_for("started")
                folds(running, log)
                position = log.created()
                follows = f"SELECT position >= {position} FROM checkpoint ORDER BY position LIMIT 1"
                while standby.sql(follows, database="log") != [(True,)]:
                    time.sleep(0.005)
                primary.stop("SIGQUIT")
                running.wait_for("database_unavailable")
                standby.sql("SELECT pg_promote()")
                comes_back(running, log)
    finally:
        primary.close()


@pytest.fixture
def pooled(server: Server) -> Iterator[str]:
    """The URL of a pooler in transaction mode."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer")
    owner = server.socket.stat()
    folder = server.socket / "pooler"
    folder.mkdir()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\nlog = host={server.socket} user=postgres pool_size=2\n[pgbouncer]\n"
        f"listen_addr =\nlisten_port = 6432\nunix_socket_dir = {folder}\nauth_type = any\n"
        "pool_mode = transaction\nignore_startup_parameters = extra_float_digits\n"
    )
    for path in (folder, settings):
        os.chown(path, owner.st_uid, owner.st_gid)
    with subprocess.Popen(
        [program, settings], stderr=subprocess.PIPE, text=True, **as_owner(owner)
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "process up" in line:
                    break
            yield f"postgresql://postgres@/log?host={folder}&port=6432"
        finally:
            process.kill()


@pytest.mark.timeout(120)
def test_commands_work_through_a_pooler_and_a_daemon_refuses(log: Log, pooled: str) -> None:
    log.created()
    refused = [projector(*command, "-d", pooled, check=4) for command in (["run"], ["replay"])]
    with daemon(log.url) as running:
        running.wait_for("started")
        folds(running, log)
        for command in (["status"], ["verify"], ["session", "list"], ["wait"]):
            for _ in range(2):
                projector(*command, "-d", pooled)

    for one in refused:
        assert "PgBouncer" in one.stderr
        assert "name the server's own address" in one.stderr
        assert not one.stdout


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def away() -> Iterator[tuple[list[str], str]]:
    """The command that runs a program on another host, and the address of this one there."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces")
    name, here = f"projector{os.getpid()}", f"pj{os.getpid() % 100_000}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces cannot be made here")
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", "eth9", "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", "eth9")
        ip("-n", name, "link", "set", "eth9", "up")
        yield ["ip", "netns", "exec", name], "10.213.7.1"
    finally:
        ip("netns", "del", name)


@pytest.mark.timeout(120)
def test_a_host_that_is_gone_without_a_word_leads_no_more(away: tuple[list[str], str]) -> None:
    there, address = away
    server = Server(listen_addresses=address)
    try:
        access = server.socket / "data" / "pg_hba.conf"
        access.write_text(access.read_text() + "host all all 10.213.7.0/30 trust\n")
        server.sql("SELECT pg_reload_conf()")
        server.sql("CREATE DATABASE log")
        url = f"postgresql://postgres@{address}/log"
        storage.database(url).setup()
        log = Log(url)
        with daemon(url, program=[*there, *PROJECTOR]) as first:
            first.wait_for("started")
            with daemon(url) as second:
                second.wait_for("standing_by")
                folds(first, log)
                ip("-n", there[-1], "link", "set", "eth9", "down")
                second.wait_for("started")
                folds(second, log)
                ip("-n", there[-1], "link", "set", "eth9", "up")
                first.wait_for("leadership_lost")
                first.wait_for("standing_by")
                folds(second, log)
        projector("verify", "-d", url)
    finally:
        server.close()
