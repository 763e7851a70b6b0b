"""A short campaign of SIGKILLs; `benchmarks/kills.py` is the long one."""

from pathlib import Path

import kills
import pytest


@pytest.mark.timeout(180)
def test_killed_in_every_phase_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    counts = kills.run(30, seed=1, folder=tmp_path)

    assert (
        min(counts[phase] for phase in ("read", "fold", "commit", "migration", "walk", "replay"))
        > 0
    )
    assert counts["other"] > 0
    assert sum(counts.values()) >= 28
