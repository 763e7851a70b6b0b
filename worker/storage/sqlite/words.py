"""The index by words of a projection's table in SQLite: what it lacks, and questions to it."""

import sqlite3
import sys
from collections.abc import Sequence
from typing import Any, Final

from session_projector.projections.projection import Table
from session_projector.projections.search import Search
from session_projector.worker.errors import InterventionRequired, quoted
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Match, Phrase
from session_projector.worker.storage.sqlite.connection import Connection
from session_projector.worker.storage.sqlite.sql import identifier
from session_projector.worker.storage.sqlite.tables import index_of_words

_SAMPLE: Final = 100
"""The newest rows that are looked for by a word of theirs."""
_TABLE: Final = Search.table
_WORDS: Final = f"{_TABLE.name}_words"
_KEY: Final = "char(96 + length({0})) || {0}"
"""The key of the row of a position, as `search.key_of` makes it."""


def is_available(connection: sqlite3.Connection) -> bool:
    """Whether this SQLite is built with FTS5."""
    found = "SELECT 1 FROM pragma_module_list WHERE name = 'fts5'"
    return connection.execute(found).fetchone() is not None


WHY_NOT: Final = f"the SQLite {sqlite3.sqlite_version} of {sys.executable} is built without FTS5"
USE_ANOTHER: Final = (
    "install projector with a Python whose SQLite has it, or do without:"
    " `projector run --without search`"
)


def lacking(connection: sqlite3.Connection, table: Table) -> list[str]:
    """The statements that make what is not there, or not as they would make it."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    there = {(name, sql) for name, sql in rows}
    return [sql for name, sql in index_of_words(table).items() if (name, sql) not in there]


def drop(table: str) -> list[str]:
    """What drops a table and its index."""
    return [
        f"DROP TABLE IF EXISTS {identifier(f'{table}_words')}",
        f"DROP VIEW IF EXISTS {identifier(f'{table}_rows')}",
        f"DROP TABLE IF EXISTS {identifier(table)}",
    ]


def check(connection: Connection, table: Table) -> None:
    """Raises `InterventionRequired` where the index does not have the rows of its table, as it
    seems from how many there are and from what the newest say. FTS5's own check of all of it would
    lock every writer out."""
    name, words = table.name, f"{table.name}_words"
    with connection.errors():
        if not is_available(connection.raw):
            raise InterventionRequired(WHY_NOT, USE_ANOTHER)
        if lacking(connection.raw, table):
            raise _wrong(connection, table, "it is not whole", rebuild=False)
    with connection.reading():
        execute = connection.raw.execute
        at = f"CAST(substr({table.key}, 2) AS INTEGER)"  # the same of keys that others made up
        (rows,) = execute(f"SELECT count(DISTINCT {at}) FROM {name}").fetchone()
        (known,) = execute(f"SELECT count(*) FROM {words}_docsize").fetchone()
        if rows != known:
            raise _wrong(connection, table, f"{rows} rows, {known} in the index")
        newest = execute(
            f"SELECT {at}, {table.words} FROM {name} WHERE typeof({table.words}) = 'text'"
            f" ORDER BY {table.key} DESC LIMIT ?",
            (_SAMPLE,),
        )
        asked = f"SELECT 1 FROM {words} WHERE {words} MATCH ? AND rowid = ?"
        for seq, text in newest.fetchall():
            plain = (word for word in text.split() if word.isascii() and word.isalnum())
            word = next(plain, "")
            if word and not execute(asked, (f'"{word}"', seq)).fetchone():
                raise _wrong(connection, table, f"the row of event {seq} is not found")


def _wrong(
    connection: Connection, table: Table, said: str, *, rebuild: bool = True
) -> InterventionRequired:
    words = f"{table.name}_words"
    sql = quoted(f"INSERT INTO {words} ({words}) VALUES ('rebuild')")
    return InterventionRequired(
        f"{connection.path}: the index of {table.name} does not match its table ({said})",
        f"build it again while no writer minds to wait: `sqlite3 {quoted(connection.path)} {sql}`"
        if rebuild
        else "make it again: restart the daemon, or `projector run --once`",
    )


class SqliteWords:
    """Implements `worker.storage.port.Words`."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits

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
        if not phrases:
            return []
        name = _TABLE.name
        values: dict[str, Any] = {
            "asked": " ".join(map(_asked, phrases)),
            "below": below,
            "start": start,
            "project": project,
            "since": since_ms,
            "name": unless_quarantined,
            "page": self._limits.page_matches,
        }
        conditions = [f"{_WORDS} MATCH :asked", "w.rowid < :below", "w.rowid >= :start"]
        if project is not None:
            conditions.append("i.project = :project")
        if since_ms is not None:
            conditions.append("s.time >= :since")
        if roles:
            values |= {f"role{number}": role for number, role in enumerate(roles)}
            some = [f"instr(s.roles, :role{number})" for number in range(len(roles))]
            conditions.append(f"({' OR '.join(some)})")
        self._require()
        kinds = {"session_id": "TEXT", "time": "INTEGER", "roles": "TEXT", "text": "TEXT"}
        # As anybody may write any row.
        columns = ", ".join(f"CAST(coalesce(s.{c}, '') AS {kind})" for c, kind in kinds.items())
        rows = self._connection.rows(
            f"SELECT w.rowid, {columns}, CAST(i.project AS TEXT), CAST(i.title AS TEXT)"
            f" FROM {_WORDS} AS w CROSS JOIN {name} AS s ON s.event_key = {_KEY.format('w.rowid')}"
            " LEFT JOIN session_index AS i ON i.session_id = s.session_id"
            f" WHERE {' AND '.join(conditions)} AND NOT EXISTS"
            " (SELECT 1 FROM quarantine WHERE projection = :name AND seq = s.seq)"
            " ORDER BY w.rowid DESC LIMIT :page",
            values,
        )
        return [Match(*row) for row in rows]

    def reach(self, phrases: Sequence[Phrase], rows: int) -> int:
        self._require()
        found = self._connection.row(
            f"SELECT rowid FROM {_WORDS} WHERE {_WORDS} MATCH ? ORDER BY rowid DESC"
            " LIMIT 1 OFFSET ?",
            (" ".join(map(_asked, phrases)), rows - 1),
        )
        return int(found[0]) if found else 0

    def counts(self, session: str, *, unless_quarantined: str) -> list[tuple[int, int, bool]]:
        rows = self._connection.rows(
            "SELECT CAST(seq AS INTEGER), CAST(coalesce(messages, 0) AS INTEGER), replaces"
            f" FROM {_TABLE.name} AS s WHERE session_id = ? AND seq IS NOT NULL"
            " AND NOT EXISTS (SELECT 1 FROM quarantine WHERE projection = ? AND seq = s.seq)"
            " ORDER BY seq",
            (session, unless_quarantined),
        )
        return [(seq, messages, bool(replaces)) for seq, messages, replaces in rows]

    def check(self) -> None:
        check(self._connection, _TABLE)

    def _require(self) -> None:
        if not is_available(self._connection.raw):
            raise InterventionRequired(
                WHY_NOT, "install projector with a Python whose SQLite has it"
            )


def _asked(phrase: Phrase) -> str:
    """In the language of FTS5, in quotes, where nothing means anything else."""
    text = phrase.text.replace("\0", " ").replace('"', " ").encode(errors="ignore").decode()
    return f'"{text}"' + " *" * phrase.is_prefix
