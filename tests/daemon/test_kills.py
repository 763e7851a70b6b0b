"""A short campaign of SIGKILLs; `benchmarks/kills.py` is the long one."""

from collections import Counter
from pathlib import Path

import kills
import pytest

PHASES = ("read", "fold", "commit", "migration", "walk", "replay")


@pytest.mark.timeout(400)
def test_killed_in_every_phase_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(1, 4):  # one campaign may miss a phase by bad luck
        folder = tmp_path / str(seed)
        folder.mkdir()
        counts.update(kills.run(30, seed=seed, folder=folder))
        if all(counts[phase] for phase in PHASES):
            break

    assert all(counts[phase] for phase in PHASES), counts
