"""The walk over the log by view: fold a view's events up to a position, compare, and mend.

Verify, dry run, replay and the rebuild of a projection are all this walk. The log never changes
below a position, so its events are read at leisure; only the rows that stand are read together
with the checkpoint, and compared as of that.
"""

from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from itertools import compress
from operator import attrgetter
from typing import Any, Final

import anyio
import msgspec

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow, is_utf8
from session_projector.projections.fold import Rejected, Runs
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.rows import restore
from session_projector.worker.errors import LostRace, Unavailable
from session_projector.worker.folding.checkpoints import checkpoint_of
from session_projector.worker.folding.cooperative import fold_in_slices, read_in_slices
from session_projector.worker.folding.history import history
from session_projector.worker.folding.pacing import Gentle
from session_projector.worker.folding.tally import Outcomes, outcomes
from session_projector.worker.replay.difference import Difference, Field, fields
from session_projector.worker.storage.port import (
    Change,
    Checkpoint,
    CommitStats,
    LoadedViews,
    Thread,
    size_of,
)

CHUNK_CHANGES: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
"""What one transaction of the walk writes at most, so that no writer waits long."""
GENTLE_SHARE: Final = 8
"""Beside others that write, a transaction has a part of these."""
Views = dict[str, Any]
HoldOn = Callable[[Unavailable], Awaitable[None]]


class Step(msgspec.Struct, frozen=True):
    """What a page of the walk did: events read and what became of them, views compared, and what
    differed."""

    events: int = 0
    views: int = 0
    differences: Sequence[Difference] = ()
    outcomes: Outcomes = msgspec.field(default_factory=Outcomes)


class Found(msgspec.Struct, frozen=True):
    """A page of the log by key, and what every walk over it asks: each event's seq, the keys, each
    once, the events by session, and how many have which type."""

    rows: Sequence[LogRow]
    events: Sequence[Event | Rejected]
    seqs: Sequence[int]
    keys: Sequence[Any]
    runs: Runs
    types: Mapping[str | None, int]


class Pages:
    """The log by key, each page read and decoded once for walks that go side by side."""

    def __init__(self, thread: Thread, projections: Sequence[Projection]) -> None:
        self._thread = thread
        self._projections = projections
        self._newest: int | None = None
        self._asked: tuple[int, int] | None = None
        self._found: Found | None = None

    async def newest(self) -> int:
        """As it was when the first of them asked, so that all go to the same position."""
        newest = await self._thread.run(lambda store: store.log.newest())
        self._newest = min(newest, newest if self._newest is None else self._newest)
        return self._newest

    async def by_key(self, after: LogRow | None, until: int) -> Found | None:
        """The next page; None after the last one."""
        asked = (after.seq if after else 0, until)
        if asked != self._asked:
            rows = await self._thread.run(
                lambda store: store.log.by_session(after=after, until=until)
            )
            events = await read_in_slices(rows, self._projections)
            self._found = None
            if rows:
                self._found = Found(
                    *(rows, events, _seqs(rows), [*dict.fromkeys(map(attrgetter("key"), rows))]),
                    *(folding.runs_of(events), _types(events)),
                )
            self._asked = asked
        return self._found


