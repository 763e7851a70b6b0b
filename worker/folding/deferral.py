"""How often a view that costs much to write is written."""

from typing import Final

COSTLY_S: Final = 0.02
"""A view whose last write took no longer is never deferred."""
REST: Final = 100
"""A costly view is written again after so many times of what its last write took, so that all
others wait for it about a hundredth of the time."""
LONGEST_DELAY_S: Final = 60.0


def delay_s(cost_s: float) -> float:
    """How long a view whose last write took so long may be behind its events, in seconds."""
    return min(cost_s * REST, LONGEST_DELAY_S)
