"""A short campaign of SIGKILLs; `benchmarks/kills.py` is the long one."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cluster
import kills
import pytest
from support.postgres import Server

PHASES = ("read", "fold", "commit", "migration", "walk", "replay")
AGAIN = {"migration": kills.migration, "walk": kills.walk, "replay": kills.replay}
"""The scenarios with the phases that `one_daemon` does not have."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs that are soon checked, and looks that leave others some time."""
    monkeypatch.setattr(kills, "OLD_EVENTS", 2000)
    monkeypatch.setattr(kills, "WALKED_EVENTS", 500)
    monkeypatch.setattr(kills, "PAUSE_S", 0.1)
    monkeypatch.setattr(kills, "POLL_S", 0.0003)
    monkeypatch.setattr(cluster, "POLL_S", 0.03)


@pytest.mark.timeout(400)
def test_killed_in_every_phase_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    counts = Counter(kills.run(14, seed=1, folder=tmp_path))
    (tmp_path / "again").mkdir()
    again = kills.Campaign(2, tmp_path / "again")
    for phase in PHASES * 4:  # the campaign may miss one by bad luck
        if not counts[phase] + again.counts[phase]:
            AGAIN.get(phase, kills.one_daemon)(again, 2)
    counts += again.counts

    assert all(counts[phase] for phase in PHASES), counts


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of its own, which is killed."""
    with closing(Server()) as server:
        yield server


@pytest.mark.timeout(400)
def test_killed_on_postgresql_it_loses_and_doubles_nothing(tmp_path: Path, server: Server) -> None:
    counts = kills.run(5, seed=1, folder=tmp_path, server=server)

    assert counts["server"], counts


@pytest.mark.timeout(400)
def test_three_daemons_on_a_server_that_is_killed_fold_what_sqlite_folds(
    tmp_path: Path, server: Server
) -> None:
    cluster.run(server, tmp_path, events=4000, kills=2, seed=1)
