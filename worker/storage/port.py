"""The storage port: what everything else needs of a database, in the domain's words.

An engine implements `Database`, and with it the parts of `Store`. All of it is synchronous. A
command calls a store directly; the daemon runs several calls in one hop to the thread that owns the
connection (`await thread.run(lambda store: …)`, see `worker.storage.thread`).

Every method may raise `DatabaseUnavailable` (locked, no room: a retry may help),
`InterventionRequired` (a table is gone, the file is corrupt, a right is lacking) and, where it
touches the rows of a projection, `ProjectionFailed`; only other errors are named below. Positions
are values of `event_log.seq`, the first of which is 1 or more. Times are Unix milliseconds. A row
is a tuple in the order of `Table.columns`. A text that is not UTF-8 has a lone surrogate for each
odd byte. `commit`, `prepare`, `load`, `drop`, `report` and `Scratch.add` are transactions by
themselves: none of them is called within `transaction` or `snapshot`, nor one of these within the
other.

`tests/conformance/` holds the laws, one by one.
"""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from session_projector.projections.event import LogRow, beginning
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Projection, Table
from session_projector.worker.errors import InterventionRequired, Lack, argument

ANY_POSITION: Final = 2**63 - 1
"""No event is above it."""
REPLAY: Final = 1 << 20
"""What a replay raises a generation by, so that it is told from late writes."""
T = TypeVar("T")
FOLD_AGAIN: Final = (
    "if events were lost, restore a backup of the log first, as what follows makes the views what"
    " this log says: `projector replay`"
)
"""What fixes a checkpoint that is not of the log."""
ID_TAKEN: Final = "another event there has its id"
_UNFIT_HINT: Final = (
    'take it out of a copy of the log, and copy that: docs/postgresql.md, "Events that do not fit"'
)


# Values


class Deferred(msgspec.Struct, frozen=True):
    """A view that is behind the others of its projection: it holds its events up to `position`, of
    those after it none.

    `bytes` are those of its row, and writing it took `cost_ms` the last time. `since` is a time.
    With a `cost_ms` of 0 it is not behind because it costs much, but its batch is being written by
    several transactions: a moment later it is there.
    """

    position: int
    bytes: int
    cost_ms: int
    since: int

    @property
    def is_costly(self) -> bool:
        return self.cost_ms > 0


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a projection has come: `position` is that of the last event that was folded, skipped
    or quarantined, 0 before the first, and `digest` is that event's, '' at 0.

    `deferred` are its views that are behind, by key; a commit that changes which they are moves the
    position or raises the generation. Other programs see `complete` as the position.

    `version` made the views. Below 0, that version is rebuilding them, and some are still of
    another version. `generation` is raised by every replay that replaces rows, by `REPLAY`, and by
    every late write of a view that was deferred, by 1; `skipped` counts the events up to `position`
    that are of no concern.
    """

    name: str
    version: int
    position: int
    generation: int
    digest: str
    skipped: int
    deferred: dict[str, Deferred] = {}

    @property
    def complete(self) -> int:
        """All views hold their events up to this position."""
        return min((view.position for view in self.deferred.values()), default=self.position)

    @property
    def replays(self) -> int:
        """Another number after each replay that replaced rows. It stays as it is where events are
        folded, however late, but for one time in a million."""
        return self.generation // REPLAY

    def replayed(self) -> "Checkpoint":
        """The same after a replay that replaces rows."""
        return msgspec.structs.replace(self, generation=self.generation + REPLAY)

    @property
    def costly(self) -> dict[str, Deferred]:
        """Those of the views that are deferred because they cost much to write."""
        return {key: view for key, view in self.deferred.items() if view.is_costly}

    @property
    def written(self) -> int:
        """All views but those hold their events up to this position."""
        behind = (view.position for view in self.deferred.values() if not view.is_costly)
        return min(behind, default=self.position)


class StoredProjection(msgspec.Struct, frozen=True):
    """A checkpoint, and the table that its views are stored in: its name, key and prefix alone."""

    checkpoint: Checkpoint
    table: Table


class Change(msgspec.Struct, frozen=True):
    """What one projection commits: from one checkpoint to the next, whole rows only.

    `removed` are keys of its rows. `quarantined` are recorded with the id and key that their
    events have in the log, a known one with its new reason. `cleared` are positions whose rows of
    the quarantine are deleted.
    """

    table: Table
    before: Checkpoint
    after: Checkpoint
    rows: Sequence[tuple[Any, ...]] = ()
    removed: Sequence[str] = ()
    quarantined: Sequence[Rejected] = ()
    cleared: Sequence[int] = ()


class LoadedViews(msgspec.Struct, frozen=True):
    """Rows by key, as of a checkpoint; only the first `covered` of the keys were looked up, and of
    these it has those that have a row."""

    rows: dict[str, tuple[Any, ...]]
    covered: int
    checkpoint: Checkpoint


class CommitStats(msgspec.Struct, frozen=True):
    """How long a commit waited for the write lock and how long it held it, in seconds, and whether
    another connection has committed since the commit before; they say nothing of a store that is
    not `exclusive`."""

    waited_s: float
    held_s: float
    others_wrote: bool


class ProjectionStatus(msgspec.Struct, frozen=True):
    """What a projection is doing that is not tailing: `version` is rebuilding its views, and has
    read `events` of about `total`, or it failed, and `why`. `since` and `updated_at` are times."""

    state: Literal["rebuilding", "failed"]
    version: int
    why: str
    events: int
    total: int
    since: int
    updated_at: int


class BatchReach(msgspec.Struct, frozen=True):
    """How many events a batch has before their views, at their final size, exceed what it may load.

    In log order each of these views is then written again and again.
    """

    events: int
    database_bytes: int
    """The most that a full scan reads."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds others up, back from events that are written or by a lock: `who` in words, and the
    command that ends it."""

    who: str
    cure: str


class QuarantineEntry(msgspec.Struct, frozen=True):
    """A row of the quarantine; `dismissed` is the operator's note, None where there is none."""

    projection: str
    seq: Any
    id: Any
    key: Any
    reason: str
    dismissed: str | None


