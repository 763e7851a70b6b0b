"""`projector run --http`: what Prometheus scrapes, and the two health checks."""

import http.client
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import T0, Database, daemon, projector
from support.extensions import HOLD
from support.folding import target
from support.served import HTTP, address, get, scraped

from session_projector.projections import BUILT_IN
from session_projector.worker.telemetry import probes
from session_projector.worker.telemetry.http import served
from session_projector.worker.telemetry.metrics import StateCollector
from session_projector.worker.telemetry.state import Batch, DaemonState


def test_metrics_say_what_became_of_each_event(database: Database) -> None:
    database.created("A-1")
    database.insert("A-1", {"type": "anything at all"})
    database.insert("A-1", b"\xc1")
    database.insert("A-1", {"type": "session_append"})
    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        running.wait_until_at(4)
        projector("wait", "-d", database.url)
        found = scraped(url)

    events = {key[1:]: value for key, value in found.items() if key[0] == "projector_events_total"}
    assert {
        (labels["type"], labels["outcome"]): value
        for key, value in events.items()
        if (labels := dict(key))["projection"] == "sessions" and value
    } == {
        ("session_created", "folded"): 1,
        ("other", "skipped"): 1,
        ("undecodable", "quarantined"): 1,
        ("session_append", "quarantined"): 1,
    }
    assert found["projector_position", ("projection", "session_index")] == 4
    assert found["projector_newest_event",] == 4
    assert found["projector_lag_events", ("projection", "session_index")] == 0
    assert found["projector_lag_seconds", ("projection", "session_index")] == 0
    assert found["projector_batch_events_sum",] == 4
    assert found["projector_batch_events_count",] >= 1
    assert found["projector_lock_held_seconds_sum",] > 0
    assert (found["projector_wal_bytes",] > 0) == (database.engine == "sqlite")
    assert any(key[0] == "projector_build_info" for key in found)


def test_what_may_come_is_counted_from_0_so_that_a_first_one_is_seen_as_growth(
    database: Database,
) -> None:
    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        running.wait_for("started")
        found = scraped(url)

    kept = (("outcome", "quarantined"), ("projection", "sessions"), ("type", "undecodable"))
    assert found["projector_events_total", *kept] == 0
    assert found["projector_verify_findings_total", ("kind", "ghost"), kept[1]] == 0
    assert found["projector_rebuild_progress_ratio", ("projection", "sessions")] == 1


@pytest.mark.once
def test_names_follow_the_conventions_of_prometheus(database: Database) -> None:
    with daemon(database.url, options=HTTP) as running:
        _, text = get(f"{address(running)}/metrics")

    families = [*text_string_to_metric_families(text)]
    for family in families:
        # The parser takes `_total` off a counter, and off nothing else.
        assert re.fullmatch(r"(projector|process)_[a-z_]+(?<!_total)(?<!_count)", family.name)
        assert len(family.documentation) > 10
        assert not re.search(r"_(ms|millis\w*|minutes|kb|mb|percent|timer|avg)(_|$)", family.name)
        words = {*family.name.split("_")}
        assert not words & {"gauge", "counter", "histogram", "summary"}
    kinds = {family.name: family.type for family in families}
    assert kinds["projector_busy_waits"] == kinds["projector_events"] == "counter"
    assert kinds["projector_wakeup_to_commit_seconds"] == "histogram"


def test_a_scrape_is_of_one_moment() -> None:
    state = DaemonState()
    done = threading.Event()

    def feed() -> None:
        number = 0
        while not done.is_set():
            number += 1
            kinds = Counter({("p", f"type {number % 50}", "folded"): 3})
            batch = Batch(3, kinds, T0, duration_s=1, waited_s=1, held_s=1, wakeup_s=1)
            state.committed(batch, {f"p{number % 50}": number})
            state.differences_found([("p", f"kind {number % 50}")])
            state.fails(f"p{number % 50}")
            state.recovered(f"p{number % 50}")

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=feed)
    thread.start()
    try:
        taken = [samples(state) for _ in range(200)]
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval_s)

    assert taken[-1]["projector_lock_held_seconds"] > taken[0]["projector_lock_held_seconds"]
    for each in taken:
        *_, batches, seconds = each["projector_lock_held_seconds"]
        assert batches == seconds
        for name in ("batch_duration", "lock_wait", "wakeup_to_commit"):
            assert each[f"projector_{name}_seconds"][-2:] == [batches, batches]
        events = each["projector_batch_events"][-1]
        assert sum(each.get("projector_events", [])) == events == 3 * batches


