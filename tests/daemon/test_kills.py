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


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs that are soon checked."""
    monkeypatch.setattr(kills, "OLD_EVENTS", 2000)
    monkeypatch.setattr(kills, "WALKED_EVENTS", 800)


@pytest.mark.timeout(400)
def test_killed_in_every_phase_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(1, 6):  # one campaign may miss a phase by bad luck
        folder = tmp_path / str(seed)
        folder.mkdir()
        counts.update(kills.run(14, seed=seed, folder=folder))
        if all(counts[phase] for phase in PHASES):
            break

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