class QuarantineReason(msgspec.Struct, frozen=True):
    """A reason that events are in the quarantine of a projection, how many, how many of these are
    dismissed, and the first and the last position."""

    projection: str
    reason: str
    count: int
    dismissed: int
    first: Any
    last: Any


class QuarantineCount(msgspec.Struct, frozen=True):
    """Events in the quarantine of a projection, and how many of these are dismissed."""

    quarantined: int
    dismissed: int


class Setup(msgspec.Struct, frozen=True):
    """What `setup` did; `backup` is the copy made before a Kanbatte database was adopted.

    `restored` are tables, triggers and indexes that somebody dropped or changed; `folder` is the
    one that was made for the file.
    """

    applied: list[str]
    backup: str | None
    doubled_keys: list[str]
    restored: list[str] = []
    folder: str = ""


class Check(msgspec.Struct, frozen=True):
    """What one check of `projector doctor` found, and the command or setting that fixes it.

    In JSON the fix is called `mend`, as it always was: scripts of operators read it.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    fix: str = msgspec.field(default="", name="mend")


Checks = dict[str, Callable[[], Iterator[Check]]]


class Sizes(msgspec.Struct, frozen=True):
    """Bytes of the database and of its write-ahead log, when the latter is too large (0: a server
    looks after it), and the processes that keep it so by a read that they do not end."""

    file_bytes: int
    wal_bytes: int
    wal_warning_bytes: int
    wal_readers: list[int]


_LACKED: Final[dict[Lack, str]] = {
    "lock": "a lock",
    "space": "disk space",
    "limit": "memory, a thread or a file descriptor",
    "database": "the database",
}
_MARKS: Final[dict[str, Lack]] = {lack.upper(): lack for lack in _LACKED}
_MARK: Final = re.compile(f"WAITING_FOR_({'|'.join(_MARKS)})=([0-9]{{1,10}})")


class Trouble(msgspec.Struct, frozen=True):
    """What a daemon waits for, so that it can go on, and since when: a time."""

    lacks: Lack
    since: int

    def __str__(self) -> str:
        return f"waits for {_LACKED[self.lacks]}, for {time.time() - self.since / 1000:,.0f} s"

    @property
    def mark(self) -> str:
        """The same as a word, by which whoever looks at the leader finds it, see `marked`."""
        return f"WAITING_FOR_{self.lacks.upper()}={self.since // 1000}"


def other_table(name: str, *, folded: bool) -> str:
    """The cures for a table that does not fit its projection, least harm first; `folded`: what is
    in it was folded there."""
    cures = (
        "raise the version where columns are added; where they change otherwise, also give the"
        " table another name"
    )
    if folded:
        cures += (
            "; while you develop it, you may drop its rows instead, and the next run folds all of"
            f" them again from the log: `projector projection drop {argument(name)}`"
        )
    return cures


def marked(text: str) -> Trouble | None:
    """The trouble whose `mark` is in a text, None where there is none."""
    found = _MARK.search(text)
    return Trouble(_MARKS[found[1]], int(found[2]) * 1000) if found else None


UNSEEN: Final = "a process that cannot be seen from here"


class Leader(msgspec.Struct, frozen=True):
    """The daemon that leads, as it is seen from here.

    `pid` is 0 where its process cannot be seen: it is in another container, or it was killed and
    something else holds its lock. Nobody must be told to kill the process of that number, nor one
    that is not `seen` to hold the lock, as that of another user is not: it may be a stranger.
    `running` are its projections and their versions, empty where it does not say. `host` is where
    that process is, '' for this machine: a number on another one is no process here. `trouble` is
    what keeps it from its work, as far as it could say so.
    """

    pid: int
    running: dict[str, int]
    suspended: bool
    seen: bool
    host: str = ""
    trouble: Trouble | None = None
    others: tuple["Leader", ...] = ()
    """Where several share the projections, which `running` all has then, the rest of these."""

    def __str__(self) -> str:
        said = f"process {self.pid}" if self.pid else UNSEEN
        if self.host:
            said += f" on {self.host}"
        return ", ".join([said, *map(str, self.others)])

    @property
    def local_pid(self) -> int:
        """Its process on this machine, 0 where there is none."""
        return 0 if self.host else self.pid

    def runs(self, name: str) -> bool:
        """Whether it runs a projection; one that does not say may run any."""
        return name in self.running or not self.running


def together(leaders: Sequence[Leader]) -> Leader | None:
    """All that lead as one, first who is suspended or in trouble, then who is of this machine; None
    for none."""
    if len(leaders) <= 1:
        return leaders[0] if leaders else None
    first, *others = sorted(
        leaders, key=lambda one: (not one.suspended, one.trouble is None, one.host != "")
    )
    names = (
        {}
        if not all(one.running for one in leaders)
        else {name: version for one in leaders for name, version in one.running.items()}
    )
    return msgspec.structs.replace(first, running=names, others=tuple(others))


class Among(msgspec.Struct, frozen=True):
    """Some rows of a projection: those that have one of the values given in each column of `having`
    and none of those given in `lacking`, more than the number of `above` and no more than that of
    `at_most`, and each of `words` in one of the columns `texts`, where letters of ASCII count in
    either case."""

    having: Mapping[str, Sequence[Any]] = {}
    lacking: Mapping[str, Sequence[Any]] = {}
    above: Mapping[str, int] = {}
    at_most: Mapping[str, int] = {}
    words: Sequence[str] = ()
    texts: Sequence[str] = ()


# The parts of a store


class Log(Protocol):
    """`event_log`: what anybody wrote, by position. Where a value is beyond `MAX_EVENT_BYTES`, one
    byte more than an event may have is read of each that is too long, `data`, `id` or `key`, which
    shows that it is."""

    def newest(self) -> int:
        """The newest position, 0 for an empty log; raises `TransientError` where the database was
        replaced."""

    def settled(self) -> int:
        """The newest position at or below which none ever appears any more, 0 where there is none;
        it may wait a second for writers. Not within `snapshot`."""

    def held_back_by(self) -> list[Holder]:
        """Who keeps events from being read: writers that have not ended their transactions for a
        second or longer, and whose events may have positions before theirs. Not within `snapshot`.
        """

    def page(self, *, start: int, until: int = ANY_POSITION, events: int = 0) -> list[LogRow]:
        """The event at `start`, if there is one, and `events` of those after it, up to and with
        the one at `until`; 0 events are `page_events`.

        Only settled events: none ever appears at or below the position of one that was returned.
        """

    def event(self, seq: int, *, whole: bool = False) -> LogRow | None:
        """The event at a position; `whole`: all of its `data`."""

    def size(self, seq: int) -> int:
        """The bytes of the `data` of an event, 0 where there is none."""

    def of(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        """The next events under some log keys, above `after` and up to `until`: a page, by
        position."""

    def latest(self, keys: Sequence[Any], *, until: int, events: int) -> list[LogRow]:
        """The last events under some log keys, so many of those up to `until`, newest first: a page
        of them."""

    def by_session(
        self, *, after: LogRow | None, until: int, end: LogRow | None = None
    ) -> list[LogRow]:
        """The next events up to `until` by log key and then by position, beginning with those that
        have no key: a page. `after` is the last row of the page before, `end` that of the last
        page."""

    def range_end(self, *, after: LogRow | None, until: int) -> LogRow | None:
        """The last event of a range of log keys, in the order of `by_session`: some `range_events`
        with the keys that follow that of `after`, and all of each key. None where no more are
        left than that, or the order cannot be had quickly. `after` is the end of the range before.
        """

    def check_keys(self, projection: str, *, after: int) -> int | None:
        """Check that the events after a position, a page of them, are found under their keys;
        returns the last one's position, None where the log ends with this page.

        Raises `ProjectionFailed` where reading by key would leave out one that is there.
        """

    def present(
        self, keys: Sequence[str], *, until: int = ANY_POSITION, unless_quarantined: str = ""
    ) -> set[str]:
        """The log keys that have events up to `until`, not counting those in the quarantine of a
        projection."""

    def count(self, *, after: int = 0) -> int:
        """How many events there are above a position."""

    def batch_reach(self, *, start: int, events: int) -> BatchReach | None:
        """How far a batch of `events` from `start` comes; None where it may load all its views."""

    def position_of(self, event_id: str) -> int | None:
        """The position of the event with an id."""

    def append(self, row: LogRow) -> int:
        """Write an event as any process does, whatever `row.seq` is; returns its position.

        An event with the same id, key and data is there already: its position is returned. Raises
        `UsageError` where an event with another key or other data has the id.
        """

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of some ids that events have already, however many are asked for."""

    def restore(self, rows: Sequence[LogRow], *, after: int) -> None:
        """Write events as another log has them, their positions too, behind the newest one, which
        must be at `after`: all of them or none. For the owner of the log, and no writer.

        Raises `LostRace` where the newest event is at another position, and `InterventionRequired`
        where the id of one is taken, or this log cannot hold one.
        """

    @property
    def unfit(self) -> Callable[[LogRow], str] | None:
        """What tells why this log cannot hold an event that another engine's can, '' where it can;
        None where it can hold any."""

    def highest_number(self, prefix: str) -> int:
        """The highest whole number that is all that follows `prefix` in a session id, 0 where there
        is none."""


