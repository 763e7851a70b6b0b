"""`eventsource-py` on SQLite: its store, and its DatabaseProjection or a batch subscriber of it.

Its live subscriptions need an event bus between processes, which SQLite is not, so the store is
polled for new events. A DatabaseProjection has one transaction for each event, and another one for
its checkpoint. The batch subscriber folds a page in memory and commits it with its position.
"""

import asyncio
import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import aiosqlite
import peer
from eventsource import DomainEvent, StreamId, handles, register_event
from eventsource.adapters.sql import DatabaseProjection, SQLCheckpointRepository
from eventsource.adapters.sqlite import SQLiteEventStore
from eventsource.ports import ExpectedVersion, FeedReadOptions
from peer import Given
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

PAGE = 1000
INSERT = """
INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, version, timestamp, payload,
  created_at) VALUES (?, ?, 'Session', ?, ?, ?, ?, ?)
"""


@register_event
class SessionChanged(DomainEvent):
    aggregate_type: str = "Session"
    session: str
    id_in_log: str
    time_ms: int
    project: str | None = None
    message: dict[str, Any] | None = None


def changed(given: Given, version: int = 1) -> SessionChanged:
    return SessionChanged(
        aggregate_id=uuid5(NAMESPACE_URL, given.session),
        aggregate_version=version,
        session=given.session,
        id_in_log=given.id,
        time_ms=given.time,
        project=given.project,
        message=given.message,
    )


def given_of(event: SessionChanged) -> Given:
    return Given(event.session, event.id_in_log, event.time_ms, event.project, event.message)


class SessionViews(DatabaseProjection):
    @handles(SessionChanged)
    async def _changed(self, conn: Any, event: SessionChanged) -> None:
        key = {"key": f"session:{event.session}"}
        found = await conn.execute(text("SELECT data FROM view WHERE key = :key"), key)
        row = found.fetchone()
        data = peer.fold(row and row[0], [given_of(event)])
        await conn.execute(
            text("INSERT OR REPLACE INTO view VALUES (:key, :data, :id)"),
            {**key, "data": data, "id": event.id_in_log},
        )


class BatchSubscriber:
    """A subscriber that reads and writes each view once per page, along with the position."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._position = 0

    async def handle_batch(self, events: Sequence[SessionChanged]) -> None:
        pending: dict[str, list[Given]] = {}
        for event in events:
            pending.setdefault(f"session:{event.session}", []).append(given_of(event))
        self._position += len(events)
        await self._connection.execute("BEGIN IMMEDIATE")
        for key, given in pending.items():
            query = "SELECT data FROM view WHERE key = ?"
            rows = list(await self._connection.execute_fetchall(query, (key,)))
            row = (key, peer.fold(rows[0][0] if rows else None, given), given[-1].id)
            await self._connection.execute("INSERT OR REPLACE INTO view VALUES (?, ?, ?)", row)
        await self._connection.execute(
            "INSERT OR REPLACE INTO batch_position VALUES (1, ?)", (self._position,)
        )
        await self._connection.execute("COMMIT")


class EventSource:
    def __init__(self, path: str) -> None:
        logging.disable(logging.ERROR)
        self.path, self.store = path, SQLiteEventStore(path)
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.store.current_position())  # creates its tables
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(peer.CREATE_VIEW)
            connection.execute("CREATE TABLE IF NOT EXISTS batch_position (id PRIMARY KEY, at)")

    def fill(self, events: Iterable[Given]) -> None:
        """Store the events as the store's `append` would, but in one transaction."""
        versions: Counter[str] = Counter()
        with closing(sqlite3.connect(self.path)) as connection, connection:
            for given in events:
                versions[given.session] += 1
                event = changed(given, versions[given.session])
                at = event.occurred_at.isoformat()
                payload = json.dumps(event.model_dump(mode="json"))
                ids = (str(event.event_id), event.event_type, str(event.aggregate_id))
                row = (*ids, event.aggregate_version, at, payload, at)
                connection.execute(INSERT, row)
        self.loop.run_until_complete(self.store.close())

    def append(self, given: Given) -> None:
        event = changed(given)
        stream = StreamId(aggregate_id=event.aggregate_id, category="Session")
        stored = self.store.append(stream, [event], ExpectedVersion.any_())
        self.loop.run_until_complete(stored)

    def run(self) -> None:
        self.loop.run_until_complete(self._run())

    async def _run(self) -> None:
        if os.environ.get("PEER_VARIANT") == "batch":
            connection = await aiosqlite.connect(self.path, isolation_level=None)
            handle_batch = BatchSubscriber(connection).handle_batch
        else:
            engine = create_async_engine(f"sqlite+aiosqlite:///{self.path}")
            sessions = async_sessionmaker(engine)
            projection = SessionViews(sessions, SQLCheckpointRepository(engine))

            async def handle_batch(events: Sequence[SessionChanged]) -> None:
                for event in events:
                    await projection.handle(event)

        peer.tell_started()
        position, count = None, 0
        while True:
            feed = self.store.read_all(position, FeedReadOptions(limit=PAGE))
            page = [envelope async for envelope in feed]
            if not page:
                await asyncio.sleep(peer.POLL_S)
                continue
            await handle_batch([envelope.event for envelope in page])
            position, count = page[-1].position, count + len(page)
            peer.tell_position(count)


if __name__ == "__main__":
    peer.main(EventSource)