def test_health_and_readiness(database: Database) -> None:
    database.created("A-1")
    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        running.wait_until_at(1)
        well = get(f"{url}/healthz"), get(f"{url}/readyz")
        with daemon(database.url, options=HTTP) as second:
            other = address(second)
            second.wait_for("standing_by")
            spare = get(f"{other}/healthz"), get(f"{other}/readyz")
            assert scraped(other)["projector_standing_by",] == 1
            running.stop(signal.SIGTERM)
            second.wait_for("started")
            newest = database.created("A-2")
            second.wait_until_at(newest)
            taken_over = get(f"{other}/readyz")

    assert well == ((200, "ok\n"), (200, "ok\n"))
    assert spare == ((200, "ok\n"), (503, "standing by for another daemon\n"))
    assert taken_over == (200, "ok\n")


def test_a_daemon_that_waits_for_a_lock_says_so_first_and_is_not_ready(database: Database) -> None:
    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        running.wait_until_at(database.created("A-1"))
        running.suspend()
        newest = database.created("A-2")
        with database.locked():
            running.process.send_signal(signal.SIGCONT)
            running.wait_for("database_unavailable")
            waiting = get(f"{url}/readyz"), get(f"{url}/healthz")
        running.wait_until_at(newest)
        after = get(f"{url}/readyz")

    assert waiting[0][0] == 503
    assert waiting[0][1].startswith("the daemon waits for a lock, for ")
    assert waiting[1] == after == (200, "ok\n")


def test_a_projection_that_fails_is_behind_and_not_ready(database: Database) -> None:
    database.created("A-1")
    options = [*HTTP, "--projection", "support.extensions:Broken"]
    with daemon(database.url, options=options) as running:
        url = address(running)
        running.wait_for("projection_failed")
        projector("wait", "--projection", "sessions", "-d", database.url)
        found, ready = scraped(url), get(f"{url}/readyz")

    assert ready == (503, "per_project is failing\n")
    broken = ("projection", "per_project")
    assert found["projector_position", broken] == 0
    assert found["projector_lag_events", broken] == 1
    assert found["projector_lag_seconds", broken] > 0


