"""What a projection is: which events concern which view, how a view folds, how it is kept."""

from typing import Any, Protocol

import msgspec

from projections.event import Event


class Table(msgspec.Struct, frozen=True):
    """Where a projection keeps its views: one row per view, found by `key`.

    Only rows whose key begins with `prefix` are the projection's own.
    """

    name: str
    columns: tuple[str, ...]
    key: str
    prefix: str = ""

    @property
    def bounds(self) -> tuple[str, str]:
        """The projection's own keys are at or above the first and below the second."""
        if not self.prefix:
            return "", "\U0010ffff"
        return self.prefix, self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)


class Damaged(Exception):
    """A row that no fold can have written; the text says what is wrong with it."""


class Projection(Protocol):
    """Pure: the same events give the same rows, in whatever batches."""

    name: str
    version: int
    """Raised by every change that lets the same log give other rows or another quarantine."""
    table: Table

    def key_of(self, event: Event) -> str | None:
        """The key of the view that an event concerns; None skips it."""

    def view_of(self, log_key: str) -> str:
        """The key of the one view that events under a value of `event_log.key` may concern."""

    def log_keys(self, key: str) -> tuple[str, ...]:
        """The values of `event_log.key` under which a view's events stand."""

    def fold(self, view: Any | None, event: Event) -> Any:
        """The view after the event, the one before left as it was; raises `Unfoldable`."""

    def to_row(self, view: Any) -> tuple[Any, ...]:
        """The row that keeps a view, in the order of `table.columns`."""

    def from_row(self, row: tuple[Any, ...]) -> Any:
        """The view that a row keeps; raises `Damaged`."""
