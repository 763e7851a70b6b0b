"""`eventsourcing` on SQLite: aggregates, and a Projection whose view tracks its position.

There is one transaction for each event, as the library does it. Its subscriptions need PostgreSQL,
so the application's notifications are polled.
"""

import time
from collections.abc import Iterable
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import peer
from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import InfrastructureFactory, Tracking
from eventsourcing.projection import Projection
from eventsourcing.sqlite import SQLiteTrackingRecorder
from eventsourcing.utils import Environment
from peer import Given

SECTION_SIZE = 100


class Session(Aggregate):
    @event("Started")
    def __init__(self, session: str, id_in_log: str, time_ms: int, project: str) -> None:
        """Do nothing: the state of the aggregate does not matter here."""

    @staticmethod
    def create_id(session: str) -> UUID:
        return uuid5(NAMESPACE_URL, session)

    @event("Appended")
    def append(self, session: str, id_in_log: str, time_ms: int, message: dict[str, Any]) -> None:
        """Do nothing: the state of the aggregate does not matter here."""


class Sessions(Application[UUID]):
    pass


class Views(SQLiteTrackingRecorder):
    def construct_create_table_statements(self) -> list[str]:
        return [*super().construct_create_table_statements(), peer.CREATE_VIEW]

    def fold(self, given: Given, tracking: Tracking) -> None:
        key = f"session:{given.session}"
        with self.datastore.transaction(commit=True) as cursor:
            # Write first: a transaction that begins with a read fails if another process wrote.
            self._insert_tracking(cursor, tracking)
            cursor.execute("SELECT data FROM view WHERE key = ?", (key,))
            row = cursor.fetchone()
            data = peer.fold(row and row[0], [given])
            cursor.execute("INSERT OR REPLACE INTO view VALUES (?, ?, ?)", (key, data, given.id))


class SessionViews(Projection[Views]):
    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        pass

    @process_event.register
    def started(self, e: Session.Started, tracking: Tracking) -> None:
        self.view.fold(Given(e.session, e.id_in_log, e.time_ms, e.project), tracking)

    @process_event.register
    def appended(self, e: Session.Appended, tracking: Tracking) -> None:
        given = Given(e.session, e.id_in_log, e.time_ms, message=e.message)
        self.view.fold(given, tracking)


class EventSourcing:
    def __init__(self, path: str) -> None:
        self.env = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}
        self.app = Sessions(self.env)
        self.open: dict[str, Session] = {}

    def fill(self, events: Iterable[Given]) -> None:
        made = (stored for given in events for stored in self._made(given).collect_events())
        self.app.recorder.insert_events([self.app.mapper.to_stored_event(e) for e in made])

    def append(self, given: Given) -> None:
        self.app.save(self._made(given))

    def _made(self, given: Given) -> Session:
        """Return the aggregate, with the event pending."""
        name = given.session
        if given.message is None:
            self.open[name] = Session(name, given.id, given.time, given.project or "")
            return self.open[name]
        if name not in self.open:
            self.open[name] = self.app.repository.get(Session.create_id(name))
        self.open[name].append(name, given.id, given.time, given.message)
        return self.open[name]

    def run(self) -> None:
        env = Environment("SessionViews", self.env)
        factory = InfrastructureFactory.construct(env)
        views = factory.tracking_recorder(Views)
        projection, name, mapper = SessionViews(views), self.app.name, self.app.mapper
        position = views.max_tracking_id(name)
        peer.tell_started()
        while True:
            section = self.app.recorder.select_notifications(
                position, SECTION_SIZE, inclusive_of_start=False
            )
            for notification in section:
                tracking = Tracking(name, notification.id)
                projection.process_event(mapper.to_domain_event(notification), tracking)
                position = notification.id
            if section:
                peer.tell_position(position or 0)
            else:
                time.sleep(peer.POLL_S)


if __name__ == "__main__":
    peer.main(EventSourcing)
