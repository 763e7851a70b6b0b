"""Which positions are settled: no event ever appears at one of them any more.

A position is drawn within its INSERT, which holds a lock on `event_log` until its transaction ends.
So a position that is lacking can be filled by nobody once all transactions are gone that held that
lock after a later position was seen. There is no time-out: an event is never passed.
"""

from collections.abc import Callable, Sequence
from typing import Final

from psycopg.pq import TransactionStatus

from session_projector.projections.event import LogRow
from session_projector.worker.storage.postgres.checkpoints import READ_POSITION
from session_projector.worker.storage.postgres.connection import Connection

_LOOKS: Final = 8
"""How often a page is read at most, because others write meanwhile."""
_MODES: Final = (
    "'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'"
)


class Settled:
    """What one connection knows of the positions that are settled."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._number = connection.number
        self._upto = 0
        """Every position up to here is settled."""
        self._mark = 0
        """Every position up to here will be, once none is left of those who may fill a gap."""
        self._waits_for: set[str] = set()
        p = connection.prefix
        self._floor = f"SELECT coalesce(max({READ_POSITION.format(p)}), 0) FROM {p}checkpoint"
        self._writers = (
            "SELECT virtualtransaction, pid IS NULL FROM pg_catalog.pg_locks"
            " WHERE locktype = 'relation' AND granted AND pid IS DISTINCT FROM pg_backend_pid()"
            " AND database = (SELECT oid FROM pg_catalog.pg_database"
            " WHERE datname = current_database())"
            " AND relation = %s::regclass"
            f" AND mode IN ({_MODES})"
        )

    @property
    def gap(self) -> bool:
        """Whether events that are there are held back because one before them may still come."""
        return bool(self._waits_for)

    @property
    def upto(self) -> int:
        """Every position up to here is settled: what a projection has folded was, and is seen by
        whoever sees its checkpoint."""
        self._renew()
        self._upto = max(self._upto, int(self._connection.value(self._floor)))
        return self._upto

    def page(self, start: int, read: Callable[[], Sequence[LogRow]]) -> list[LogRow]:
        """The rows from `start` on that `read` gives, without those behind a gap that may be
        filled."""
        self._renew()
        for _ in range(_LOOKS):
            rows = read()
            at = self._first_gap(start, rows)
            if at is None:
                if rows and rows[-1].seq >= self._mark:
                    self._waits_for = set()
                return [*rows]
            if not self._settle(rows[at].seq, rows[-1].seq):
                return [*rows[:at]]
        return [*rows[:at]]

    def newest(self, newest: int) -> bool:
        """Whether `newest`, and all before it, is settled."""
        self._renew()
        return newest <= self._upto or self._settle(newest, newest)

    def _renew(self) -> None:
        """Know nothing any more on a new connection, which may be to another server."""
        if self._number != self._connection.number:
            self._number = self._connection.number
            self.forget()

    def forget(self) -> None:
        """Know nothing any more, as of a log that is another one, with fewer events."""
        self._upto = self._mark = 0
        self._waits_for = set()

    def _first_gap(self, start: int, rows: Sequence[LogRow]) -> int | None:
        expected = max(start, 1)
        for at, row in enumerate(rows):
            if row.seq > expected and row.seq - 1 > self._upto:
                return at
            expected = row.seq + 1
        return None

    def _settle(self, behind: int, last: int) -> bool:
        """Whether all positions below `behind` are settled; `last` was seen too."""
        if behind - 1 <= self.upto:
            return True
        if self._connection.raw.info.transaction_status is not TransactionStatus.IDLE:
            return False  # what is settled by now need not be seen here
        writers: dict[str, bool] = dict(
            self._connection.rows(self._writers, (self._connection.log_name,))
        )
        if not self._waits_for or self._mark < behind - 1:
            self._mark, left = last, {*writers}
        else:
            left = self._waits_for & writers.keys()
            if left != self._waits_for:  # one of them may have been prepared, under another name
                left |= {one for one, prepared in writers.items() if prepared}
        self._waits_for = left
        if left:
            return False
        self._upto = max(self._upto, self._mark)
        return True