class Views(Protocol):
    """The rows that projections keep: one for each view, found by the key of their `table`."""

    def prepare(self, projection: Projection) -> Checkpoint:
        """Create a projection's table and checkpoint, or bring them to its version's shape; returns
        the checkpoint.

        A version above the checkpoint's may add columns and indexes, and its table may have another
        name. Where the table is not there, or another one, the checkpoint goes back to 0, and
        quarantine and status are deleted. The table and checkpoint of a newer version stay as they
        are. Raises `ProjectionFailed` where the table does not fit or is another owner's, and
        `LostRace` where another process dropped the projection meanwhile.
        """

    def load(self, projection: Projection, keys: Sequence[str]) -> LoadedViews:
        """The rows of some views, of one moment with the checkpoint: those of at least one key, and
        of as many as `view_bytes` allow. A column that the table does not have yet is None.

        Raises `LostRace` where there is no checkpoint.
        """

    def row(self, projection: Projection, key: str) -> tuple[Any, ...] | None:
        """One row, whether or not there is a checkpoint; None where there is no such row."""

    def select(
        self,
        projection: Projection,
        *,
        where: Mapping[str, Sequence[Any]],
        above: tuple[str, int] | None = None,
        order: Sequence[str],
    ) -> Iterator[tuple[Any, ...]]:
        """Rows that have one of the values given in each of these columns and a higher number in
        the one of `above`, by the columns of `order`. Read them to the end, or close the iterator.
        """

    def latest(
        self,
        projection: Projection,
        among: Among,
        *,
        order: Sequence[str],
        below: Sequence[Any] | None = None,
        limit: int,
    ) -> list[tuple[Any, ...]]:
        """The first rows by the columns of `order`, none of which is null, from the highest values
        down; `below`: of those that are below these values."""

    def tally(self, projection: Projection, among: Among, column: str) -> dict[Any, int]:
        """How many rows have each value of a column."""

    def highest(self, projection: Projection, column: str) -> int:
        """The highest number in a column, 0 where there is no row."""

    def keys(self, projection: Projection, *, after: str | None) -> list[str]:
        """The next keys of a projection's rows, in the order of their bytes: a page."""

    def count(self, table: Table) -> int:
        """How many rows a projection keeps, 0 where its table is gone. Of the table its name, key
        and prefix are enough."""

    def exists(self, table: Table) -> bool:
        """Whether a projection's table is there. Of the table its name is enough."""

    def owns(self, name: str) -> bool:
        """Whether what a checkpoint says of its table can be true: anybody may write one that names
        the log, or another program's table."""

    def drop(self, name: str) -> None:
        """Delete a projection's rows where it `owns` them (its table, unless others keep rows
        there too), quarantine, status and checkpoint, in one transaction; nothing where there is
        none."""


