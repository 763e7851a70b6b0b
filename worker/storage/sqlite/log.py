"""`event_log` in SQLite."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final

from session_projector.projections.event import LogRow, session_of
from session_projector.worker.errors import (
    DatabaseUnavailable,
    InterventionRequired,
    LostRace,
    UsageError,
)
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import (
    ANY_POSITION,
    ID_TAKEN,
    BatchReach,
    Holder,
    T,
    not_restored,
    size_of,
)
from session_projector.worker.storage.sqlite.connection import (
    EVENT_COLUMNS,
    Connection,
    bounded,
    event,
    is_too_big,
    lossless_text,
)
from session_projector.worker.storage.sqlite.errors import see_triggers, wrong_index
from session_projector.worker.storage.sqlite.sql import MOST_AHEAD, bound, raw

KEY_BYTES: Final = 4096
"""What each view counts besides its row, as many small ones are no short transaction either."""
_MOST_IDS: Final = 1000
"""How many ids one statement asks for."""
_SELECT: Final = f"SELECT {EVENT_COLUMNS} FROM event_log WHERE "
_FROM: Final = _SELECT + "seq >= :position AND seq <= :until ORDER BY seq"
_SIZE: Final = (
    "CASE typeof(data) WHEN 'text' THEN length(CAST(data AS BLOB))"
    " ELSE coalesce(length(data), 0) END"
)
_BY_KEY: Final = "INDEXED BY idx_event_log_key"
_KEY_AT: Final = "(SELECT key FROM event_log WHERE seq = :{})"
"""By the position, as of a long key no more is known than its beginning."""
_HAS_INDEX: Final = (
    "SELECT 1 FROM pragma_index_list('event_log') AS l, pragma_index_xinfo(l.name) AS x WHERE"
    " l.name = 'idx_event_log_key' AND NOT partial AND seqno = 0 AND x.name = 'key'"
    " AND coll = 'BINARY'"
)
_UNFOUND: Final = (
    "SELECT count(*), max(seq), max(iif(EXISTS (SELECT 1 FROM event_log AS e"
    f" {_BY_KEY} WHERE e.key IS t.key AND e.seq = t.seq), 0, seq)) FROM"
    " (SELECT seq, key FROM event_log NOT INDEXED WHERE seq > ? ORDER BY seq LIMIT ?) AS t"
)
"""How many events of a page there are, the last one, and the last that the index lacks."""

_KEYS_OF_BATCH: Final = (
    f"SELECT min(seq), key, avg(size) FROM (SELECT seq, key, {_SIZE} AS size FROM event_log"
    " WHERE seq >= ? ORDER BY seq LIMIT ?) WHERE key IS NOT NULL GROUP BY key ORDER BY 1"
)
"""Of each key in a batch, its first event and how large its events are."""


def _asked(keys: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """Some log keys in SQL, and the values in it."""
    named = {f"key{index}": key for index, key in enumerate(keys)}
    asked = ", ".join(bound(f":{name}", key) for name, key in named.items())
    return asked, {name: raw(key) for name, key in named.items()}


def _above(after: LogRow | None) -> str:
    """The events whose key is after that of one, which is at `position`."""
    if after is None or after.key is None:
        return "key IS NOT NULL"
    return f"key > {_KEY_AT.format('position')}"


class SqliteLog:
    """Implements `worker.storage.port.Log`."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits

    def newest(self) -> int:
        self._connection.identity.check()
        return int(self._connection.value("SELECT coalesce(max(seq), 0) FROM event_log"))

    def settled(self) -> int:
        return self.newest()  # writers take turns

    def held_back_by(self) -> list[Holder]:
        return []

    def page(self, *, start: int, until: int = ANY_POSITION, events: int = 0) -> list[LogRow]:
        most = (events or self._limits.page_events) + (start > 0)  # the one at `start`
        return self.rows([_FROM], {"position": start, "until": until}, most, LogRow)

    def event(self, seq: int, *, whole: bool = False) -> LogRow | None:
        if whole:
            row = self._connection.row(f"{_SELECT}seq = ?", (seq,))
        else:
            with self._connection.errors():
                row = event(self._connection.raw, seq)
        return LogRow(*row) if row else None

    def size(self, seq: int) -> int:
        size = self._connection.value(f"SELECT {_SIZE} FROM event_log WHERE seq = ?", (seq,))
        return size or 0

    def of(self, keys: Sequence[Any], *, after: int, until: int) -> list[LogRow]:
        asked, values = _asked(keys)
        of = f"key IN ({asked}) AND seq > :position AND seq <= :until ORDER BY seq"
        select = f"{self._select_by_key()}{of}"
        return self._page([select], {**values, "position": after, "until": until})

    def latest(self, keys: Sequence[Any], *, until: int, events: int) -> list[LogRow]:
        asked, values = _asked(keys)
        most = min(events, self._limits.page_events)
        # The positions first, from the index alone: in this order SQLite sorts what it selects.
        which = self._select_by_key().replace(EVENT_COLUMNS, "seq", 1)
        which += f"key IN ({asked}) AND seq <= :until ORDER BY seq DESC LIMIT {most}"
        select = f"{_SELECT}seq IN ({which}) ORDER BY seq DESC"
        values |= {"position": 0, "until": until}
        return self.rows([select], values, most, LogRow)

    def by_session(
        self, *, after: LogRow | None, until: int, end: LogRow | None = None
    ) -> list[LogRow]:
        select = self._select_by_key()
        within = _above(after) + (f" AND key <= {_KEY_AT.format('end')}" if end else "")
        same = f"key IS {_KEY_AT.format('position')}"
        return self._page(
            [
                f"{select}{same} AND seq > :position AND seq <= :until ORDER BY seq",
                f"{select}{within} AND seq <= :until ORDER BY key, seq",
            ],
            {
                "position": 0 if after is None else after.seq,
                "until": until,
                "end": end.seq if end else 0,
            },
        )

    def range_end(self, *, after: LogRow | None, until: int) -> LogRow | None:
        if not self._connection.row(_HAS_INDEX):
            return None
        select = f"SELECT {{}} FROM event_log {_BY_KEY} WHERE {{}} AND seq <= :until"
        values = {"position": after.seq if after else 0, "until": until}
        if after is None:
            last = self._connection.value(select.format("max(seq)", "key IS NULL"), values)
            if last is not None:
                return self.event(last)
        row = self._connection.row(
            f"{select.format('seq', _above(after))} ORDER BY key, seq"
            f" LIMIT 1 OFFSET {self._limits.range_events - 1}",
            values,
        )
        if row is None:
            return None
        of_key = select.format("max(seq)", f"key IS {_KEY_AT.format('position')}")
        return self.event(self._connection.value(of_key, {**values, "position": row[0]}))

    def _select_by_key(self) -> str:
        """By no other index, as one of another program's may lack rows."""
        index = _BY_KEY if self._connection.row(_HAS_INDEX) else "NOT INDEXED"
        return f"SELECT {EVENT_COLUMNS} FROM event_log {index} WHERE "

    def check_keys(self, projection: str, *, after: int) -> int | None:
        if not self._connection.row(_HAS_INDEX):
            return None
        most = self._limits.page_events
        ((count, last, lacking),) = self._connection.rows(_UNFOUND, (after, most))
        if lacking:
            said = f"row {lacking} missing from index idx_event_log_key"
            raise wrong_index(self._connection.path, said, projection)
        return last if count == most else None

    def present(
        self, keys: Sequence[str], *, until: int = ANY_POSITION, unless_quarantined: str = ""
    ) -> set[str]:
        if not keys:
            return set()
        named = {f"key{number}": raw(key) for number, key in enumerate(keys)}
        asked = ", ".join(
            f"({bound(f':{name}', key)})" for name, key in zip(named, keys, strict=True)
        )
        unless = ""
        if unless_quarantined:
            unless = (
                " AND NOT EXISTS"
                " (SELECT 1 FROM quarantine WHERE projection = :name AND seq = e.seq)"
            )
        index = _BY_KEY if self._connection.row(_HAS_INDEX) else ""
        rows = self._connection.rows(
            f"WITH asked (key) AS (VALUES {asked}) SELECT key FROM asked WHERE EXISTS (SELECT 1"
            f" FROM event_log AS e {index} WHERE e.key = asked.key AND e.seq <= :until{unless})",
            {**named, "until": until, "name": unless_quarantined},
        )
        return {key for (key,) in rows}

    def count(self, *, after: int = 0) -> int:
        count = "SELECT count(*) FROM event_log"  # for which SQLite reads its smallest index
        if after:
            return int(self._connection.value(f"{count} WHERE seq > ?", (after,)))
        return int(self._connection.value(count))

    def batch_reach(self, *, start: int, events: int) -> BatchReach | None:
        connection = self._connection.raw
        with self._connection.errors():
            try:
                with bounded(connection):
                    keys = connection.execute(_KEYS_OF_BATCH, (start, events)).fetchall()
            except sqlite3.DataError as error:
                if not is_too_big(error):
                    raise
                return None  # an event that is too large to be folded, so the batch ends before it
        size = 0.0
        for seq, key, average in keys:
            count = f"SELECT count(*) FROM event_log WHERE key IS {bound('?', key)}"
            size += KEY_BYTES + self._connection.value(count, (raw(key),)) * average
            if size > self._limits.view_bytes:
                before = "SELECT count(*) FROM event_log WHERE seq >= ? AND seq < ?"
                pages = self._connection.value("PRAGMA page_count")
                page_bytes = self._connection.value("PRAGMA page_size")
                number = self._connection.value(before, (start, seq))
                return BatchReach(max(number, 1), pages * page_bytes)
        return None

    def position_of(self, event_id: str) -> int | None:
        found = self._connection.value("SELECT seq FROM event_log WHERE id = ?", (event_id,))
        return None if found is None else int(found)

    def append(self, row: LogRow) -> int:
        known = "SELECT seq FROM event_log WHERE id = ?"
        path = self._connection.path
        with self._connection.errors():
            try:
                cursor = self._connection.raw.execute(
                    "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)",
                    (row.id, row.key, row.data, row.created_at),
                )
                self._connection.identity.check()
            except sqlite3.IntegrityError:
                if (seq := self._connection.value(known, (row.id,))) is None:
                    raise
                raise UsageError(
                    f"the id {row.id} is that of another event: position {seq} in {path} has"
                    " another session, type or data",
                    "nothing was written; a new event needs a new id",
                ) from None
        # The log ignores an event that it has already.
        seq = cursor.lastrowid if cursor.rowcount else self._connection.value(known, (row.id,))
        if seq is None:
            raise InterventionRequired(
                f"{path} does not have the event that was written to it: a trigger keeps it out",
                see_triggers(path, "event_log"),
            )
        return int(seq)

    def known(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for some in (ids[at : at + _MOST_IDS] for at in range(0, len(ids), _MOST_IDS)):
            places = ", ".join("?" * len(some))
            asked = f"SELECT id FROM event_log WHERE id IN ({places})"
            found.update(one for (one,) in self._connection.rows(asked, tuple(some)))
        return found

    unfit = None

    def restore(self, rows: Sequence[LogRow], *, after: int) -> None:
        with self._connection.writing():
            if self.newest() != after:
                raise LostRace
            for row in rows:
                if row.seq > after + MOST_AHEAD:  # as many numbers were drawn in vain
                    self._skip_to(row.seq)
                after = row.seq
                values = (row.id, row.key, row.data, row.created_at)
                places = ", ".join(bound("?", value) for value in values)
                try:
                    cursor = self._connection.raw.execute(
                        "INSERT INTO event_log (seq, id, key, data, created_at)"
                        f" VALUES (?, {places})",
                        (row.seq, *map(raw, values)),
                    )
                except sqlite3.IntegrityError as error:
                    raise not_restored(self._connection.path, row, str(error)) from None
                if not cursor.rowcount:
                    raise not_restored(self._connection.path, row, ID_TAKEN)

    def _skip_to(self, seq: int) -> None:
        """Let the next event have a position that the trigger takes for one that is too high."""
        execute, last = self._connection.raw.execute, (seq - 1,)
        if not execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'event_log'", last
        ).rowcount:
            execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event_log', ?)", last)

    def highest_number(self, prefix: str) -> int:
        highest = 0
        for start in (prefix, f"session:{prefix}"):
            # One step through the index for each key, however many events it has.
            rows = self._connection.rows(
                "WITH RECURSIVE keys (key) AS ("
                "SELECT (SELECT min(key) FROM event_log WHERE key >= :from AND key < :to)"
                " UNION ALL"
                " SELECT (SELECT min(key) FROM event_log WHERE key > keys.key AND key < :to)"
                " FROM keys WHERE key IS NOT NULL) SELECT key FROM keys WHERE key IS NOT NULL",
                {"from": start, "to": start[:-1] + chr(ord(start[-1]) + 1)},
            )
            for (key,) in rows:
                number = session_of(key).removeprefix(prefix)
                if number.isascii() and number.isdigit():
                    highest = max(highest, int(number[:18]))
        return highest

    def _page(self, selects: Sequence[str], values: dict[str, Any]) -> list[LogRow]:
        return self.rows(selects, values, self._limits.page_events, LogRow)

    def rows(
        self, selects: Sequence[str], values: dict[str, Any], most: int, made: Callable[..., T]
    ) -> list[T]:
        """What is `made` of the columns of rows of the first statement, then of the next: `most`
        of them, and about `page_bytes` without the event at `position`. The last columns are those
        of an event."""
        connection = self._connection.raw
        with self._connection.errors():
            # Only SQLite's own way to text is quick, and only ours can read what is not UTF-8.
            connection.text_factory = str
            try:
                with bounded(connection):
                    return self._rows(selects, values, most, made)
            except sqlite3.OperationalError as error:
                if hasattr(error, "sqlite_errorcode"):
                    raise  # what SQLite says, and not what Python says of a text
            except sqlite3.DataError as error:
                if not is_too_big(error):
                    raise
            except MemoryError:
                raise DatabaseUnavailable(
                    f"{self._connection.path}: too little memory to read the events from position"
                    f" {values['position']} on",
                    "give the process more memory",
                    lacks="limit",
                ) from None
            finally:
                connection.text_factory = lossless_text
            return self._rows(selects, values, most, made, each=True)

    def _rows(
        self,
        selects: Sequence[str],
        values: dict[str, Any],
        most: int,
        made: Callable[..., T],
        *,
        each: bool = False,
    ) -> list[T]:
        """`each`: every event is read by itself, as the value of one is larger than any may be."""
        connection = self._connection.raw
        rows: list[T] = []
        position, left = values["position"], self._limits.page_bytes
        for select in selects:
            limited = f"{select} LIMIT {most - len(rows)}"
            if each:
                limited = limited.replace(EVENT_COLUMNS, "seq", 1)
            with closing(connection.execute(limited, values)) as cursor:
                for row in cursor:
                    if each:
                        row = (*row[:-1], *(event(connection, row[-1]) or ()))
                    rows.append(made(*row))
                    if row[-5] == position:
                        continue
                    try:
                        left -= len(row[-4]) + len(row[-3]) + len(row[-2])
                    except TypeError:  # of a value that is neither text nor binary
                        left -= size_of(row)
                    if left < 0:
                        return rows
            if len(rows) == most:
                break
        return rows
