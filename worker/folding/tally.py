"""What became of events: folded, skipped or quarantined."""

from collections import Counter
from collections.abc import Mapping

from session_projector.projections.fold import Folded
from session_projector.projections.projection import Projection

Outcomes = Counter[tuple[str, str, str]]
"""Events by projection, type and outcome; what writers may call a type is unbounded, so those that
the projection does not fold are one."""


def outcomes(projection: Projection, types: Mapping[str | None, int], folded: Folded) -> Outcomes:
    """How many of so many events of each type had each outcome."""
    found = Outcomes()
    skipped = Counter[str | None](folded.skipped_types)
    rejected = Counter(event.type for event in folded.quarantined)
    for of, count in types.items():
        kind = "undecodable" if of is None else of if of in projection.events else "other"
        gone = {"skipped": skipped[of], "quarantined": rejected[of]}
        gone["folded"] = count - gone["skipped"] - gone["quarantined"]
        for outcome, number in gone.items():
            if number:
                found[projection.name, kind, outcome] += number
    return found


def none_yet(projection: Projection) -> Outcomes:
    """Each outcome that events are known to have, 0 times."""
    kinds = [(of, how) for of in sorted(projection.events) for how in ("folded", "quarantined")]
    kinds += [("other", "skipped"), ("undecodable", "quarantined")]
    return Outcomes(dict.fromkeys(((projection.name, *kind) for kind in kinds), 0))
