"""A full scan of the log by view: each view's events are folded up to a position and compared.

Verify, dry run, replay and the rebuild of a projection are all this scan.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import compress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from session_projector.projections import fold as folding
from session_projector.projections.event import Event, LogRow, is_name
from session_projector.projections.fold import Rejected, Runs
from session_projector.projections.projection import Projection
from session_projector.worker.folding.cooperative import fold_in_slices, read_in_slices
from session_projector.worker.folding.history import history
from session_projector.worker.folding.tally import Outcomes, outcomes
from session_projector.worker.replay.compare import Comparison
from session_projector.worker.replay.difference import Difference
from session_projector.worker.storage.port import Thread

if TYPE_CHECKING:
    from session_projector.worker.replay.walkers import Walkers

Range = tuple[LogRow | None, LogRow | None]
"""Of the log by key, the events behind the first and up to the second; None is either end."""


class WalkProgress(msgspec.Struct, frozen=True):
    """What a page of the scan did: events read and what became of them, views compared, and what
    differed."""

    events: int = 0
    views: int = 0
    differences: Sequence[Difference] = ()
    outcomes: Outcomes = msgspec.field(default_factory=Outcomes)


class FoldedPage(msgspec.Struct, frozen=True):
    """What a page of events, of which there are `events`, is to be compared by: the views with some
    keys, of which `views` has those that an event made, and the quarantine of some positions.

    `compared` counts the views that an event made; where another process found some of them as they
    are to be, they are not among the keys any more. `aside` is for the scratch table.
    """

    events: int = 0
    compared: int = 0
    keys: Sequence[str] = ()
    views: dict[str, Any] = {}
    seqs: Sequence[int] = ()
    quarantined: Sequence[Rejected] = ()
    skipped: int = 0
    outcomes: Outcomes = msgspec.field(default_factory=Outcomes)
    aside: Sequence[tuple[str, int]] = ()


class Page:
    """Events, and what every scan asks of them; `rows` and `runs` of a page of the log by key.

    `closes`: none of its views goes on in the next page. `aside` are events that are left out.
    """

    def __init__(
        self,
        events: Sequence[Event | Rejected],
        rows: Sequence[LogRow] = (),
        runs: Runs | None = None,
        *,
        closes: bool = False,
        aside: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.events = events
        self.rows = rows
        self.runs = runs
        self.closes = closes
        self.aside = aside
        self.keys = [*dict.fromkeys(map(attrgetter("key"), rows))]
        self.seqs = [*map(attrgetter("seq"), events)]
        self.types = Counter(map(attrgetter("type"), events))


class Pages:
    """The log by key, each page read and decoded once for the scans of several projections."""

    def __init__(
        self,
        thread: Thread,
        projections: Sequence[Projection],
        *,
        share: bool = False,
        walkers: "Walkers | None" = None,
    ) -> None:
        """`share`: as of `fold_in_slices`, for all scans of these pages. `walkers` fold for those
        scans that they take."""
        self.share = share
        self.walkers = walkers
        self._thread = thread
        self._projections = projections
        self._newest: int | None = None
        self._asked: tuple[int, int] | None = None
        self._checked: int | None = 0
        self._found: Page | None = None

    async def newest(self) -> int:
        """The newest settled position when the first of them asked: all have the same end."""
        newest = await self._thread.run(lambda store: store.log.settled())
        self._newest = min(newest, newest if self._newest is None else self._newest)
        return self._newest

    async def check(self, projection: Projection) -> AsyncIterator[None]:
        """Check the index by which the log is read, a page each time and once for all scans."""
        reads_by_key = projection.log_keys("") is not None or projection.per_event
        while (after := self._checked) is not None and reads_by_key:
            self._checked = await self._thread.run(
                lambda store: store.log.check_keys(projection.name, after=after)
            )
            yield

    async def ranges(self, until: int) -> AsyncGenerator[Range, None]:
        """The log by key, cut between keys, the same way for every scan up to a position."""
        end: LogRow | None = None
        while True:
            after = end
            end = await self._thread.run(
                lambda store: store.log.range_end(after=after, until=until)
            )
            yield after, end
            if end is None:
                return

    async def by_key(self, after: LogRow | None, until: int, end: LogRow | None) -> Page | None:
        """The next page of a range; None after the last one."""
        asked = (after.seq if after else 0, until)
        if after and end and after.seq == end.seq:
            return None
        if asked != self._asked:
            rows = await self._thread.run(
                lambda store: store.log.by_session(after=after, until=until, end=end)
            )
            events = await read_in_slices(rows, self._projections, share=self.share)
            closes = bool(rows and end and rows[-1].seq == end.seq)
            runs = folding.runs_of(events)
            self._found = Page(events, rows, runs, closes=closes) if rows else None
            self._asked = asked
        return self._found


class Walk:
    """One projection's scan, whose events and views `comparison` gets; `steps` does it, by pages.

    `pages` are shared with the scans of other projections. `only` is the key of a single view.
    """

    def __init__(
        self,
        thread: Thread,
        projection: Projection,
        comparison: Comparison,
        pages: Pages | None = None,
        only: str | None = None,
    ) -> None:
        self.skipped = 0
        """How many events are of no concern, once the scan is over."""
        self._thread = thread
        self._projection = projection
        self._comparison = comparison
        self._shared = pages or Pages(thread, [projection])
        self._only = only
        self._until = comparison.as_of.until
        self._gathers = projection.log_keys("") is None and not projection.per_event

    async def steps(self) -> AsyncGenerator[WalkProgress, None]:
        await self._thread.run(lambda store: store.scratch.clear(self._projection.name))
        await self._comparison.begin()
        async with aclosing(self._folded_pages()) as pages:
            async for page in pages:
                yield await self._compared(page)
        if self._only is None:
            async for page in self._fold(self._gathered()):
                yield await self._compared(page)
            async for found in self._comparison.orphaned():
                yield WalkProgress(views=len(found), differences=found)
            async for found in self._comparison.strays():
                yield WalkProgress(differences=found)
            yield WalkProgress(differences=await self._comparison.skipped(self.skipped))

    def _folded_pages(self) -> AsyncGenerator[FoldedPage, None]:
        walkers = self._shared.walkers
        if (
            self._only is None
            and walkers
            and walkers.take(self._projection, self._comparison.as_of)
        ):
            return walkers.pages(self._projection)
        return self._fold(self._pages())

    async def _compared(self, page: FoldedPage) -> WalkProgress:
        self.skipped += page.skipped
        if page.aside:
            name = self._projection.name
            await self._thread.run(lambda store: store.scratch.add(name, page.aside))
        found = await self._differences(page)
        unmade = sum(one.row == "view" and one.key not in page.views for one in found)
        return WalkProgress(page.events, page.compared + unmade, found, page.outcomes)

    async def _differences(self, page: FoldedPage) -> list[Difference]:
        found = await self._comparison.quarantine(page.seqs, page.quarantined)
        return found + await self._comparison.views(page.keys, page.views)

    async def sifted(self, of: Range) -> AsyncGenerator[FoldedPage, None]:
        """The pages of a range, each without what is as it is to be."""
        await self._comparison.begin()
        async for page in self._fold(self._of_range(of)):
            differing = {difference.key for difference in await self._differences(page)}
            keys = [key for key in page.keys if key in differing]
            views = {k: self._projection.settled(page.views[k]) for k in keys if k in page.views}
            yield msgspec.structs.replace(
                page,
                keys=keys,
                views=views,
                seqs=[seq for seq in page.seqs if seq in differing],
                quarantined=[one for one in page.quarantined if one.seq in differing],
            )

    async def _fold(self, pages: AsyncIterator["_ViewPage"]) -> AsyncGenerator[FoldedPage, None]:
        """Fold pages in which each view's events follow each other, to compare each view once."""
        views: dict[str, Any] = {}
        open_key = self._only
        async for page, concerned in pages:
            folded = await fold_in_slices(
                self._projection, views, page.events, page.runs, share=self._shared.share
            )
            views.update(folded.views)
            keys = _views((open_key, *concerned))
            open_key = keys.pop() if keys and not page.closes else None
            yield FoldedPage(
                events=len(page.seqs),
                compared=sum(key in views for key in keys),
                keys=keys,
                views=views,
                seqs=page.seqs,
                quarantined=folded.quarantined,
                skipped=folded.skipped,
                outcomes=outcomes(self._projection, page.types, folded),
                aside=page.aside,
            )
            views = {key: view for key, view in views.items() if key == open_key}
        if open_key is not None:
            yield FoldedPage(compared=int(open_key in views), keys=[open_key], views=views)

    async def _pages(self) -> AsyncIterator["_ViewPage"]:
        """The log by view, as far as an index has it so; the rest is gathered for later."""
        asked = None if self._only is None else [self._only]
        if asked or self._gathers:
            async for events in history(
                *(self._thread, self._projection, asked),
                after=0,
                until=self._until,
                share=self._shared.share,
            ):
                if asked:
                    yield Page(events), asked
                else:
                    keys = [folding.key_of(self._projection, event) for event in events]
                    yield _set_aside(Page(events), keys, {*_views(keys)})
            return
        async for of in self._shared.ranges(self._until):
            async for found in self._of_range(of):
                yield found

    async def _of_range(self, of: Range) -> AsyncIterator["_ViewPage"]:
        last, end = of
        while page := await self._shared.by_key(last, self._until, end):
            last = page.rows[-1]
            if self._projection.per_event:
                yield page, _views(folding.key_of(self._projection, e) for e in page.events)
                continue
            views = self._views(page.keys)
            if twice := await self._spelled_twice(views):
                yield _set_aside(page, [views[row.key] for row in page.rows], twice)
            else:
                yield page, _views(views.values())

    def _views(self, log_keys: Iterable[Any]) -> dict[Any, str | None]:
        """The view that events under each of some log keys concern."""
        view_of = self._projection.view_of
        return {key: view_of(key) if is_name(key) else None for key in log_keys}

    async def _gathered(self) -> AsyncIterator["_ViewPage"]:
        after, name = ("", 0), self._projection.name
        while rows := await self._thread.run(lambda store: store.scratch.page(name, after=after)):
            after = (rows[-1][0], rows[-1][1].seq)
            events = folding.read([row for _, row in rows], [self._projection])
            yield Page(events), _views(key for key, _ in rows)

    async def _spelled_twice(self, views: Mapping[Any, str | None]) -> set[str]:
        """Those of some views, by log key, that have events under another log key too."""
        log_keys = self._projection.log_keys
        others = {
            spelling: view
            for key, view in views.items()
            if view is not None
            for spelling in log_keys(view) or ()
            if spelling != key
        }
        present = await self._thread.run(
            lambda store: store.log.present([*others], until=self._until)
        )
        return {others[spelling] for spelling in present}


_ViewPage = tuple[Page, Sequence[str]]
"""Events, and the views that they may concern; the last one may go on in the next page."""


def _set_aside(page: Page, keys: Sequence[str | None], aside: Collection[str]) -> _ViewPage:
    """Leave the events of some views out of a page, for the scratch table."""
    both = zip(keys, page.events, strict=True)
    pairs = [(str(key), event.seq) for key, event in both if key in aside]
    left = [key not in aside for key in keys]
    events = [*compress(page.events, left)]
    return Page(events, closes=page.closes, aside=pairs), _views(compress(keys, left))


def _views(keys: Iterable[str | None]) -> list[str]:
    return [key for key in dict.fromkeys(keys) if key is not None]