def test_a_rebuild_is_told_of_and_leaves_nothing_of_the_old_position(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hold = tmp_path / HOLD
    for number in range(300):
        database.created(f"A-{number}")
    options = [*HTTP, "--projection", "support.extensions:Slower"]
    with daemon(database.url, options=options) as running:
        url = address(running)
        projector("wait", "-d", database.url)
        before = get(f"{url}/readyz")
        hold.touch()
        database.sql("UPDATE checkpoint SET version = 1 WHERE name = 'per_project'")
        newest = database.created("A-300")
        running.wait_for("checkpoint_moved_by_another")
        projector("wait", newest, "--projection", "sessions", "-d", database.url)
        found, ready = scraped(url), get(f"{url}/readyz")
        hold.unlink()
        running.wait_for("caught_up", projection="per_project")
        after = get(f"{url}/readyz")

    assert before == after == (200, "ok\n")
    assert ready == (503, "per_project is being rebuilt\n")
    rebuilt = ("projection", "per_project")
    assert found["projector_position", rebuilt] == 0
    assert found["projector_lag_events", rebuilt] == newest
    assert found["projector_lag_events", ("projection", "sessions")] == 0


def test_a_checkpoint_that_is_read_again_says_nothing_of_a_rebuild() -> None:
    state = DaemonState()
    state.checkpoint_read("p", 5)
    state.rebuilding("p", 0, 9)
    state.checkpoint_read("p", 5)
    during = state.progress["p"].position
    state.rebuilt("p", 9)

    assert during == 0
    assert state.progress["p"].position == 9


def test_one_that_stands_by_claims_no_positions() -> None:
    state = DaemonState()
    state.expect(BUILT_IN, [])
    state.stands_by()
    spare = samples(state)
    state.took_over()
    state.polled(0, {})
    taken_over = samples(state)

    assert "projector_newest_event" not in spare
    assert "projector_position" not in spare
    assert taken_over["projector_newest_event"] == [0]
    assert taken_over["projector_position"] == taken_over["projector_lag_events"] == [0, 0]


def test_one_that_takes_over_has_been_behind_only_since_then() -> None:
    """While it stood by, the events were folded by another one."""
    state = DaemonState()
    state.expect(BUILT_IN, [])
    for at in state.progress.values():
        at.since -= 99
        at.moved -= 99
    state.took_over()
    state.polled(5, {one.name: 0 for one in BUILT_IN})

    assert max(state.stuck().values()) < 99
    assert max(samples(state)["projector_lag_seconds"]) < 99


def test_a_rebuild_that_reads_more_events_than_there_were_is_no_more_than_done() -> None:
    state = DaemonState()
    state.rebuilding("p", 1, 4)
    begun = samples(state)["projector_rebuild_progress_ratio"]
    state.rebuilding("p", 5, 4)
    nearly = samples(state)["projector_rebuild_progress_ratio"]

    assert (begun, nearly) == ([0.25], [1])


def samples(state: DaemonState) -> dict[str, list[float]]:
    families = StateCollector(state, {}, lambda: 0).collect()
    return {family.name: [s.value for s in family.samples] for family in families if family.samples}


def newest_of(database: Database) -> Callable[[], int]:
    return partial(target(database.url).newest, busy_timeout_s=probes.PROBE_TIMEOUT_S)


def test_health_goes_by_each_projection_that_tails() -> None:
    now = time.monotonic()
    state = DaemonState()
    state.polled(9, {"well": 9, "slow": 5, "stuck": 5, "rebuilt": 0, "broken": 0})
    for name, moved in (("well", 99), ("slow", 1), ("stuck", 99), ("rebuilt", 99), ("broken", 99)):
        state.progress[name].moved = now - moved
    state.rebuilding("rebuilt", 0, 9)
    state.fails("broken")

    found = state.stuck()

    assert found.keys() == {"slow", "stuck"}
    assert found["slow"] < 10 < 99 <= found["stuck"]

    state.held_back(["a writer"])
    assert probes.health(lambda: 9, state) == ""
    state.held_back([])
    assert probes.health(lambda: 9, state).startswith("stuck has been stuck at 5 for 99 s")


@pytest.mark.sqlite
def test_a_database_that_somebody_holds_is_no_fault_of_the_daemons(database: Database) -> None:
    with closing(sqlite3.connect(database.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        held = probes.health(newest_of(database), DaemonState())
    database.path.write_bytes(b"no database at all" * 100)

    assert held == ""
    assert probes.health(newest_of(database), DaemonState()).startswith("the log cannot be read")


@pytest.mark.sqlite
def test_a_disk_that_cannot_be_read_is_not_taken_for_one_that_somebody_holds(
    database: Database,
) -> None:
    os.mkfifo(f"{database.path}-shm")

    found = probes.health(newest_of(database), DaemonState())

    assert found.startswith("the log cannot be read")
    assert "-shm is no file" in found


@pytest.mark.once
def test_health_is_said_as_soon_as_the_tail_has_seen_the_newest_event(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = database.created("A-1")
    state, slept = DaemonState(), list[float]()

    def pass_time(seconds: float) -> None:
        slept.append(seconds)
        state.polled(newest, {"sessions": 0})

    monkeypatch.setattr(time, "sleep", pass_time)

    assert probes.health(newest_of(database), state) == ""
    assert slept == [probes.SEEN_POLL_S]


@pytest.mark.once
def test_a_tail_that_waits_for_the_lock_has_not_looked_in_vain(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.created("A-1")
    newest = database.created("A-2")
    monkeypatch.setattr(probes, "SEEN_WITHIN_S", 0.01)
    waiting, blind = DaemonState(), DaemonState()
    waiting.polled(1, {"sessions": 0})
    well = probes.health(newest_of(database), waiting)
    monkeypatch.setattr(time, "sleep", lambda _: blind.polled(1, {"sessions": 0}))
    found = probes.health(newest_of(database), blind)

    assert well == ""
    assert found == f"the newest event is {newest}, but the tail has seen none after 1"


@pytest.mark.parametrize("ahead_s", [60, 10**7])
def test_a_writers_clock_that_is_ahead_hides_no_lag(ahead_s: int) -> None:
    state = DaemonState()
    kinds = Counter({("p", "t", "folded"): 1})
    last_ms = int(time.time() + ahead_s) * 1000
    batch = Batch(1, kinds, last_ms, duration_s=1, waited_s=1, held_s=1, wakeup_s=1)
    state.committed(batch, {"p": 1})
    state.polled(2, {"p": 1})
    state.progress["p"].since -= 9

    assert state.progress["p"].lag_s(2) >= 9


@pytest.mark.once
def test_clients_that_say_nothing_are_few_at_a_time(database: Database) -> None:
    with daemon(database.url, options=HTTP) as running, ExitStack() as silent:
        url = address(running)
        host, port = url.removeprefix("http://").split(":")
        clients = [
            silent.enter_context(socket.create_connection((host, int(port)))) for _ in range(33)
        ]
        let_go = clients[-1].recv(1)
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # still served
            clients[0].recv(1)
        silent.close()
        found = scraped(url)

    assert let_go == b""
    assert found["projector_standing_by",] == 0


def test_a_scrape_waits_for_no_lock(database: Database) -> None:
    with daemon(database.url, options=HTTP) as running, ExitStack() as held:
        url = address(running)
        running.wait_for("started")
        database.created("A-1")
        running.wait_until_at(1)
        running.process.send_signal(signal.SIGSTOP)
        database.created("A-2")
        held.enter_context(database.locked())
        running.process.send_signal(signal.SIGCONT)
        running.wait_for("database_unavailable")
        found = scraped(url)
        waiting = get(f"{url}/healthz")
        held.close()
        running.wait_until_at(2)

    assert found["projector_busy_waits_total",] >= 1
    assert found["projector_lag_events", ("projection", "sessions")] == 1
    # Its events are years old, but it is behind for seconds only.
    assert 0 < found["projector_lag_seconds", ("projection", "sessions")] < 60
    assert waiting == (200, "ok\n")


def test_what_fails_and_what_differs_is_counted(database: Database) -> None:
    database.created("A-1")
    projector("run", "--once", "-d", database.url)
    database.sql("UPDATE view SET last_offset_id = 'x'")
    options = [*HTTP, "--projection", "support.extensions:Broken", "--verify-every", "0.01"]
    with daemon(database.url, options=options) as running:
        url = address(running)
        running.wait_for("projection_failed")
        if "views_differ" not in [line["event"] for line in running.lines]:
            running.wait_for("views_differ")
        rounds = "projector_verify_last_round_timestamp_seconds"
        labels = (("kind", "stale"), ("projection", "sessions"))
        while (found := scraped(url))["projector_verify_findings_total", *labels] < 2:
            assert running.process.poll() is None
            time.sleep(0.05)

    assert found["projector_projection_failing", ("projection", "per_project")] == 1
    assert found["projector_projection_failing", ("projection", "sessions")] == 0
    assert found[rounds, ("projection", "sessions")] > T0 / 1000


@pytest.mark.once
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_pages_are_read_and_nothing_else(database: Database, path: str) -> None:
    def asked(method: str) -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        with closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.headers["Allow"], response.read()

    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        projector("wait", "-d", database.url)
        found = [asked(method) for method in ("HEAD", "POST", "DELETE")]

    refused = (405, "GET, HEAD", b"GET and HEAD are allowed\n")
    assert found == [(200, None, b""), refused, refused]


def test_metrics_that_cannot_be_collected_are_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails() -> int:
        raise RuntimeError("no size")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = f"127.0.0.1:{taken.getsockname()[1]}"
    state = DaemonState()
    with served(host, state, lambda: 0, StateCollector(state, {}, fails)):
        found = get(f"http://{host}/metrics")

    assert found == (500, "RuntimeError\n")
    assert "Traceback" not in "".join(capfd.readouterr())


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.once
@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_an_address_of_ipv6_is_said_as_it_is_asked_for(database: Database) -> None:
    options = ["--http", "[::1]:0", "--log-level", "INFO"]
    with daemon(database.url, options=options) as running:
        url = address(running)
        status = get(f"{url}/metrics")[0]

    assert url.startswith("http://[::1]:")
    assert status == 200


@pytest.mark.once
def test_there_is_nothing_else(database: Database) -> None:
    with daemon(database.url, options=HTTP) as running:
        url = address(running)
        assert get(f"{url}/")[0] == 404
        taken = url.removeprefix("http://")
        said = projector("run", "--http", taken, "-d", database.url, check=3).stderr

    assert f"cannot listen on --http {taken} (" in said


@pytest.mark.once
@pytest.mark.parametrize(("far", "code"), [("203.0.113.1:9187", 3), ("no such host:9187", 2)])
def test_only_an_address_that_may_become_ours_is_tried_again(
    database: Database, far: str, code: int
) -> None:
    said = projector("run", "--http", far, "-d", database.url, check=code).stderr

    assert f"cannot listen on --http {far} (" in said


@pytest.mark.once
@pytest.mark.parametrize(
    "odd",
    [
        *(
            "9187",
            "localhost",
            "localhost:x",
            ":9187",
            "h:70000",
            "",
            "[::1:9187",
            "127.0.0.1]:9187",
        ),
        *("http://127.0.0.1:9187", "[]:9187", "127.0.0.1:9187/metrics"),
    ],
)
def test_an_address_is_a_host_and_a_port(database: Database, odd: str) -> None:
    said = projector("run", "--http", odd, "-d", database.url, check=2).stderr

    assert "give host:port, such as 127.0.0.1:9187" in said
