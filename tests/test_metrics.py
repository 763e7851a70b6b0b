"""`projector run --http`: what Prometheus scrapes, and the two health checks."""

import signal
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

import pytest
from extensions import PROGRAM
from prometheus_client.parser import text_string_to_metric_families
from support import Daemon, Database, daemon, projector

HTTP = ["--http", "127.0.0.1:0"]


def address(running: Daemon) -> str:
    return f"http://{running.wait_for('serving_http')['address']}"


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(url: str) -> dict[tuple[Any, ...], float]:
    status, text = get(f"{url}/metrics")
    assert status == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_say_what_became_of_each_event(database: Database) -> None:
    database.created("A-1")
    database.insert("A-1", {"type": "anything at all"})
    database.insert("A-1", b"\xc1")
    database.insert("A-1", {"type": "session_append"})
    with daemon(database.path, options=HTTP) as running:
        url = address(running)
        running.wait_until_at(4)
        projector("wait", "-d", database.path)
        found = metrics(url)

    events = {key[1:]: value for key, value in found.items() if key[0] == "projector_events_total"}
    assert {
        (labels["type"], labels["outcome"]): value
        for key, value in events.items()
        if (labels := dict(key))["projection"] == "sessions"
    } == {
        ("session_created", "folded"): 1,
        ("other", "skipped"): 1,
        ("undecodable", "quarantined"): 1,
        ("session_append", "quarantined"): 1,
    }
    assert found["projector_position", ("projection", "session_index")] == 4
    assert found["projector_newest_event",] == 4
    assert found["projector_lag_events",] == 0
    assert found["projector_batch_events_sum",] == 4
    assert found["projector_batch_events_count",] >= 1
    assert found["projector_lock_held_seconds_sum",] > 0
    assert found["projector_wal_bytes",] > 0
    assert any(key[0] == "projector_build_info" for key in found)


def test_health_and_readiness(database: Database) -> None:
    database.created("A-1")
    with daemon(database.path, options=HTTP) as running:
        url = address(running)
        running.wait_until_at(1)
        well = get(f"{url}/healthz"), get(f"{url}/readyz")
        with daemon(database.path, options=HTTP) as second:
            other = address(second)
            second.wait_for("standing_by")
            spare = get(f"{other}/healthz"), get(f"{other}/readyz")
            assert metrics(other)["projector_standing_by",] == 1
            running.stop(signal.SIGTERM)
            second.wait_for("started")
            newest = database.created("A-2")
            second.wait_until_at(newest)
            taken_over = get(f"{other}/readyz")

    assert well == ((200, "ok\n"), (200, "ok\n"))
    assert spare == ((200, "ok\n"), (503, "standing by for another daemon\n"))
    assert taken_over == (200, "ok\n")


def test_a_scrape_waits_for_no_lock(database: Database) -> None:
    with (
        daemon(database.path, options=HTTP) as running,
        closing(sqlite3.connect(database.path, isolation_level=None)) as connection,
    ):
        url = address(running)
        running.wait_for("started")
        database.created("A-1")
        running.wait_until_at(1)
        database.created("A-2")
        connection.execute("BEGIN IMMEDIATE")
        running.wait_for("database_unavailable")
        found = metrics(url)
        waiting = get(f"{url}/healthz")
        connection.execute("ROLLBACK")
        running.wait_until_at(2)

    assert found["projector_busy_total",] >= 1
    assert waiting == (200, "ok\n")


def test_what_fails_and_what_differs_is_counted(database: Database) -> None:
    database.created("A-1")
    projector("run", "--once", "-d", database.path)
    database.sql("UPDATE view SET last_offset_id = 'x'")
    options = [*HTTP, "--projection", "extensions:Broken", "--verify-every", "0.01"]
    with daemon(database.path, program=PROGRAM, options=options) as running:
        url = address(running)
        running.wait_for("projection_failed")
        running.wait_for("difference_found")
        found = metrics(url)

    assert found["projector_projection_failing", ("projection", "per_project")] == 1
    assert found["projector_projection_failing", ("projection", "sessions")] == 0
    labels = (("kind", "stale"), ("projection", "sessions"))
    assert found["projector_verify_findings_total", *labels] >= 1


def test_there_is_nothing_else(database: Database) -> None:
    with daemon(database.path, options=HTTP) as running:
        url = address(running)
        assert get(f"{url}/")[0] == 404
        taken = url.removeprefix("http://")
        said = projector("run", "--http", taken, "-d", database.path, check=3).stderr

    assert f"--http {taken} cannot be listened on" in said


@pytest.mark.parametrize("odd", ["9187", "localhost", "localhost:x", ":9187", "h:70000", ""])
def test_an_address_is_a_host_and_a_port(database: Database, odd: str) -> None:
    said = projector("run", "--http", odd, "-d", database.path, check=2).stderr

    assert "give host:port, such as 127.0.0.1:9187" in said
