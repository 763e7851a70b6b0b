"""Leadership: at most one daemon leads, and whoever dies leads no more."""

import signal
from collections.abc import Callable
from typing import get_args

import pytest
from support.laws import elsewhere, said, tell

from session_projector.worker.errors import Lack
from session_projector.worker.storage.port import Database, Leader, Trouble

LEAD = """
from session_projector.worker.storage.port import Trouble
leadership = database.leadership({"sessions": 3, "counted": 1})
say(leadership.acquire())
while command := input():
    say(eval(command))
"""


def test_one_at_a_time_leads(database: Database) -> None:
    first, second = database.leadership(), database.leadership()

    got = [first.acquire(), second.acquire(), first.acquire(), second.acquire()]
    first.release()
    got += [second.acquire(), first.acquire()]
    second.release()

    assert got == [True, False, True, False, True, False]
    assert first.leader() is None


def test_releasing_what_one_has_not_takes_it_from_nobody(database: Database) -> None:
    first, second = database.leadership(), database.leadership()
    first.acquire()

    second.release()

    assert not second.acquire()
    first.release()


def test_who_leads_and_what_it_runs_is_seen_by_others(database: Database, url: str) -> None:
    nobody = database.leadership().leader()
    with elsewhere(url, LEAD) as daemon:
        assert said(daemon) == "True"

        leader = database.leadership().leader()

        assert leader is not None
        assert leader.running == {"sessions": 3, "counted": 1}
        assert leader.runs("counted")
        assert not leader.runs("other")
        assert not leader.suspended
        assert not database.leadership().acquire()
        tell(daemon, "leadership.release()")
        assert said(daemon) == "None"
        assert database.leadership().leader() is None
    assert nobody is None


@pytest.mark.parametrize("lacks", get_args(Lack))
def test_what_the_leader_waits_for_is_seen_until_it_goes_on(
    database: Database, url: str, lacks: Lack
) -> None:
    with elsewhere(url, LEAD) as daemon:
        said(daemon)
        tell(daemon, f"leadership.tell(Trouble({lacks!r}, 1_764_339_000_000))")
        said(daemon)
        waiting = database.leadership().leader()
        taken = database.leadership().acquire()
        tell(daemon, "leadership.tell(None)")
        said(daemon)
        going_on = database.leadership().leader()

    assert waiting is not None
    assert going_on is not None
    assert waiting.trouble == Trouble(lacks, 1_764_339_000_000)
    assert waiting.running == going_on.running == {"sessions": 3, "counted": 1}
    assert going_on.trouble is None
    assert not taken


def test_a_leader_that_does_not_say_may_run_anything(database: Database) -> None:
    leadership = database.leadership()
    leadership.acquire()

    leader = database.leadership().leader()

    assert leader is not None
    assert leader.running == {}
    assert leader.runs("anything")
    leadership.release()


def test_who_leads_next_says_what_it_runs_and_no_more(database: Database) -> None:
    many = {f"projection_{n}": n for n in range(50)}
    for running in (many, {"one": 1}):
        leadership = database.leadership(running)
        leadership.acquire()
        leader = database.leadership().leader()
        leadership.release()

        assert leader is not None
        assert leader.running == running


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_leader_that_is_killed_leads_no_more(
    database: Database, url: str, end: signal.Signals
) -> None:
    with elsewhere(url, LEAD) as daemon:
        assert said(daemon) == "True"
        daemon.send_signal(end)
        daemon.wait()

        leadership = database.leadership()
        assert leadership.leader() is None
        assert leadership.acquire()
        leadership.release()


@pytest.mark.needs("processes")
def test_the_process_that_leads_is_named_and_whether_it_is_suspended(
    database: Database, url: str
) -> None:
    with elsewhere(url, LEAD) as daemon:
        said(daemon)
        alive = database.leadership().leader()
        daemon.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_suspended(database.leadership().leader()))
        suspended = database.leadership().leader()
        daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: not is_suspended(database.leadership().leader()))

    assert alive is not None
    assert suspended is not None
    assert (alive.pid, alive.suspended) == (daemon.pid, False)
    assert (suspended.pid, suspended.suspended) == (daemon.pid, True)
    assert str(alive) == f"process {daemon.pid}"


def is_suspended(leader: Leader | None) -> bool:
    return leader is not None and leader.suspended


def wait_until(what: Callable[[], bool]) -> None:
    while not what():
        pass


@pytest.mark.needs("processes")
def test_who_stands_by_is_named_until_it_leads_or_gives_up(database: Database, url: str) -> None:
    ours = database.leadership()
    ours.acquire()
    with elsewhere(url, LEAD) as daemon:
        assert said(daemon) == "False"
        waiting = [ours.standing_by()]
        for command in (
            "leadership.acquire(stand_by=True)",
            "leadership.acquire(stand_by=True)",
            "leadership.acquire()",
            "leadership.acquire(stand_by=True)",
            "leadership.release()",
        ):
            tell(daemon, command)
            said(daemon)
            waiting.append(ours.standing_by())
        ours.release()
        tell(daemon, "leadership.acquire(stand_by=True)")
        assert said(daemon) == "True"

        assert [len(names) for names in waiting] == [0, 1, 1, 0, 1, 0]
        assert str(daemon.pid) in waiting[1][0]
        assert database.leadership().standing_by() == []


def test_the_command_that_shows_who_leads_can_be_pasted(database: Database) -> None:
    command = database.leadership().who_holds_it

    assert command.startswith("`")
    assert command.endswith("`")


def test_who_may_not_lead_may_write(database: Database, url: str) -> None:
    """Leadership is no fence: that is the compare-and-set of a commit."""
    with elsewhere(url, LEAD) as daemon:
        said(daemon)
        with database.open(writable=True) as store, store.transaction():
            pass
