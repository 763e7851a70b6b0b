"""What a projection is: which events concern which view, how a view folds, how it is kept."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, cast

import msgspec

from session_projector.projections.event import (
    SESSION_EVENTS,
    Event,
    Messages,
    MessagesAppended,
    SessionCreated,
    Unfoldable,
    keys_of,
    session_of,
)

if TYPE_CHECKING:  # a default needs Python 3.13; type checkers know it for every version
    from typing_extensions import TypeVar

    View = TypeVar("View", default=Any)
else:
    from typing import TypeVar

    View = TypeVar("View")

FAULT: Final = "a fault in the code of the projection: "
"""How the reason begins where an event is quarantined for no fault of its own."""
NEVER_CREATED: Final = "for a session that was never created"
"""How the reason ends where only an earlier `session_created` is missing."""


class Table(msgspec.Struct, frozen=True):
    """Where a projection keeps its views: one row per view, found by the column `key`.

    `columns` gives each column's SQL type, in the order of a row. The table is made when the
    projection first runs, with an index on each of `indexes`; with a `prefix` it is there
    already, others keep rows in it too, and only those whose key begins so are ours.
    """

    name: str
    columns: dict[str, str]
    key: str
    prefix: str = ""
    indexes: tuple[str, ...] = ()
    words: str = ""
    """A column whose words the engine indexes too, of a table whose keys `search.key_of` makes."""

    @property
    def bounds(self) -> tuple[str, str]:
        """The projection's own keys are at or above the first and below the second."""
        if not self.prefix:
            return "", "\U0010ffff"
        return self.prefix, self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)


class CorruptRow(Exception):
    """A row that no fold can have written; the text says what is wrong with it."""


class Projection(Generic[View]):
    """Pure: the same events give the same rows, in whatever batches.

    What must be given: `name`, `version`, `table`, `key_of` and `fold`. A view is then its own
    row, a tuple in the order of `table.columns`; `to_row` and `from_row` let it be more.
    `Projection[View]` tells a type checker what a view is; `Projection` alone leaves it open.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised by every change that lets the same log give other rows or another quarantine."""
    table: ClassVar[Table]
    events: ClassVar[Collection[str]] = SESSION_EVENTS
    """The types of event that it folds; those that are not ours come with an `Other` as body."""
    built_in: ClassVar[bool] = False
    """For projections of projector's own: one view for each session, and keys and rows that need
    not be checked after each event."""
    followed: ClassVar[bool] = False
    """For those of projector's own whose readers remember how far they have read: no row comes
    into sight after one with a later event."""
    per_event: ClassVar[bool] = False
    """For those of projector's own that have a view for each event: no event is about a view that
    is there already."""

    def key_of(self, event: Event) -> str | None:
        """The key of the view that an event concerns; None skips it."""
        raise NotImplementedError

    def fold(self, view: View | None, event: Event) -> View:
        """The view after the event, the one before left as it was; raises `Unfoldable`."""
        raise NotImplementedError

    def fold_all(self, view: View | None, events: Sequence[Event]) -> View:
        """The view after several events (at least one) of one session; raises as `fold` does.

        Only where `built_in`, as nothing is looked at in between.
        """
        raise NotImplementedError

    def to_row(self, view: View) -> tuple[Any, ...]:
        """The row that keeps a view."""
        return cast("tuple[Any, ...]", view)

    def from_row(self, row: tuple[Any, ...]) -> View:
        """The view that a row keeps; raises `CorruptRow`."""
        return cast("View", row)

    def settled(self, view: View) -> View:
        """The same view in the form that is the cheapest to keep, and to fold on."""
        return view

    def view_of(self, log_key: str) -> str | None:
        """The one view that events under a value of `event_log.key` concern, if that says it."""
        del log_key
        return None

    def position_of(self, key: str) -> int | None:
        """The position of the event that a view is about, where each has one of its own."""
        del key
        return None

    def log_keys(self, key: str) -> tuple[str, ...] | None:
        """The values of `event_log.key` under which a view's events stand; None: any."""
        del key
        return None


class PerSession(Projection[View]):
    """One view for each session, from its creation on; give `created` and `changed`."""

    def created(self, event: Event, body: SessionCreated) -> View:
        """The view of a new session."""
        raise NotImplementedError

    def changed(self, view: View, event: Event) -> View:
        """The view after any other event of the session."""
        raise NotImplementedError

    def appended(self, view: View, last: Event, added: Sequence[Messages]) -> View:
        """The view after some events in a row that append; `last` is the last of them."""
        raise NotImplementedError

    def key_of(self, event: Event) -> str | None:
        return None if event.body is None else self.table.prefix + event.session_id

    def view_of(self, log_key: str) -> str:
        return self.table.prefix + session_of(log_key)

    def log_keys(self, key: str) -> tuple[str, ...]:
        return keys_of(key.removeprefix(self.table.prefix))

    def fold(self, view: View | None, event: Event) -> View:
        if isinstance(event.body, SessionCreated):
            if view is not None:
                raise Unfoldable("the session is there already: session_created came twice")
            return self.created(event, event.body)
        if view is None:
            raise Unfoldable(f"{event.type} {NEVER_CREATED}")
        return self.changed(view, event)

    def fold_all(self, view: Any, events: Sequence[Event]) -> Any:
        added: list[Messages] = []
        for event in events:
            if type(event.body) is MessagesAppended and view is not None:
                added.append(event.body.messages)
                last = event
                continue
            if added:
                view, added = self.appended(view, last, added), []
            view = self.fold(view, event)
        return self.appended(view, last, added) if added else view
