"""What changes, as it happens: one watcher reads for all clients, only while there is one.

A session that grows is read from the log, where its new messages stand by themselves: to read its
view would take as long as the session is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from session_projector.projections.session_index import Entry
from session_projector.worker.board import sessions as api
from session_projector.worker.board.answers import told
from session_projector.worker.board.values import exact, shown, to_json
from session_projector.worker.clock import now_ms
from session_projector.worker.errors import ProjectorError
from session_projector.worker.sessions import overview, read, window
from session_projector.worker.storage.port import Among, Database, Store, Thread, Wakeup

QUEUE: Final = 64
"""Frames that a client may be behind; then it is told to fetch all of it again."""
MOST_CHANGES: Final = 500
"""Sessions that changed since the last look; with more, clients fetch again."""
COMMENT_S: Final = 15.0
COUNT_S: Final = 1.0
"""Between two counts of the sessions, or as long as those take, 50 times over."""
STATUS_S: Final = 5.0
RETRY_S: Final = 1.0
FEW: Final = 5
PAUSE_S: Final = 0.004
"""Of each client, after what it was sent, for each client beyond a few. To send takes 0.2 ms of the
processor, and what comes meanwhile goes together."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def frame(event: str, data: Any, cursor: str | None = None) -> bytes:
    """An event as a stream of them has it."""
    head = b"" if cursor is None else f"id: {cursor}\n".encode()
    return b"%bevent: %b\ndata: %b\n\n" % (head, event.encode(), to_json(data))


class Seen(msgspec.Struct, frozen=True):
    """How far all is known: the last change of a session, and what each replay raises."""

    generation: int
    seq: int

    @property
    def cursor(self) -> str:
        return f"{self.generation}-{self.seq}"


class News(msgspec.Struct, frozen=True):
    """What changed since a look. `reset`: all of it may have; `messages` has for a session that
    somebody looks at the frame with those that are new."""

    seen: Seen
    entries: list[Entry] = []
    messages: dict[str, bytes] = {}
    reset: bool = False


def look(store: Store, before: Seen | None, watched: Iterable[str] = ()) -> News:
    """What changed since `before`, all of one moment."""
    with store.snapshot():
        seen = Seen(api.generation(store), api.seq(store))
        if before in (None, seen):
            return News(seen)
        if before.generation != seen.generation or before.seq > seen.seq:
            return News(seen, reset=True)
        above = Among(above={"last_seq": before.seq})
        rows = store.views.latest(read.INDEX, above, order=("last_seq",), limit=MOST_CHANGES + 1)
        if len(rows) > MOST_CHANGES:
            return News(seen, reset=True)
        entries = [read.entry_of(store, row) for row in rows[::-1]]
        wanted = {*watched}
        messages = {
            entry.session_id: grown(store, entry, after=before.seq)
            for entry in entries
            if entry.session_id in wanted
        }
        return News(seen, entries, messages)


def grown(store: Store, entry: Entry, *, after: int, known: int | None = None) -> bytes:
    """The frame with a session's messages after a position, and after its first `known`; where all
    of them may be others, or those are too many, it says to fetch them again."""
    data = {"session": entry.session_id, "total": entry.message_count}
    messages = _added(store, entry, after, known)
    if messages is None:
        return frame("messages", data | {"messages": [], "replaced": True})
    return frame("messages", data | {"messages": messages}) if messages else b""


def _added(
    store: Store, entry: Entry, after: int, known: int | None
) -> list[dict[str, Any]] | None:
    session_id, total = entry.session_id, entry.message_count
    found = window.grown(store, session_id, after=after, until=entry.last_seq, total=total)
    if found is None or len(found) > api.MOST_MESSAGES:
        return None
    if known is not None and not total - len(found) <= known <= total:
        return None
    news = [one for one in found if one.n > (known or 0)]
    texts = [shown(window.message(store, session_id, one.data)) for one in news]
    if sum(map(len, texts)) > api.PAGE_BYTES:
        return None
    return [
        {"n": one.n, "time": exact(one.time), "message": msgspec.Raw(text)}
        for one, text in zip(news, texts, strict=True)
    ]


