"""What became of events: folded, skipped or quarantined."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from session_projector.projections.fold import Folded
from session_projector.projections.projection import Projection

Outcomes = Counter[tuple[str, str, str]]
"""Events by projection, type and outcome."""
_OUTCOMES: Final = ("skipped", "quarantined", "folded")


def outcomes(projection: Projection, types: Mapping[str | None, int], folded: Folded) -> Outcomes:
    """How many events of each type had each outcome; what writers may call a type is unbounded, so
    those that the projection does not fold are one."""
    found = Outcomes()
    skipped = Counter(folded.skipped_types)
    rejected = Counter(event.type for event in folded.quarantined)
    for of, count in types.items():
        kind = "undecodable" if of is None else of if of in projection.events else "other"
        gone = (skipped[of] if of is not None else 0, rejected[of])
        for outcome, number in zip(_OUTCOMES, (*gone, count - sum(gone)), strict=True):
            if number:
                found[projection.name, kind, outcome] += number
    return found
