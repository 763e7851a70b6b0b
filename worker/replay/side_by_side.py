"""The views of a copy, compared with those of the database that it was copied from."""

import heapq
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final

from session_projector.projections import fold as folding
from session_projector.projections.projection import Projection
from session_projector.worker.errors import LostRace, TransientError, about
from session_projector.worker.folding.checkpoints import fits_log
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.folding.history import history, refold
from session_projector.worker.replay.difference import (
    Difference,
    of_quarantine,
    of_skipped,
    of_view,
)
from session_projector.worker.replay.here import Here
from session_projector.worker.replay.walk import WalkProgress
from session_projector.worker.storage.port import Checkpoint, Store

_KEYS: Final = 500
"""Views that are compared at once."""


async def compare(
    source: Store, target: Store, projection: Projection, position: int
) -> AsyncIterator[WalkProgress]:
    """Compare all that a projection made in two databases of the events up to a position: page by
    page, what differs, where the copy is what is stored and the source what is expected.

    Views that a daemon has folded further by now, or not so far, are compared as the log has them
    there. Raises `TransientError` where a projection was dropped meanwhile.
    """
    one, other = [_Side(store, projection, position) for store in (source, target)]
    with faults_of(projection):
        for side in (one, other):
            await side.begin()
        keys = _merged([one.keys(), other.keys()])
        while some := [*islice(keys, _KEYS)]:
            expected, stored = [await side.rows(some) for side in (one, other)]
            differing = [key for key in some if stored.get(key) != expected.get(key)]
            found = [of_view(projection, k, stored.get(k), expected.get(k)) for k in differing]
            yield WalkProgress(views=len(some), differences=found)
        yield WalkProgress(differences=[*_others(one, other)])


class _Side:
    """What one of the databases has of a projection, as of a position."""

    def __init__(self, store: Store, projection: Projection, position: int) -> None:
        self.name = projection.name
        self._store = store
        self._here = Here(store)
        self._projection = projection
        self._position = position
        self._from = self._to = position
        """The events after the first and up to the second of these have moved views away."""
        self._moved: set[str] = set()
        self._known: set[str] = set()
        self._views: dict[str, tuple[Any, ...]] = {}
        """Of `_known` views those that there are as of the position."""
        self.checkpoint: Checkpoint | None = None
        """None where no view of this version is there."""

    async def begin(self) -> None:
        with about(self._store.name):
            checkpoint = self._store.checkpoints.get(self._projection.name)
            fits = checkpoint is not None and (
                checkpoint.version == self._projection.version and fits_log(self._store, checkpoint)
            )
            self.checkpoint = checkpoint if fits else None
            await self._move_to(checkpoint.position if fits and checkpoint else 0)

    @property
    def upto(self) -> int:
        """What was made of the events up to here can be compared."""
        return min(self.checkpoint.position, self._position) if self.checkpoint else 0

    def keys(self) -> Iterator[str]:
        """The keys of all views that are stored or should be, in the order of their bytes."""
        return _merged([self._stored_keys(), sorted(self._moved, key=_bytes)])

    def _stored_keys(self) -> Iterator[str]:
        after: str | None = None
        while self.checkpoint:
            with about(self._store.name):
                keys = self._store.views.keys(self._projection, after=after)
            if not keys:
                return
            yield from keys
            after = keys[-1]

    async def rows(self, keys: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """The rows of some views, those that there are."""
        found: dict[str, tuple[Any, ...]] = {}
        behind = {*keys} & self._moved
        with about(self._store.name):
            while keys and self.checkpoint:
                try:
                    loaded = self._store.views.load(self._projection, keys)
                except LostRace:
                    raise TransientError(
                        f"{self._projection.name} was dropped from {self._store.name} while it was"
                        " compared",
                        "start again",
                    ) from None
                await self._move_to(loaded.checkpoint.position)
                part, keys = keys[: loaded.covered], keys[loaded.covered :]
                behind |= {k for k in part if k in self._moved or k in loaded.checkpoint.deferred}
                found |= loaded.rows
            if behind:
                found = {key: row for key, row in found.items() if key not in behind}
                found |= await self._folded(behind)
        return found

    def reasons(self, upto: int) -> dict[int, str]:
        """Why the events up to a position are in quarantine, those that are."""
        with about(self._store.name):
            return {
                entry.seq: entry.reason
                for entry in self._store.quarantine.entries()
                if entry.projection == self._projection.name
                and isinstance(entry.seq, int)
                and entry.seq <= upto
            }

    async def _move_to(self, position: int) -> None:
        """Learn which views are not as of the position where the checkpoint is at this one."""
        for after, until in ((position, self._from), (self._to, position)):
            if after < until:
                pages = history(self._here, self._projection, None, after=after, until=until)
                async for events in pages:
                    keys = {folding.key_of(self._projection, event) for event in events}
                    self._moved |= {key for key in keys if key is not None}
        self._from, self._to = min(self._from, position), max(self._to, position)

    async def _folded(self, keys: set[str]) -> dict[str, tuple[Any, ...]]:
        """The rows of some views as the log has them at the position."""
        if any(self._projection.log_keys(key) is None for key in keys):
            # Each of them means to read all of the log.
            if not keys <= self._known:
                self._known = self._moved | keys
                self._views = await self._refold(self._known)
            return {key: self._views[key] for key in keys & self._views.keys()}
        return await self._refold(keys)

    async def _refold(self, keys: set[str]) -> dict[str, tuple[Any, ...]]:
        found = await refold(self._here, self._projection, keys, until=self._position)
        return {key: self._projection.to_row(view) for key, view in found.views.items()}


def _others(one: _Side, other: _Side) -> Iterator[Difference]:
    """What differs in the quarantine, and in the number of events that were skipped."""
    name, upto = one.name, min(one.upto, other.upto)
    expected, stored = one.reasons(upto), other.reasons(upto)
    for seq in sorted(expected.keys() | stored.keys()):
        if expected.get(seq) != stored.get(seq):
            yield of_quarantine(name, seq, stored.get(seq, ...), expected.get(seq))
    checkpoints = one.checkpoint, other.checkpoint
    if checkpoints[0] and checkpoints[1] and checkpoints[0].position == checkpoints[1].position:
        counts = [checkpoint.skipped for checkpoint in checkpoints if checkpoint]
        if counts[0] != counts[1]:
            yield of_skipped(name, counts[1], counts[0])


def _merged(sorted_keys: Sequence[Iterable[str]]) -> Iterator[str]:
    """Keys that are each sorted by their bytes, without those that are there twice."""
    return (key for key, _ in groupby(heapq.merge(*sorted_keys, key=_bytes)))


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
