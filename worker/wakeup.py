"""How the tail learns that there is something to do: for now, by asking."""

from typing import Final

FIRST_POLL_S: Final = 0.001
IDLE_POLL_S: Final = 0.1


def poll_delay_s(idle_polls: int) -> float:
    """How long to wait after so many polls in a row that found nothing."""
    return min(FIRST_POLL_S * (1 << min(idle_polls, 10)), IDLE_POLL_S)