class Walk:
    """One projection's views against the log; `steps` does it, a page at a time.

    `following` compares each view as of where the checkpoint stands when it is read, so that a
    daemon may go on tailing; else all of them as of `until`. `mending` replaces what differs: in
    a checkpoint that is followed it raises the generation, so that a batch which was folded onto
    the rows as they were is not committed. `only` is the key of a single view. `pages` are shared
    with the walks of other projections. `hold_on` waits until a commit that failed may be tried
    again; else the walk ends there. `brief`: a row that stands is not looked into to say how it
    differs.
    """

    def __init__(
        self,
        thread: Thread,
        projection: Projection,
        checkpoint: Checkpoint,
        *,
        until: int | None = None,
        mending: bool = False,
        only: str | None = None,
        pages: Pages | None = None,
        hold_on: HoldOn | None = None,
        brief: bool = False,
    ) -> None:
        self.skipped = 0
        """Events up to `until` that are of no concern, once the walk is over."""
        self.until = checkpoint.position if until is None else until
        self._thread = thread
        self._projection = projection
        self._checkpoint = checkpoint
        self._following = until is None
        self._mending = mending
        self._only = only
        self._gentle = Gentle()
        self._shared = pages or Pages(thread, [projection])
        self._hold_on = hold_on
        self._brief = brief

    async def steps(self) -> AsyncIterator[Step]:
        await self._thread.run(lambda store: store.scratch.clear(self._projection.name))
        self._last = await self._thread.run(lambda store: store.log.event(self.until))
        async for step in self._fold(self._pages()):
            yield step
        if self._only is None:
            async for step in self._fold(self._gathered()):
                yield step
            async for step in self._ghosts():
                yield step
            async for step in self._strays():
                yield step
            yield Step(differences=await self._compare_skipped())

    async def _fold(self, pages: AsyncIterator["_Page"]) -> AsyncIterator[Step]:
        """Fold pages in which each view's events stand together, and compare each view once."""
        views: Views = {}
        open_key = self._only
        async for page in pages:
            folded = await fold_in_slices(self._projection, views, page.events, page.runs)
            views.update(folded.views)
            self.skipped += folded.skipped
            found = await self._compare_quarantine(page.seqs, folded.quarantined)
            touched = dict.fromkeys((open_key, *page.views))
            keys = [key for key in touched if key is not None]
            open_key = keys.pop() if keys else None
            found += await self._compare(keys, views)
            views = {key: view for key, view in views.items() if key == open_key}
            became = outcomes(self._projection, page.types, folded)
            yield Step(len(page.seqs), len(keys), found, became)
        if open_key is not None:
            yield Step(0, 1, await self._compare([open_key], views))

    async def _pages(self) -> AsyncIterator["_Page"]:
        """The log by view, as far as an index has it so; the rest is gathered for later."""
        if self._only is not None:
            async for rows in self._history([self._only], after=0, until=self.until):
                events = await read_in_slices(rows, [self._projection])
                yield _page(_seqs(rows), self._keys(rows, events), events)
        elif self._projection.log_keys("") is None:
            async for rows in self._history([""], after=0, until=self.until):
                events = await read_in_slices(rows, [self._projection])
                keys = self._keys(rows, events)
                page = _page(_seqs(rows), keys, events)
                yield await self._set_aside(page, keys, {*page.views})
        else:
            last = None
            while found := await self._shared.by_key(last, self.until):
                last = found.rows[-1]
                views = self._views(found.keys)
                concerned = [view for view in views.values() if view is not None]
                page = _Page(found.seqs, concerned, found.events, found.types, found.runs)
                if twice := await self._spelled_twice(views):
                    keys = [views[row.key] for row in found.rows]
                    page = await self._set_aside(page, keys, twice)
                yield page

    def _views(self, log_keys: Iterable[Any]) -> dict[Any, str | None]:
        """The view that events under some log keys concern."""
        view_of = self._projection.view_of
        return {
            key: view_of(key) if isinstance(key, str) and is_utf8(key) else None for key in log_keys
        }

    def _keys(self, rows: Sequence[LogRow], events: Sequence[Event | Rejected]) -> list[str | None]:
        """For each event, the key of the view that it may concern."""
        if self._projection.log_keys("") is None:
            return [folding.key_of(self._projection, event) for event in events]
        views = self._views({row.key for row in rows})
        return [views[row.key] for row in rows]

    async def _set_aside(
        self, page: "_Page", keys: Sequence[str | None], aside: Collection[str]
    ) -> "_Page":
        """Gather the events of some views, and leave the others."""
        gathered = [(key, seq) for key, seq in zip(keys, page.seqs, strict=True) if key in aside]
        if not gathered:
            return page
        pairs = [(str(key), seq) for key, seq in gathered]
        await self._thread.run(lambda store: store.scratch.add(self._projection.name, pairs))
        left = [key not in aside for key in keys]
        seqs, events = [*compress(page.seqs, left)], [*compress(page.events, left)]
        return _page(seqs, compress(keys, left), events)

    async def _gathered(self) -> AsyncIterator["_Page"]:
        after, name = ("", 0), self._projection.name
        while rows := await self._thread.run(lambda store: store.scratch.page(name, after=after)):
            after = (rows[-1][0], rows[-1][1].seq)
            events = folding.read([row for _, row in rows], [self._projection])
            yield _page([row.seq for _, row in rows], [key for key, _ in rows], events)

    async def _spelled_twice(self, views: Mapping[Any, str | None]) -> set[str]:
        """Those of some views, by log key, whose events stand under another one too."""
        log_keys = self._projection.log_keys
        others = {
            spelling: view
            for key, view in views.items()
            if view is not None
            for spelling in log_keys(view) or ()
            if spelling != key
        }
        present = await self._thread.run(
            lambda store: store.log.present([*others], until=self.until)
        )
        return {others[spelling] for spelling in present}

    def _history(
        self, keys: Iterable[str], *, after: int, until: int
    ) -> AsyncIterator[list[LogRow]]:
        return history(self._thread, self._projection, keys, after=after, until=until)

    async def _compare(self, keys: Sequence[str], views: Views) -> list[Difference]:
        """Compare the views of some keys, folded up to `until`, with the rows that stand."""
        found: list[Difference] = []
        position = self.until
        while keys:
            loaded = await self._load(keys)
            part = keys[: loaded.covered]
            if self._following and loaded.checkpoint.position > position:
                await self._fold_on(views, part, position, loaded.checkpoint.position)
                position = loaded.checkpoint.position
            rows = {k: self._projection.to_row(views[k]) for k in part if k in views}
            differing = [k for k in part if rows.get(k) != loaded.rows.get(k)]
            if differing:
                await self._require_same_log(loaded.checkpoint)
            mended: list[str] = []
            try:
                await self._mend_rows(loaded, differing, rows, mended)
            except LostRace:
                if not self._following:
                    raise
                found += [self._difference(k, loaded.rows.get(k), rows.get(k)) for k in mended]
                continue  # the same part again, as of where the checkpoint is now
            found += [self._difference(k, loaded.rows.get(k), rows.get(k)) for k in differing]
            keys, position = keys[loaded.covered :], self.until
        return found

    async def _load(self, keys: Sequence[str]) -> LoadedViews:
        return await self._thread.run(lambda store: store.views.load(self._projection, keys))

    async def _checkpoint_now(self) -> Checkpoint:
        return await self._thread.run(lambda store: checkpoint_of(store, self._projection))

    async def _require_same_log(self, checkpoint: Checkpoint) -> None:
        """Raises `LostRace` where the database was restored in place since the walk began."""
        last = await self._thread.run(lambda store: store.log.event(self.until))
        if last != self._last or (self._following and checkpoint.position < self.until):
            raise LostRace

    async def _fold_on(self, views: Views, keys: Sequence[str], after: int, until: int) -> None:
        """What came while the walk was under way."""
        wanted = set(keys)
        async for rows in self._history(keys, after=after, until=until):
            events = folding.read(rows, [self._projection])
            concerned = [e for e in events if folding.key_of(self._projection, e) in wanted]
            views.update(folding.fold(self._projection, views, concerned).views)

    async def _mend_rows(
        self,
        loaded: LoadedViews,
        keys: Sequence[str],
        rows: dict[str, tuple[Any, ...]],
        mended: list[str],
    ) -> None:
        """Write by chunks; `mended` gets the keys of those that are committed."""
        checkpoint = loaded.checkpoint
        chunk: list[str] = []
        size = 0
        for number, key in enumerate(keys, 1):
            chunk.append(key)
            size += max(size_of(rows.get(key, ())), size_of(loaded.rows.get(key, ())))
            share = GENTLE_SHARE if self._gentle else 1
            full = len(chunk) * share >= CHUNK_CHANGES or size * share >= CHUNK_BYTES
            if number == len(keys) or full:
                checkpoint = await self._mend(checkpoint, _rows(chunk, rows), _gone(chunk, rows))
                mended += chunk
                chunk, size = [], 0

    async def _mend(
        self,
        checkpoint: Checkpoint,
        rows: Sequence[tuple[Any, ...]] = (),
        removed: Sequence[str] = (),
        quarantined: Sequence[Rejected] = (),
        cleared: Sequence[int] = (),
    ) -> Checkpoint:
        """One short transaction; then as long a pause, where the daemon or others write too."""
        if not self._mending:
            return checkpoint
        after = checkpoint if not self._following else _raised(checkpoint)
        before = checkpoint if self._following else self._checkpoint
        table = self._projection.table
        change = Change(table, before, after, rows, removed, quarantined, cleared)
        committed = await self._commit(change)
        self._gentle.wrote(others=committed.others_wrote)
        if self._gentle:
            await anyio.sleep(committed.held_s)
        return after

    async def _commit(self, change: Change) -> CommitStats:
        while True:
            try:
                bulk = not self._gentle and sum(map(size_of, change.rows)) >= CHUNK_BYTES
                return await self._thread.run(lambda store: store.commit([change], bulk=bulk))
            except Unavailable as error:
                if self._hold_on is None:
                    raise
                await self._hold_on(error)

    async def _compare_quarantine(
        self, seqs: Sequence[int], expected: Sequence[Rejected]
    ) -> list[Difference]:
        """What stands of events up to `until` is settled: nobody but a walk changes it."""
        wanted = {rejected.seq: rejected for rejected in expected}
        name = self._projection.name
        standing = await self._thread.run(lambda store: store.quarantine.reasons(name, seqs))
        differing = sorted(
            seq
            for seq in wanted.keys() | standing.keys()
            if seq not in wanted or standing.get(seq) != wanted[seq].reason
        )
        await self._mend_quarantine(
            [wanted[seq] for seq in differing if seq in wanted],
            [seq for seq in differing if seq not in wanted],
        )
        return [
            self._quarantine_difference(
                seq, standing.get(seq, ...), wanted[seq].reason if seq in wanted else None
            )
            for seq in differing
        ]

    async def _mend_quarantine(
        self, quarantined: Sequence[Rejected], cleared: Sequence[int]
    ) -> None:
        while self._mending and (quarantined or cleared):
            checkpoint = await self._checkpoint_now()
            await self._require_same_log(checkpoint)
            now = (quarantined[:CHUNK_CHANGES], cleared[:CHUNK_CHANGES])
            try:
                await self._mend(checkpoint, quarantined=now[0], cleared=now[1])
            except LostRace:
                if not self._following:
                    raise
                continue
            quarantined, cleared = quarantined[CHUNK_CHANGES:], cleared[CHUNK_CHANGES:]

    async def _ghosts(self) -> AsyncIterator[Step]:
        """Rows that no event is about; those that some are about were compared."""
        after: str | None = None
        while keys := await self._thread.run(
            lambda store: store.views.keys(self._projection, after=after)
        ):
            checkpoint = await self._checkpoint_now()
            until = checkpoint.position if self._following else self.until
            explained = await self._explained(keys, until)
            ghosts = [key for key in keys if key not in explained]
            if ghosts:
                await self._require_same_log(checkpoint)
            removed: list[str] = []
            try:
                for key in ghosts:  # one by one, as each may be large
                    checkpoint = await self._mend(checkpoint, removed=[key])
                    removed.append(key)
            except LostRace:
                if not self._following:
                    raise
                yield Step(0, len(removed), [self._difference(k, (), None) for k in removed])
                continue
            after = keys[-1]
            yield Step(0, len(ghosts), [self._difference(key, (), None) for key in ghosts])

    async def _explained(self, keys: Sequence[str], until: int) -> set[str]:
        keys = [key for key in keys if isinstance(key, str) and is_utf8(key)]
        spellings = {key: self._projection.log_keys(key) for key in keys}
        if None in spellings.values():
            name = self._projection.name
            explained = await self._thread.run(lambda store: store.scratch.present(name, keys))
            if until > self.until:
                async for rows in self._history(keys, after=self.until, until=until):
                    events = folding.read(rows, [self._projection])
                    found = {folding.key_of(self._projection, e) for e in events}
                    explained.update(key for key in found if key is not None)
            return explained
        asked = {s: key for key, ways in spellings.items() for s in ways or ()}
        present = await self._thread.run(lambda store: store.log.present([*asked], until=until))
        return {asked[spelling] for spelling in present}

    async def _strays(self) -> AsyncIterator[Step]:
        """Rows of the quarantine for events that the log does not have, or not yet."""
        ahead = None if self._following else self.until
        name = self._projection.name
        while seqs := await self._thread.run(
            lambda store: store.quarantine.strays(name, ahead=ahead)
        ):
            await self._mend_quarantine((), seqs)
            yield Step(0, 0, [self._quarantine_difference(seq, "", None) for seq in seqs])
            if not self._mending:
                return

    async def _compare_skipped(self) -> list[Difference]:
        """The count as of where a followed checkpoint stood when the walk began."""
        if not self._following or self.skipped == self._checkpoint.skipped:
            return []
        while self._mending:
            checkpoint = await self._checkpoint_now()
            await self._require_same_log(checkpoint)
            after = msgspec.structs.replace(
                _raised(checkpoint), skipped=await self._skipped_until(checkpoint.position)
            )
            try:
                await self._commit(Change(self._projection.table, checkpoint, after))
                break
            except LostRace:
                continue
        differs = Field("skipped", self._checkpoint.skipped, self.skipped)
        return [Difference(self._projection.name, "checkpoint", "stale", None, [differs])]

    async def _skipped_until(self, position: int) -> int:
        skipped, after = self.skipped, self.until
        while rows := await self._thread.run(
            lambda store: store.log.page(start=after + 1, until=position)
        ):
            after = rows[-1].seq
            events = folding.read(rows, [self._projection])
            skipped += folding.fold(self._projection, {}, events).skipped
        return skipped

    def _difference(
        self, key: str, standing: tuple[Any, ...] | None, row: tuple[Any, ...] | None
    ) -> Difference:
        projection = self._projection
        differing: list[Field] = []
        if standing is None:
            kind = "missing"
        elif row is None:
            kind = "ghost"
        elif self._brief:
            kind = "stale"
        else:
            kind, differing = "stale", fields([*projection.table.columns], standing, row)
            try:
                restore(projection, standing)
            except CorruptRow:
                kind = "damaged"
        return Difference(projection.name, "view", kind, key, differing)

    def _quarantine_difference(self, seq: int, standing: Any, reason: str | None) -> Difference:
        kind = "missing" if standing is ... else "ghost" if reason is None else "stale"
        differs = [Field("reason", standing, reason)] if kind == "stale" else []
        return Difference(self._projection.name, "quarantine", kind, seq, differs)


class _Page(msgspec.Struct, frozen=True):
    """Events, and the keys of the views that they may concern; the last one may go on in the next
    page."""

    seqs: Sequence[int]
    views: Sequence[str]
    events: Sequence[Event | Rejected]
    types: Mapping[str | None, int]
    runs: Runs | None = None


def _page(
    seqs: Sequence[int], keys: Iterable[str | None], events: Sequence[Event | Rejected]
) -> _Page:
    views = [key for key in dict.fromkeys(keys) if key is not None]
    return _Page(seqs, views, events, _types(events))


def _seqs(rows: Iterable[LogRow]) -> list[int]:
    return [*map(attrgetter("seq"), rows)]


def _types(events: Iterable[Event | Rejected]) -> Mapping[str | None, int]:
    return Counter(map(attrgetter("type"), events))


def _rows(keys: Sequence[str], rows: dict[str, tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [rows[key] for key in keys if key in rows]


def _gone(keys: Sequence[str], rows: dict[str, tuple[Any, ...]]) -> list[str]:
    return [key for key in keys if key not in rows]


def _raised(checkpoint: Checkpoint) -> Checkpoint:
    return msgspec.structs.replace(checkpoint, generation=checkpoint.generation + 1)
