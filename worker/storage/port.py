"""The storage port: what the tail and the walk need of an engine, in the domain's words."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from session_projector.projections.event import LogRow
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Projection, Table

BATCH_EVENTS: Final = 8192
"""Of one batch at most; what falls into it for one view is one write."""


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a projection has come; `digest` is of the event at `position`, '' at 0.

    `version` made the views; below 0, the same is about to, and some are of another one.
    """

    name: str
    version: int
    position: int
    generation: int
    digest: str
    skipped: int


class Change(msgspec.Struct, frozen=True):
    """What one projection commits: from one checkpoint to the next, whole rows only."""

    table: Table
    before: Checkpoint
    after: Checkpoint
    rows: Sequence[tuple[Any, ...]] = ()
    removed: Sequence[str] = ()
    quarantined: Sequence[Rejected] = ()
    cleared: Sequence[int] = ()
    """Positions whose rows of the quarantine go."""


class Look(msgspec.Struct, frozen=True):
    """Events, the newest seq, whether others may have committed since the look before, and where
    some projections stand."""

    rows: list[LogRow]
    newest: int
    touched: bool
    checkpoints: list[Checkpoint | None]


class Loaded(msgspec.Struct, frozen=True):
    """Rows by key, as of a checkpoint; only the first `covered` of the keys were looked up."""

    rows: dict[str, tuple[Any, ...]]
    covered: int
    checkpoint: Checkpoint


class Committed(msgspec.Struct, frozen=True):
    """How long a commit waited for the write lock, and how long it held it, in seconds; and whether
    others have committed since the one before."""

    waited_s: float
    held_s: float
    beside: bool


class State(msgspec.Struct, frozen=True):
    """What a projection is doing that is not tailing; times in Unix milliseconds."""

    state: Literal["rebuilding", "failed"]
    version: int
    why: str
    events: int
    total: int
    since: int
    updated_at: int


class Reach(msgspec.Struct, frozen=True):
    """How far a batch comes before the views that its events are about, as large as these are in
    the end, are more than it may load: in log order each of them is written again and again."""

    events: int
    database_bytes: int
    """As much as a walk reads, at most."""


class Store(Protocol):
    """One engine's connection, owned by one task.

    Every method may raise `RetryLater`; those that touch a projection's own rows,
    `ProjectionFailed`.
    """

    async def changed(self) -> bool:
        """Whether others may have committed anything since this was last asked.

        Raises `RetryLater` where the file was replaced.
        """

    async def newest(self) -> int:
        """The newest seq, 0 for an empty log. Raises `RetryLater` where the file was replaced."""

    async def look(
        self,
        *,
        start: int,
        until: int | None,
        events: int,
        names: Sequence[str] = (),
        patience_s: float = 0,
    ) -> Look:
        """The event at `start` and so many of those after it, at most a page's bytes.

        `patience_s`: for so long it waits for events where there are none. Raises `RetryLater`
        where the file was replaced.
        """

    async def checkpoint(self, projection: Projection) -> Checkpoint:
        """Where the projection stands; the row is made where there is none."""

    async def prepare(self, projection: Projection) -> Checkpoint:
        """The same, its table made or brought to the shape of this version.

        Where the table was gone the checkpoint begins at 0. One of a newer version stays as it is.
        """

    async def report(self, name: str, state: State | None) -> None:
        """Let everybody see what a projection is doing, None: tailing."""

    async def read_events(self, *, start: int, until: int | None = None) -> list[LogRow]:
        """The event at `start` and a bounded page of those after it."""

    async def reach(self, *, start: int, events: int) -> Reach | None:
        """Of so many events from there on; None where they are about no more views than a batch
        may load."""

    async def read_history(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        """The next events under some log keys, a bounded page in seq order."""

    async def read_by_key(self, *, after: LogRow | None, until: int) -> list[LogRow]:
        """The next events by log key and then seq, a bounded page."""

    async def clear_gathered(self, name: str) -> None:
        """Forget what a projection's walk gathered, which ends with this connection anyway."""

    async def gather(self, name: str, events: Sequence[tuple[str, int]]) -> None:
        """Keep pairs of a view's key and a seq, to be read by view."""

    async def read_gathered(self, name: str, *, after: tuple[str, int]) -> list[tuple[str, LogRow]]:
        """The next gathered events by view and then seq, a bounded page."""

    async def gathered(self, name: str, keys: Sequence[str]) -> set[str]:
        """Which views have gathered events."""

    async def load_views(self, projection: Projection, keys: Sequence[str]) -> Loaded:
        """The rows that stand for some views (at least one key): as many as fit a batch."""

    async def with_history(self, checkpoint: Checkpoint, keys: Sequence[str]) -> set[str]:
        """Which log keys have events up to the checkpoint that are not in its quarantine."""

    async def with_events(self, keys: Sequence[str], *, until: int) -> set[str]:
        """Which log keys have events up to a position."""

    async def quarantined(self, name: str, seqs: Sequence[int]) -> dict[int, str | None]:
        """The reasons that stand for these events; None where id or key are not the event's."""

    async def stray_quarantine(self, name: str, *, ahead: int | None) -> list[int]:
        """Positions in the quarantine without an event, or beyond the checkpoint (or `ahead`)."""

    async def view_keys(self, projection: Projection, *, after: str | None) -> list[str]:
        """The next keys of a projection's rows, a page."""

    async def commit(self, changes: Sequence[Change], *, much: bool = False) -> Committed:
        """All of it in one transaction; raises `LostRace` where a checkpoint is not `before`.

        `much` is written: what need not be done within is done beside what comes next.
        """

    async def give_memory_back(self) -> None:
        """After much work: what a cache holds, and what was freed."""

    async def close(self) -> None:
        """Leave nothing open, also when cancelled."""


def size_of(row: Sequence[Any]) -> int:
    """The bytes of a row's texts and BLOBs, about."""
    size = 0
    for value in row:
        if type(value) is bytes or type(value) is str:
            size += len(value)
    return size


def digest(row: LogRow) -> str:
    """What a checkpoint remembers of an event, to know it again."""
    data = row.data.encode("utf-8", "surrogatepass") if isinstance(row.data, str) else row.data
    columns = ascii((row.seq, row.id, row.key, row.created_at, type(row.data).__name__))
    hasher = hashlib.blake2b(columns.encode(), digest_size=16)
    hasher.update(data if isinstance(data, bytes) else ascii(data).encode())
    return hasher.hexdigest()