class Client:
    """One stream: what it asked for, and the frames that it has yet to take."""

    def __init__(self, project: str | None, sessions: Mapping[str, int | None]) -> None:
        self.project = project
        self.sessions = sessions
        """Those that it looks at, and how many messages it had of each when it began."""
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()

    def give(self, data: bytes | None, *, cursor: str = "") -> None:
        """Queue a frame, None at the end; one that is too far behind is told to fetch again."""
        if self._frames.qsize() >= QUEUE:
            while not self._frames.empty():
                self._frames.get_nowait()
            self._frames.put_nowait(frame("reset", {}, cursor or None))
        if data != b"":
            self._frames.put_nowait(data)

    async def frames(self, pause_s: Callable[[], float]) -> AsyncIterator[bytes]:
        """What it is given, as it comes; after each, no more for the seconds that this says."""
        while True:
            data = [await self._frames.get()]
            while not self._frames.empty():
                data.append(self._frames.get_nowait())
            if found := b"".join(filter(None, data)):
                yield found
            if None in data:
                return
            await asyncio.sleep(pause_s())


class Hub:
    """All streams, and the watcher that reads for them."""

    def __init__(self, database: Database, status: Callable[[], Mapping[str, Any]]) -> None:
        self._database = database
        self._status = status
        self._clients: set[Client] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._counts: dict[str | None, dict[str, Any]] = {}
        self._last_status = b""
        self._trouble = b""
        self._seen: Seen | None = None
        self._is_following = asyncio.Event()
        """What changes from now on is seen; or the database cannot be read."""
        self._moving: dict[str, Entry] = {}
        """Sessions that will wait for a person once they have been still for a minute."""
        self.closed = False

    def __len__(self) -> int:
        return len(self._clients)

    def pause_s(self) -> float:
        return max(len(self._clients) - FEW, 0) * PAUSE_S

    async def join(self, client: Client) -> None:
        """Let a client have all that changes from now on."""
        if self.closed:
            client.give(None)
            return
        self._clients.add(client)
        client.give(self._last_status)
        client.give(self._trouble)
        if not self._tasks:
            works = (self._watch, self._tell_status, self._comment)
            self._tasks = [asyncio.create_task(work()) for work in works]
        await self._is_following.wait()

    def leave(self, client: Client) -> None:
        self._clients.discard(client)
        if not self._clients:
            for task in self._tasks:
                task.cancel()
            self._tasks, self._seen, self._counts, self._moving = [], None, {}, {}
            self._last_status = self._trouble = b""
            self._is_following.clear()

    def close(self) -> None:
        """End all streams: the server waits for them when it ends."""
        self.closed = True
        for client in self._clients:
            client.give(None)

    async def _watch(self) -> None:
        while True:
            try:
                async with self._database.open_thread(writable=False) as thread:
                    with closing(self._database.view_wakeup()) as wakeup:
                        await self._follow(thread, wakeup)
            except ProjectorError as error:
                trouble = frame("trouble", told(error, self._database.name))
                if trouble != self._trouble:
                    self._trouble = trouble
                    self._give_all(trouble)
                self._is_following.set()
            except Exception as error:  # none may end the watcher for all
                log.error("board_watcher_failed", why=f"{type(error).__name__}: {error}")
            await asyncio.sleep(RETRY_S)

    async def _follow(self, thread: Thread, wakeup: Wakeup) -> None:
        count_at = 0.0
        if self._seen is None:
            recent = await thread.run(lambda store: overview.latest(store, limit=MOST_CHANGES))
            self._note(entry for entry in recent if not overview.waits(entry, now_ms()))

        while True:
            watched = frozenset(one for client in self._clients for one in client.sessions)
            news = await thread.run(partial(look, before=self._seen, watched=watched))
            if self._trouble:  # it may be another database since then
                self._trouble, news = b"", News(news.seen, reset=True)
            found, self._seen = self._seen != news.seen, news.seen
            self._is_following.set()
            self._send(news)
            if (began := time.monotonic()) >= count_at:
                projects = {client.project for client in self._clients}
                now = now_ms()
                counts = await thread.run(
                    lambda store: {one: api.counts(store, one, (), now) for one in projects}
                )
                self._tell_counts(counts, now)
                count_at = began + max(COUNT_S, 50 * (time.monotonic() - began))
            if news.reset:  # where much changes at once, not at each commit
                await asyncio.sleep(RETRY_S)
            await wakeup.wait(thread.changed, found=found and not wakeup.hears_on())

    def _give_all(self, data: bytes, cursor: str = "") -> None:
        for client in self._clients:
            client.give(data, cursor=cursor)

    def _send(self, news: News) -> None:
        cursor = news.seen.cursor
        if news.reset:
            self._give_all(frame("reset", {}, cursor), cursor)
            return
        if not news.entries:
            return
        self._note(news.entries)
        frames = {
            project: changes(news.entries, project, cursor)
            for project in {client.project for client in self._clients}
        }
        for client in self._clients:
            added = [news.messages[one] for one in client.sessions if one in news.messages]
            client.give(b"".join(added) + frames[client.project], cursor=cursor)

    def _note(self, entries: Iterable[Entry]) -> None:
        """Remember which sessions will wait for a person if they are still."""
        for entry in entries:
            self._moving.pop(entry.session_id, None)
            if overview.may_wait(entry):
                self._moving[entry.session_id] = entry

    def _tell_counts(self, counts: Mapping[str | None, dict[str, Any]], now: int) -> None:
        """Tell how many sessions there are, and which of them wait for a person by now."""
        waiting = [entry for entry in self._moving.values() if overview.waits(entry, now)]
        for entry in waiting:
            del self._moving[entry.session_id]
        cursor = self._seen.cursor if self._seen else None
        for project, found in counts.items():
            if waiting or self._counts.get(project) != found:
                data = changes(waiting, project, cursor, **found)
                for client in self._clients:
                    if client.project == project:
                        client.give(data)
        self._counts = {**counts}

    async def _comment(self) -> None:
        """Show each client, and what is between, that the stream is alive."""
        while True:
            await asyncio.sleep(COMMENT_S)
            self._give_all(b":\n\n")

    async def _tell_status(self) -> None:
        while True:
            began = time.monotonic()
            with suppress(ProjectorError):  # the watcher meets it too
                status = frame("status", await asyncio.to_thread(self._status))
                if status != self._last_status:
                    self._last_status = status
                    self._give_all(status)
            await asyncio.sleep(max(STATUS_S, 20 * (time.monotonic() - began)))


def changes(
    entries: Iterable[Entry], project: str | None, cursor: str | None, **counts: Any
) -> bytes:
    """The frame with sessions that changed, for who sees those of a project."""
    now = now_ms()
    data = {
        "sessions": [api.summary(e, now) for e in entries if project in (None, e.project)],
        "gone": [e.session_id for e in entries if project not in (None, e.project)],
        **counts,
    }
    return frame("sessions", data, cursor)


def missed(store: Store, client: Client, since: Seen | None) -> bytes:
    """The frames for a client that begins: what changed since it has read all, up to now."""
    news = look(store, since)
    cursor = news.seen.cursor
    if news.reset:
        return frame("reset", {}, cursor)
    after = news.seen.seq if since is None else since.seq
    rows = {one: store.views.row(read.INDEX, one) for one in client.sessions}
    added = [
        grown(store, read.entry_of(store, row), after=after, known=client.sessions[one])
        for one, row in rows.items()
        if row
    ]
    counts = api.counts(store, client.project, (), now_ms())
    return b"".join(added) + changes(news.entries, client.project, cursor, **counts)
