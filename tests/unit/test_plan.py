"""The cost model by which a catch-up goes in log order or by a full scan."""

import pytest

from session_projector.worker.replay.plan import scan_is_quicker
from session_projector.worker.storage.port import BatchReach


@pytest.mark.parametrize(("database_bytes", "quicker"), [(399_999_999, True), (400_000_000, False)])
def test_a_full_scan_is_chosen_where_batches_would_take_longer(
    database_bytes: int, quicker: bool
) -> None:
    """100 batches of 10 MB are 1 GB; 1,000,000 events of 600 bytes leave 400 MB to the database."""
    reach = BatchReach(events=50, database_bytes=database_bytes)

    assert scan_is_quicker(5_000, 1_000_000, reach) is quicker
