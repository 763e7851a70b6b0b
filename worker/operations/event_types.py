"""The types of the newest events: how many there are of each, and who folds them."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

import msgspec

from session_projector.projections.event import LogRow
from session_projector.projections.fold import read
from session_projector.projections.projection import Projection
from session_projector.worker import registry
from session_projector.worker.storage.port import Store

MOST_POSITIONS: Final = 100_000
"""So many positions of the log are looked at, the newest: a few seconds' work."""
MOST_CHARACTERS: Final = 256 * 1024 * 1024
"""So much data is looked at, and some more."""
LONGEST_TYPE: Final = 200
"""Characters of a type that are kept."""
_AT_ONCE: Final = 100
"""Positions that are looked at whole, however much data they have."""
_ALIKE: Final = 0.9


class TypeCount(msgspec.Struct):
    """A type of events: how many there are, the first and the last of them, the projections that
    fold it (none: they are skipped), and the type of ours that it nearly is."""

    type: str
    events: int
    first: int
    last: int
    projections: list[str]
    did_you_mean: str | None


class Types(msgspec.Struct, frozen=True):
    """The types of the newest `looked_at` of all `events`, those of most events first.

    An event whose type cannot be read has none; it is in quarantine.
    """

    events: int
    looked_at: int
    types: list[TypeCount]


def types(
    store: Store, *, positions: int = MOST_POSITIONS, characters: int = MOST_CHARACTERS
) -> Types:
    """Count the newest events by type, at most of so many positions and so much data."""
    known = registry.known(store=store)
    found: dict[str, TypeCount] = {}
    looked_at = 0
    for rows in _newest(store, positions, characters):
        looked_at += len(rows)
        for event in read(rows, known):
            if event.type is None:
                continue
            kind = event.type[:LONGEST_TYPE]
            if (one := found.get(kind)) is None:
                folding = [p.name for p in known if event.type in p.events]
                near = None if folding else meant(event.type, known)
                one = found[kind] = TypeCount(kind, 0, event.seq, event.seq, folding, near)
            one.events += 1
            one.first, one.last = min(one.first, event.seq), max(one.last, event.seq)
    ordered = sorted(found.values(), key=lambda one: (-one.events, one.type))
    return Types(store.log.count(), looked_at, ordered)


def meant(kind: str, projections: Iterable[Projection]) -> str | None:
    """The type that some projection folds and that a type is nearly, such as `session_append` for
    `session_apend` or `session-append`; None for any other, and for one that is folded."""
    folded = {name for one in projections for name in one.events}
    if kind in folded or len(kind) > LONGEST_TYPE:
        return None
    near = get_close_matches(kind.lower().replace("-", "_"), sorted(folded), n=1, cutoff=_ALIKE)
    return near[0] if near else None


def _newest(store: Store, positions: int, characters: int) -> Iterator[list[LogRow]]:
    """The newest events, a few at a time and from the newest backwards."""
    newest = store.log.newest()
    oldest = max(newest - positions, 0)
    for until in range(newest, oldest, -_AT_ONCE):
        start = max(until - _AT_ONCE, oldest) + 1
        while rows := store.log.page(start=start, until=until):
            yield rows
            characters -= sum(len(row.data) for row in rows if isinstance(row.data, str | bytes))
            start = rows[-1].seq + 1
        if characters <= 0:
            return
