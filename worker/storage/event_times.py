"""The check of events that were written in the future, by their writers' clocks."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from session_projector.projections.decode import created_ms
from session_projector.projections.event import Unfoldable

AHEAD_MS: Final = 60_000
_YEAR_MS: Final = 366 * 86_400_000


def ahead(rows: Iterable[tuple[int, Any]], now_ms: int) -> tuple[str, str] | None:
    """What is said of the event that is furthest in the future, and what fixes it, None where none
    is; `rows` are positions and `created_at` of events."""
    furthest = (now_ms + AHEAD_MS, 0)
    for seq, created_at in rows:
        with suppress(Unfoldable):
            furthest = max(furthest, (created_ms(created_at), seq))
    at_ms, seq = furthest
    if not seq:
        return None
    if abs(at_ms / 1000 - now_ms) < 10 * _YEAR_MS:
        said = f"event {seq} was written with microseconds in created_at, which takes milliseconds"
        return said, "correct its writer; the order of events does not depend on it"
    return (
        f"event {seq} was written {(at_ms - now_ms) / 1000:,.0f} s in the future: its writer's"
        " clock is ahead, or this machine's behind (views do not depend on it)",
        "see which of the clocks is wrong (`date`), and set that: `timedatectl set-ntp true`",
    )
