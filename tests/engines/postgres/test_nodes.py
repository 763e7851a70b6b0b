"""Several daemons at one PostgreSQL database: who leads what, and who takes over."""

import json
import signal
from collections.abc import Iterator

import pytest
from support import daemon, projector
from support.extensions import PROGRAM
from support.nodes import Log, folds
from support.postgres import Server

from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Leadership
from session_projector.worker.storage.postgres.locks import LEAD_CLASS

PER_PROJECT = ("--projection", "support.extensions:PerProject")
LEADERS = f"""
    SELECT DISTINCT pid FROM pg_locks WHERE classid = {LEAD_CLASS} AND mode = 'ExclusiveLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
AWAY = "UPDATE public.leader SET host = 'far', machine = 'another'"


def end_leader(log: Log) -> None:
    """End the session that the leader's locks are of."""
    log.sql(f"SELECT pg_terminate_backend(pid) FROM ({LEADERS}) AS found")


@pytest.fixture
def log(postgres: Server) -> Iterator[Log]:
    with postgres.database(template=postgres.template) as url:
        yield Log(url)


def test_one_that_is_killed_is_followed_by_the_one_that_stands_by(log: Log) -> None:
    with daemon(log.url) as first:
        first.wait_for("started")
        with daemon(log.url) as second:
            second.wait_for("standing_by", daemon_pid=first.process.pid)
            folds(first, log)
            first.process.kill()
            second.wait_for("started", projections=["sessions", "session_index"])
            folds(second, log)
            assert second.stop(signal.SIGTERM) == 0
    projector("verify", "-d", log.url)


def test_each_leads_what_no_other_one_leads_and_takes_over_the_rest(log: Log) -> None:
    with daemon(log.url) as first:
        first.wait_for("started")
        with daemon(log.url, program=PROGRAM, options=PER_PROJECT) as second:
            second.wait_for("started", projections=["per_project"])
            position = log.created()
            first.wait_until_at(position)
            second.wait_until_at(position)
            status = json.loads(projector("status", "--json", "-d", log.url).stdout)
            first.process.kill()
            for name in ("sessions", "session_index"):
                second.wait_for("took_over", projection=name)
            for _ in range(2):
                second.wait_for("caught_up")
            position = log.created()
            second.wait_until_at(position)

    assert {*status["daemon"]["running"]} == {"per_project", "sessions", "session_index"}
    assert {one["pid"] for one in status["daemons"]} == {first.process.pid, second.process.pid}
    assert log.sql("SELECT DISTINCT position FROM checkpoint") == [(position,)]


def test_one_that_loses_the_session_of_its_locks_says_so_and_tries_again(log: Log) -> None:
    with daemon(log.url) as running:
        running.wait_for("started")
        folds(running, log)
        end_leader(log)
        running.wait_for("leadership_lost")
        running.wait_for("started")
        folds(running, log)


def test_one_that_lost_it_to_another_stands_by(log: Log) -> None:
    with daemon(log.url) as first:
        first.wait_for("started")
        with daemon(log.url) as second:
            second.wait_for("standing_by")
            first.process.send_signal(signal.SIGSTOP)
            end_leader(log)
            second.wait_for("started")
            folds(second, log)
            first.process.send_signal(signal.SIGCONT)
            first.wait_for("leadership_lost")
            first.wait_for("standing_by", daemon_pid=second.process.pid)
            folds(second, log)
    projector("verify", "-d", log.url)


def leadership(log: Log, **running: int) -> Leadership:
    return storage.database(log.url).leadership(running)


def test_who_leads_some_leaves_the_rest_to_others_and_nothing_to_who_wants_all(log: Log) -> None:
    ours, theirs, whole = leadership(log, a=1, b=1), leadership(log, b=2, c=2), leadership(log)
    try:
        assert ours.acquire_some() == {"a", "b"}
        assert theirs.acquire_some() == {"c"}
        assert not theirs.acquire()
        assert not whole.acquire()
        assert [one.running for one in whole.leaders()] == [{"a": 1, "b": 1}, {"c": 2}]
        leader = whole.leader()
        assert leader is not None
        assert leader.running == {"a": 1, "b": 1, "c": 2}

        ours.release()

        assert theirs.acquire_some() == {"b", "c"}
        theirs.release()
        assert whole.acquire()
        assert ours.acquire_some() == set()
        assert not ours.acquire()
    finally:
        for one in (ours, theirs, whole):
            one.release()


def test_two_that_want_all_of_theirs_take_nothing_from_each_other(log: Log) -> None:
    ours, theirs, rest = leadership(log, a=1, b=1), leadership(log, b=1, c=1), leadership(log, c=1)
    try:
        assert ours.acquire()
        assert not theirs.acquire()
        assert rest.acquire()
    finally:
        for one in (ours, theirs, rest):
            one.release()


def test_logs_in_two_schemas_of_a_database_are_led_apart(log: Log) -> None:
    url = f"{log.url}&schema=other"
    storage.database(url).setup()
    here, there = storage.database(log.url).leadership(), storage.database(url).leadership()
    try:
        assert here.acquire()
        assert there.acquire()
    finally:
        here.release()
        there.release()


def test_a_daemon_on_another_host_is_named_with_it_and_nobody_is_told_to_end_a_process_here(
    log: Log,
) -> None:
    with daemon(log.url) as running:
        running.wait_for("started")
        folds(running, log)
        log.sql(AWAY)
        pid = running.process.pid
        running.process.send_signal(signal.SIGSTOP)
        position = log.created()
        said = {
            name: projector(*arguments, "-d", log.url, check=None)
            for name, arguments in {
                "status": ["status"],
                "json": ["status", "--json"],
                "health": ["health"],
                "doctor": ["doctor"],
                "wait": ["wait", str(position), "--timeout", "0.1"],
            }.items()
        }
        with daemon(log.url) as waiting:
            waiting.wait_for("standing_by", daemon_pid=pid, daemon_host="far")
    for one in said.values():
        assert "kill" not in one.stdout + one.stderr
    for name in ("status", "health", "doctor", "wait"):
        assert f"process {pid} on far" in said[name].stdout + said[name].stderr
    found = json.loads(said["json"].stdout)["daemon"]
    assert (found["alive"], found["pid"], found["host"]) == (True, pid, "far")


def test_what_a_daemon_leads_is_rebuilt_by_nobody_else(log: Log) -> None:
    with daemon(log.url) as running:
        running.wait_for("started")
        folds(running, log)
        done = projector("projection", "drop", "sessions", "--yes", "-d", log.url, check=None)
        assert done.returncode == 1
        assert f"process {running.process.pid}" in done.stderr
        projector("run", "--once", "-d", log.url)
        projector("replay", "-d", log.url)
        folds(running, log)
