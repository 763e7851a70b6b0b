"""That the benchmarks measure what they say; what they measure is no test."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import throughput
import workload
from measure import Curve, Figure, Options
from report import Results, markdown

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