class Checkpoints(Protocol):
    """How far each projection has come, and what it says of itself meanwhile."""

    def get(self, name: str) -> Checkpoint | None:
        """The checkpoint of a projection, None where there is none."""

    def all(self) -> dict[str, StoredProjection]:
        """Every checkpoint, by name and in that order."""

    def report(self, name: str, status: ProjectionStatus | None) -> None:
        """Store what a projection is doing, for all to read; None where it follows the log.

        A commit that moves its checkpoint does the same.
        """

    def reports(self) -> dict[str, ProjectionStatus]:
        """What the projections that do not tail are doing, by name and in that order."""


class Quarantine(Protocol):
    """Events that could not be folded, by projection. A commit adds to it and takes from it."""

    def reasons(self, name: str, seqs: Sequence[int]) -> dict[int, str | None]:
        """The reasons stored for those of these events that are there; None where the id or key
        that is stored is not the event's."""

    def strays(self, name: str, *, ahead: int | None) -> list[int]:
        """The first positions where there is no event, or that are beyond `ahead` (None: beyond the
        checkpoint): a page."""

    def entries(self, seq: int | None = None) -> list[QuarantineEntry]:
        """All rows, or those of one event, by position and then by projection."""

    def page(
        self,
        *,
        after: int,
        limit: int,
        projection: str | None = None,
        reason: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[QuarantineEntry]:
        """The rows of the next events above a position, at most so many events, of one projection
        or reason, or with one of some keys, if it is given; as `entries` orders them."""

    def summary(self, limit: int) -> list[QuarantineReason]:
        """The reasons that events are there for, by projection; those of most events, first."""

    def projections(self) -> list[str]:
        """The projections that have any event there, by name."""

    def count(self, name: str) -> QuarantineCount:
        """How many events a projection has there."""

    def dismiss(self, seq: int, note: str, *, at: int | None = None) -> None:
        """Note that somebody has looked at the event at a position, now or at a time; a later note
        replaces it."""

    def notes(self) -> list[tuple[int, str, int]]:
        """All such notes, by position: the event's position, the text and the time."""


class Phrase(msgspec.Struct, frozen=True):
    """Words that follow each other in a text, whatever stands between; `is_prefix`: the last of
    them may go on."""

    text: str
    is_prefix: bool = False


class Match(msgspec.Struct, frozen=True):
    """A row of the projection `search` that has some words, with what `session_index` says of its
    session, None where that says nothing."""

    seq: int
    session: str
    time: int
    roles: str
    text: str
    project: str | None
    title: str | None


class Words(Protocol):
    """The rows of the projection `search` by the words in their texts, in any case. Words are
    letters and digits; what else stands in a text is between them, and nothing of what is asked
    means anything else. Asked while the projection has a checkpoint."""

    def find(
        self,
        phrases: Sequence[Phrase],
        *,
        below: int,
        start: int = 0,
        project: str | None = None,
        roles: Sequence[str] = (),
        since_ms: int | None = None,
        unless_quarantined: str,
    ) -> list[Match]:
        """The rows that have all of some phrases, newest first: a page of those below a position,
        and not below `start`.

        Phrases without any word do not count; none at all finds nothing. `roles`: one of these is
        part of what the row says of its messages' roles. Not those of events in the quarantine of
        a projection.
        """
        ...

    def reach(self, phrases: Sequence[Phrase], rows: int) -> int:
        """The position of the last of so many rows that have all of some phrases, newest first; 0
        where there are fewer, or where `find` looks only at those of the project."""
        ...

    def counts(self, session: str, *, unless_quarantined: str) -> list[tuple[int, int, bool]]:
        """The events of a session that have messages: position, how many, and whether these replace
        all that were there; by position."""
        ...

    def check(self) -> None:
        """Raises `InterventionRequired` where rows would not be found, as far as that is quickly
        seen."""


class Scratch(Protocol):
    """Pairs of a view's key and a position, kept for one scan and read by view.

    They are sorted outside of memory, lock nobody out, and end with the connection.
    """

    def clear(self, name: str) -> None:
        """Forget what was added for a projection. Called before anything else."""

    def add(self, name: str, pairs: Sequence[tuple[str, int]]) -> None:
        """Keep some more; a pair that is there already counts once."""

    def page(self, name: str, *, after: tuple[str, int]) -> list[tuple[str, LogRow]]:
        """The next pairs above one, by view and then by position, each with its event: a page."""

    def present(self, name: str, keys: Sequence[str]) -> set[str]:
        """Those of these views that have any."""


class Read(NamedTuple):
    """What `Store.read` found."""

    touched: bool
    rows: list[LogRow]
    newest: int


class Store(Protocol):
    """One connection to a database, used by the thread that opened it."""

    @property
    def name(self) -> str:
        """The database's, as `Database.name`."""

    @property
    def exclusive(self) -> bool:
        """Whether nobody else can write while it commits, so that others may wait for it."""

    @property
    def answers_at_once(self) -> bool:
        """Whether `changed` takes microseconds, and waits for nobody."""

    @property
    def log(self) -> Log: ...
    @property
    def views(self) -> Views: ...
    @property
    def checkpoints(self) -> Checkpoints: ...
    @property
    def quarantine(self) -> Quarantine: ...
    @property
    def scratch(self) -> Scratch: ...
    @property
    def words(self) -> Words: ...

    def commit(self, changes: Sequence[Change], *, bulk: bool = False) -> CommitStats:
        """Make all changes or none, in one transaction.

        `bulk`: what the engine must do after a large commit is done beside the next one. Raises
        `LostRace` where the version, position, generation or digest of a checkpoint is not that of
        `before`, or there is none.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """Make several writes at once; nothing of them stays where the block fails. What it reads
        does not keep it from writing later, whoever else wants to, and one transaction of this
        program waits for another: none changes what the other one has read."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Let several reads see one moment."""

    def changed(self) -> bool:
        """Whether another connection may have committed since this was last asked, or since the
        store was opened; never because of a change that this one committed, or a report.
        Meaningless within `snapshot`.

        Raises `TransientError` where the database was replaced.
        """

    def read(self, *, start: int, until: int = ANY_POSITION, events: int = 0) -> Read:
        """A page of the log, what is newest, and what was `changed` before, in as few questions as
        that takes."""
        ...

    def check_identity(self) -> None:
        """Raises `TransientError` where the database is no longer the one that was opened."""

    def check_schema(self) -> None:
        """Raises `InterventionRequired` where the schema is not this program's, or not whole."""

    def check_indexes(self, of: Sequence[Table]) -> None:
        """Raises `InterventionRequired` where reading the log or one of these tables by an index
        would not find what is there; reads all of them, but of an index by words only so much
        that nobody waits."""

    def release_memory(self) -> None:
        """Give back, after much work, what caches hold and what was freed."""

    def interrupt(self, after_s: float) -> None:
        """From another thread: end a statement that has been running for longer, as one does that
        another program made endless."""

    def close(self) -> None:
        """Leave nothing open."""


class Thread(Protocol):
    """A store in a thread of its own, which does one piece of work after the other."""

    async def run(self, work: Callable[[Store], T]) -> T:
        """Do some work in that thread, in one hop, to its end also where the caller is cancelled;
        what it raises comes out as it is."""
        ...

    async def changed(self, patience_s: float = 0) -> bool:
        """`Store.changed`, without a hop where that `answers_at_once` and the thread is idle. With
        patience it is asked again and again for so long, in the thread."""
        ...


# The database


class Leadership(Protocol):
    """At most one daemon leads a projection, until it releases that or ends, however it ends.

    It is no fence, which is the compare-and-set of `Store.commit`; it saves a second daemon from
    working in vain.
    """

    def acquire(self, *, stand_by: bool = False) -> bool:
        """Lead all projections that this process would run, if nobody else leads any of them;
        returns whether this one leads now. `stand_by`: until the next try others see that this
        process waits."""

    def acquire_some(self, *, stand_by: bool = False) -> set[str]:
        """Lead those that nobody else leads; returns the names of all that this one leads now. An
        engine may know only all or none."""

    def tell(self, trouble: Trouble | None) -> None:
        """Let others see what keeps this process, which leads, from its work; None: nothing does.
        It may not get through."""

    async def lost(self) -> None:
        """Return once another daemon may lead what this one led, as its connection has ended or its
        lock file was replaced. Nothing else is called meanwhile."""

    def release(self) -> None:
        """Let other daemons lead, and stand by no longer."""

    def barred(self) -> str:
        """Why this user can start no daemon here, as far as it is seen at once; '' for nothing."""

    def leaders(self) -> list[Leader]:
        """The daemons that lead, each with what it runs."""

    def leader(self) -> Leader | None:
        """The daemons that lead, `together`; None where there is none."""

    @property
    def who_holds_it(self) -> str:
        """The shell command that shows which processes hold what makes a leader, in backticks."""

    def standing_by(self) -> list[str]:
        """The other processes that wait to lead, each as its number and name."""


class Wakeup(Protocol):
    """Tells when it is worth to read new events."""

    def hears_on(self) -> bool:
        """After a read that found all that there was: whether the next wait ends for whatever has
        come since, or comes, so that no other read is needed to see that there is no more.
        """
        ...

    async def wait(self, changed: Callable[..., Awaitable[bool]], *, found: bool) -> bool:
        """Wait, between one read and the next, until there may be new events, at most for a second;
        returns whether there may be. `found`: the read found some, so that the next one follows at
        once. `changed`: `Thread.changed` of the thread that reads.
        """
        ...

    def close(self) -> None:
        """Listen no more, and end a wait that is under way."""


class Database(Protocol):
    """A database by its URL, not opened yet.

    One that is not there is refused with `InterventionRequired`.
    """

    @property
    def name(self) -> str:
        """What people call it: fit for `-d`, and without a password."""

    def owner_name(self) -> str:
        """The same, for whoever may change all of it; asks the server, where there is one."""

    @property
    def engine(self) -> tuple[str, str]:
        """The engine's name in small letters, and its version."""

    @property
    def file(self) -> Path | None:
        """The file that holds all of it, where there is one."""

    @property
    def is_served(self) -> bool:
        """Whether a server has it, which may come later than this program, and go meanwhile."""

    def exists(self) -> bool:
        """Whether there is anything to open."""

    def setup(
        self, *, group: str | None = None, writer: str | None = None, reader: str | None = None
    ) -> Setup:
        """Create or upgrade the database, and put back what somebody dropped; the group `group` of
        the operating system, or the role `writer` of the server, may write events then, and
        `reader` read. Raises `InterventionRequired`, and changes nothing, where the schema is
        another program's or newer, and `UsageError` for a group or role that there is not, or where
        the engine has none.
        """

    def migrations(self) -> list[tuple[str, bool]]:
        """Every migration and whether it is applied, oldest first."""

    def open(self, *, writable: bool = False) -> AbstractContextManager[Store]:
        """A store for one command.

        Raises `InterventionRequired` where the schema is not this program's.
        """

    def open_thread(self, *, writable: bool = True) -> AbstractAsyncContextManager[Thread]:
        """A store in a thread of its own; raises as `open` does. If it is writable, the database is
        made ready for a daemon."""

    def hurry(self) -> None:
        """The process is to end: no statement in a thread may take long from now on."""

    def newest(self, *, busy_timeout_s: float) -> int:
        """The newest position by a connection of its own, 0 for an empty log.

        Raises `DatabaseUnavailable` only where another process holds the database, or its server
        is away.
        """

    def leadership(self, running: Mapping[str, int] | None = None) -> Leadership:
        """Who leads; `running` are the projections that this process would run, and versions."""

    def wakeup(self) -> Wakeup:
        """What tells of new events."""

    def view_wakeup(self) -> Wakeup:
        """What tells of all that others commit, of views too. It keeps nobody from anything: who
        only looks on may have it."""

    def watch_identity(self) -> Callable[[], None]:
        """What raises `TransientError` once the database is another one than at this moment."""

    def sizes(self) -> Sizes:
        """How large it is, 0 bytes where it is not there; it may look a second for who is why."""

    def wal_bytes(self) -> int:
        """How large its write-ahead log is, at once."""

    def checks(
        self, code_versions: Mapping[str, int]
    ) -> AbstractContextManager[tuple[Checks, Checks]]:
        """The engine's own checks by name, in order, to be made in the block: of what is in the
        database, of which those of `database` and `schema` must find nothing for the next to make
        sense, and around it.

        `code_versions` are those of the projections that are installed here.
        """

    def locked_by(self, *, but: int = 0) -> list[Holder]:
        """Who keeps all others from writing, or a daemon from it, all the time: it looks for two
        seconds where there is somebody. Not the process `but`, which is a daemon here."""

    def who_locks_it(self, *, but: int = 0) -> str:
        """The command that shows who may hold the write lock; '' where it can be had now, or the
        process `but` has it."""


def not_restored(name: object, row: LogRow, why: str) -> InterventionRequired:
    """The error of an event that `Log.restore` cannot write to a database."""
    return InterventionRequired(
        f"{name} cannot take event {row.seq} (id {str(row.id)[:80]!r}): {why}", _UNFIT_HINT
    )


def size_of(row: Sequence[Any]) -> int:
    """The bytes of a row's texts and BLOBs, approximately."""
    size = 0
    for value in row:
        if type(value) is bytes or type(value) is str:
            size += len(value)
    return size


def digest(row: LogRow) -> str:
    """What a checkpoint remembers of an event, to recognise it; of an id or key that is too long it
    is the beginning."""
    data = row.data.encode("utf-8", "surrogatepass") if isinstance(row.data, str) else row.data
    names = (beginning(row.id), beginning(row.key))
    columns = ascii((row.seq, *names, row.created_at, type(row.data).__name__))
    hasher = hashlib.blake2b(columns.encode(), digest_size=16)
    hasher.update(data if isinstance(data, bytes) else ascii(data).encode())
    return hasher.hexdigest()
