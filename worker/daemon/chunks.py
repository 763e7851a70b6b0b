"""A batch beside other writers: folded at once, and written by several short transactions."""

from collections.abc import Sequence
from itertools import accumulate, islice, takewhile
from typing import Final

import msgspec

from session_projector.worker.clock import now_ms
from session_projector.worker.daemon.batch import Part
from session_projector.worker.folding.pacing import cost_of
from session_projector.worker.storage.port import Change, Deferred

CHUNKED_VIEWS: Final = 320
"""The most views of a projection that such a batch touches, as its first transaction lists them."""


def split(parts: Sequence[Part], most_bytes: float) -> tuple[list[Part], list[Part]]:
    """What the next transaction writes of a batch, rows of about so many bytes by `cost_of` and at
    least one, and what is left for those after it.

    The first transaction moves the checkpoints, writes all rows of a projection that is `followed`,
    and defers the views that are left.
    """
    now: list[Part] = []
    left: list[Part] = []
    for part in sorted(parts, key=lambda part: not part.member.projection.followed):
        costs = [*map(cost_of, part.sizes)]
        if part.member.projection.followed:
            count = len(costs)
        else:
            fit = takewhile(lambda cost: cost <= most_bytes, accumulate(costs))
            count = min(max(len([*fit]), not now), len(costs))
        most_bytes -= sum(costs[:count])
        if count == len(costs):
            now.append(part)
        elif count or part.change.after.position > part.change.before.position:
            first, rest = _halves(part, count)
            now.append(first)
            left.append(rest)
        else:
            left.append(part)
    return now, left


def _halves(part: Part, count: int) -> tuple[Part, Part]:
    """The part with its first rows only, and what is left, from where that leaves the checkpoint.
    What it does besides, the first one does."""
    change, before, now = part.change, part.change.before, now_ms()
    keys = [*part.views]
    late = {
        key: before.deferred.get(key) or Deferred(before.position, size, 0, now)
        for key, size in zip(keys[count:], part.sizes[count:], strict=True)
    }
    middle = msgspec.structs.replace(change.after, deferred=change.after.deferred | late)
    after = msgspec.structs.replace(change.after, generation=change.after.generation + 1)
    first = msgspec.structs.replace(
        part,
        change=msgspec.structs.replace(change, after=middle, rows=change.rows[:count]),
        views=dict(islice(part.views.items(), count)),
        sizes=part.sizes[:count],
    )
    rest = msgspec.structs.replace(
        part,
        member=msgspec.structs.replace(part.member, checkpoint=middle),
        change=Change(change.table, middle, after, change.rows[count:]),
        views={key: part.views[key] for key in keys[count:]},
        sizes=part.sizes[count:],
    )
    return first, rest
