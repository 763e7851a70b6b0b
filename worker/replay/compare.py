"""What is stored against what the log gives: rows, quarantine, orphaned rows, the skipped count."""

from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow, is_name
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Projection
from session_projector.worker.errors import LostRace
from session_projector.worker.folding.checkpoints import checkpoint_of
from session_projector.worker.folding.history import history, refold
from session_projector.worker.replay.as_of import AsOf
from session_projector.worker.replay.difference import (
    Difference,
    of_quarantine,
    of_skipped,
    of_view,
)
from session_projector.worker.replay.fix import Fixer
from session_projector.worker.storage.port import Checkpoint, Store, Thread


class Comparison:
    """One projection's rows against what was folded up to `as_of.until`.

    Its methods return what differs, after `fixer`, if there is one, has replaced it. The log never
    changes below a position, so only the rows need care: each is read together with the checkpoint.
    """

    def __init__(
        self,
        thread: Thread,
        projection: Projection,
        as_of: AsOf,
        fixer: Fixer | None = None,
        *,
        brief: bool = False,
    ) -> None:
        """`brief`: a row that is stored is not looked into to say how it differs."""
        self.as_of = as_of
        self._thread = thread
        self._projection = projection
        self._fixer = fixer
        self._difference = partial(of_view, projection, brief=brief)
        self._last: LogRow | None = None

    async def begin(self) -> None:
        """Remember the event at the position, to notice when the log is another one."""
        self._last = await self._event()

    async def views(self, keys: Sequence[str], folded: dict[str, Any]) -> list[Difference]:
        """Compare the views of some keys; `folded` has those that an event made."""
        found: list[Difference] = []
        until = position = self.as_of.until
        while keys:
            loaded = await self._thread.run(lambda store: store.views.load(self._projection, keys))
            part = keys[: loaded.covered]
            if (now := self.as_of.position(loaded.checkpoint)) > position:
                found_since = await refold(
                    self._thread, self._projection, {*part}, until=now, after=position, onto=folded
                )
                folded = folded | found_since.views
                position = now
            views = await self._as_stored(part, folded, loaded.checkpoint)
            rows = {k: self._projection.to_row(views[k]) for k in part if k in views}
            done = differing = [k for k in part if rows.get(k) != loaded.rows.get(k)]
            if differing:
                await self._require_same_log(loaded.checkpoint)
                if self._fixer:
                    done = await self._fixer.replace(
                        loaded.checkpoint, differing, rows, loaded.rows
                    )
            found += [self._difference(k, loaded.rows.get(k), rows.get(k)) for k in done]
            if len(done) == len(differing):  # else the same part again, as it is by then
                keys, position = keys[loaded.covered :], until
        return found

    async def quarantine(
        self, seqs: Sequence[int], expected: Sequence[Rejected]
    ) -> list[Difference]:
        """Compare the quarantine of some events, which no other process changes."""
        if not seqs:
            return []
        name = self._projection.name
        reasons = {rejected.seq: rejected.reason for rejected in expected}

        def read(store: Store) -> tuple[dict[int, Any], set[int]]:
            with store.snapshot():
                stored = store.quarantine.reasons(name, seqs)
                return stored, self._not_yet(store, reasons.keys() - stored.keys())

        stored, not_yet = await self._thread.run(read)
        both = (reasons.keys() | stored.keys()) - not_yet
        differing = {seq for seq in both if stored.get(seq, ...) != reasons.get(seq, ...)}
        await self._fix_quarantine(
            [rejected for rejected in expected if rejected.seq in differing],
            [*(differing - reasons.keys())],
        )
        return [
            of_quarantine(name, seq, stored.get(seq, ...), reasons.get(seq))
            for seq in sorted(differing)
        ]

    async def orphaned(self) -> AsyncIterator[list[Difference]]:
        """Rows that no event is about, page by page; all others were compared before."""
        after: str | None = None
        while keys := await self._thread.run(
            lambda store: store.views.keys(self._projection, after=after)
        ):
            now = await self._checkpoint()
            explained = await self._explained(keys, self.as_of.position(now))
            done = orphaned = [key for key in keys if key not in explained]
            if orphaned:
                await self._require_same_log(now)
                if self._fixer:
                    done = await self._fixer.replace(now, orphaned, {})
            if len(done) == len(orphaned):
                after = keys[-1]
            yield [self._difference(key, (), None) for key in done]

    async def strays(self) -> AsyncIterator[list[Difference]]:
        """Rows of the quarantine for events that the log does not have, or not yet."""
        name = self._projection.name
        ahead = None if self.as_of.follows else self.as_of.until
        while seqs := await self._thread.run(
            lambda store: store.quarantine.strays(name, ahead=ahead)
        ):
            await self._fix_quarantine((), seqs)
            yield [of_quarantine(name, seq, "", None) for seq in seqs]
            if not self._fixer:
                return

    async def skipped(self, expected: int) -> list[Difference]:
        """Compare the skipped count of a checkpoint that is followed, as of the beginning."""
        stored = self.as_of.checkpoint.skipped
        if not self.as_of.follows or stored == expected:
            return []
        while self._fixer:
            now = await self._checkpoint()
            await self._require_same_log(now)
            since = [
                folding.fold(self._projection, {}, events).skipped
                async for events in self._since_begin(now.position)
            ]
            if await self._fixer.skipped(now, expected + sum(since)):
                break
        return [of_skipped(self._projection.name, stored, expected)]

    async def _as_stored(
        self, keys: Sequence[str], folded: dict[str, Any], now: Checkpoint
    ) -> dict[str, Any]:
        """Some views, those of them that are behind as they are to be meanwhile."""
        behind = self.as_of.deferred(now)
        late = [key for key in keys if key in behind]
        views = {key: view for key, view in folded.items() if key not in late} if late else folded
        late.sort(key=lambda key: behind[key].position)
        for until, some in groupby(late, key=lambda key: behind[key].position):
            views |= (await refold(self._thread, self._projection, {*some}, until=until)).views
        return views

    def _not_yet(self, store: Store, seqs: Collection[int]) -> set[int]:
        """Those of some events that are only folded when their view is written again."""
        now = store.checkpoints.get(self._projection.name) if seqs else None
        behind = {
            log_key: view.position
            for key, view in (self.as_of.deferred(now) if now else {}).items()
            for log_key in self._projection.log_keys(key) or ()
        }
        rows = [store.log.event(seq) for seq in seqs] if behind else []
        return {row.seq for row in rows if row and row.seq > behind.get(row.key, row.seq)}

    async def _fix_quarantine(self, added: Sequence[Rejected], cleared: Sequence[int]) -> None:
        while self._fixer and (added or cleared):
            now = await self._checkpoint()
            await self._require_same_log(now)
            added, cleared = await self._fixer.quarantine(now, added, cleared)

    async def _checkpoint(self) -> Checkpoint:
        return await self._thread.run(lambda store: checkpoint_of(store, self._projection))

    async def _event(self) -> LogRow | None:
        return await self._thread.run(lambda store: store.log.event(self.as_of.until))

    async def _require_same_log(self, now: Checkpoint) -> None:
        """Raises `LostRace` where the database was restored in place since the beginning."""
        if await self._event() != self._last or self.as_of.position(now) < self.as_of.until:
            raise LostRace

    async def _explained(self, keys: Sequence[str], until: int) -> set[str | None]:
        """Which of some views an event up to a position is about."""
        if self._projection.per_event:
            return await self._of_events(keys, until)
        keys = [key for key in keys if is_name(key)]
        spellings = {key: self._projection.log_keys(key) for key in keys}
        if None in spellings.values():
            name = self._projection.name
            found: set[str | None] = {
                *await self._thread.run(lambda store: store.scratch.present(name, keys))
            }
            async for events in self._since_begin(until):
                found.update(folding.key_of(self._projection, event) for event in events)
            return found
        asked = {s: key for key, ways in spellings.items() for s in ways or ()}
        present = await self._thread.run(lambda store: store.log.present([*asked], until=until))
        return {asked[spelling] for spelling in present}

    async def _of_events(self, keys: Sequence[str], until: int) -> set[str | None]:
        """Of the views of single events, those whose event is there."""
        positions = [*filter(None, map(self._projection.position_of, keys))]
        rows = await self._thread.run(
            lambda store: [store.log.event(seq) for seq in positions if seq <= until]
        )
        events = folding.read([row for row in rows if row], [self._projection])
        return {folding.key_of(self._projection, event) for event in events}

    def _since_begin(self, until: int) -> AsyncIterator[list[Event | Rejected]]:
        """The events that came to the log since the scan began."""
        return history(self._thread, self._projection, None, after=self.as_of.until, until=until)
