"""That the benchmarks measure what they say; what they measure is no test."""

import sqlite3
from contextlib import closing
from pathlib import Path

import postgres as on_postgres
import pytest
import server
import throughput
import workload
from measure import Curve, Figure, Options, daemon
from report import Results, markdown
from support import postgres
from writer import writer

LOG = workload.Log(60, 4, "interleaved")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(runs=1, quick=True, folder=tmp_path, peers_venv=tmp_path, peers_python="")


def test_the_floor_folds_to_the_same_views_as_the_daemon(options: Options) -> None:
    floor = workload.copied(throughput.filled(LOG, options), options.folder / "floor.db")
    throughput.floor_s("python", floor)

    _, peak_mib, path = throughput.catch_up(LOG, options)

    assert workload.views(path) == workload.views(floor)
    assert 10 < peak_mib < 500


def test_a_run_with_a_wrong_view_is_no_figure(options: Options) -> None:
    _, _, path = throughput.catch_up(LOG, options)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM view WHERE key = 'session:S-3'")

    with pytest.raises(workload.WrongViews, match="wrong views"):
        workload.check(path)


def test_postgresql_s_floor_and_daemon_fold_to_sqlite_s_views(
    options: Options, postgres: postgres.Server
) -> None:
    _, _, path = throughput.catch_up(LOG, options)
    with closing(server.Server(None, postgres)) as place, place.fresh(LOG) as url:
        throughput.floor_s("postgres", url)
        by_floor = workload.views(url)
    with closing(server.Server(None, postgres)) as place, place.fresh(LOG) as url:
        throughput.folded(url, LOG)

        assert workload.views(url) == by_floor == workload.views(path)

        with workload.connected(url) as connection:
            connection.execute("DELETE FROM view WHERE key = 'session:S-3'")
        with pytest.raises(workload.WrongViews, match="wrong views"):
            workload.check(url)


def test_what_is_appended_on_postgresql_is_seen(postgres: postgres.Server) -> None:
    with closing(server.Server(None, postgres)) as place, place.fresh(LOG) as url:
        with daemon(url) as running:
            running.caught_up(LOG.events)
            delays = on_postgres.appended(url, running, 5, every_s=0, log=LOG)
            with writer(url, "l", count=20, every_s=0, sessions=4, size=300) as loading:
                assert len(loading.wait().commits) == 20
            running.caught_up(LOG.events + 5 + 20)
        workload.check(url)

    assert len(delays) == 5


def test_the_table_says_what_was_met_missed_and_not_measured() -> None:
    figures = [
        Figure("fast", "events/s", [1.0, 3.0, 2.0], 2, "more"),
        Figure("slow", "ms", [5.0], 4),
        Figure("peer", "", []),
    ]
    curve = Curve("growth", "events", "ms", [(10, [1.0, 2.0, 9.0])])

    table = markdown(Results(machine={"Python": "3"}, figures=figures, curves=[curve]))

    assert "| fast | ≥ 2 events/s | 2 events/s | 1–3 | met |" in table
    assert "| slow | ≤ 4 ms | 5 ms | 5–5 | missed |" in table
    assert "| peer |  | not measured |  |  |" in table
    assert "- growth (ms): 10: 2" in table
