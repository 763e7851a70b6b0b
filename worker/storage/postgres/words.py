"""Questions to the index by words in PostgreSQL."""

from collections.abc import Sequence
from typing import Any, Final

from session_projector.projections.search import Search, key_of
from session_projector.worker.errors import InterventionRequired
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Match, Phrase
from session_projector.worker.storage.postgres import tables
from session_projector.worker.storage.postgres.connection import Connection
from session_projector.worker.storage.postgres.sql import row_of
from session_projector.worker.storage.postgres.tables import CONFIGURATION, SEPARATORS, named
from session_projector.worker.storage.postgres.text import escaped

_AS_SPACES: Final = str.maketrans(dict.fromkeys(SEPARATORS, " "))
_TABLE: Final = Search.table
_NEWEST: Final = 1000
_SOME: Final = 20
"""So many of the newest rows are looked at first. Where some have the words, so many are that a
page should be among them; for words that are rarer the index is quicker."""
_LOWER: Final = 'pg_catalog.lower({} COLLATE "default")'
"""As words are compared."""
_ORDERED: Final = (
    "SELECT pg_catalog.set_config('enable_indexscan', %s, true),"
    " pg_catalog.set_config('enable_seqscan', %s, true)"
)
"""Whether a statement may read rows in order; otherwise it reads those that an index names."""


class PostgresWords:
    """Implements `worker.storage.port.Words`."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._at = named(connection, _TABLE.name)

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
        asked = (phrases, below, start, project, roles, since_ms, unless_quarantined)
        page = self._limits.page_matches
        found = self._matches(*asked, newest=_NEWEST)
        if _SOME <= len(found) < page:
            found = self._matches(*asked, newest=2 * _NEWEST * page // len(found))
        return found if len(found) == page else self._matches(*asked)

    def _matches(
        self,
        phrases: Sequence[Phrase],
        below: int,
        start: int,
        project: str | None,
        roles: Sequence[str],
        since_ms: int | None,
        unless_quarantined: str,
        *,
        newest: int | None = None,
    ) -> list[Match]:
        """What `find` finds, of so many of the `newest` rows, or by the index of words alone."""
        p = self._connection.prefix
        values: dict[str, Any] = {
            "below": key_of(below),
            "start": key_of(start),
            "project": escaped(project),
            "since": since_ms,
            "roles": [*roles],
            "name": unless_quarantined,
            "page": self._limits.page_matches,
            "newest": newest,
        }
        asked, plain = [], list[str]()
        for number, phrase in enumerate(phrases):
            ask, values[f"asked{number}"] = _asked(phrase)
            asked.append(f"{ask}({CONFIGURATION}, %(asked{number})s)")
            plain += [one for one in phrase.text.split() if one.isascii() and one.isalnum()]
        has_all = f"{tables.vector('s.text')} @@ ({' && '.join(asked)})"
        within = "{0} < %(below)s AND {0} >= %(start)s"
        if newest is None:
            # Not in the order of positions: the server knows neither that it takes 85 µs to take a
            # text apart, nor how many rows are new.
            rows = self._at
            conditions = [within.format("(s.event_key || '')")]
        else:
            rows = (
                f"(SELECT * FROM {self._at} AS n WHERE {within.format('n.event_key')}"
                " ORDER BY n.event_key DESC LIMIT %(newest)s)"
            )
            conditions = []
            # Most texts are told apart by this already, in a few microseconds.
            for number, word in enumerate(plain):
                values[f"plain{number}"] = f"%{word}%"
                asked_for = _LOWER.format(f"%(plain{number})s::text")
                conditions.append(f"{_LOWER.format('s.text')} LIKE {asked_for}")
        conditions += [has_all, "s.seq IS NOT NULL"]
        if project is not None:
            conditions.append("i.project = %(project)s")
        if since_ms is not None:
            conditions.append("s.time >= %(since)s")
        if roles:
            conditions.append(
                "EXISTS (SELECT FROM unnest(%(roles)s::text[]) AS r (role)"
                " WHERE strpos(s.roles, r.role) > 0)"
            )
        select = (
            "SELECT s.seq, coalesce(s.session_id, ''), coalesce(s.time, 0),"
            " coalesce(s.roles, ''), s.text, i.project, i.title"
            f" FROM {rows} AS s"
            f" LEFT JOIN {p}session_index AS i ON i.session_id = s.session_id"
            f" WHERE {' AND '.join(conditions)} AND NOT EXISTS (SELECT FROM {p}quarantine AS q"
            " WHERE q.projection = %(name)s AND q.seq = s.seq)"
            " ORDER BY s.event_key DESC LIMIT %(page)s"
        )
        how = "on" if newest else "off"
        *_, found = self._connection.together([(_ORDERED, (how,) * 2), (select, values)])
        return [Match(*row_of(row)) for row in found]

    def reach(self, phrases: Sequence[Phrase], rows: int) -> int:
        del phrases, rows
        return 0  # the server begins with a project's sessions where these are few

    def counts(self, session: str, *, unless_quarantined: str) -> list[tuple[int, int, bool]]:
        rows = self._connection.rows(
            f"SELECT seq, coalesce(messages, 0), replaces FROM {self._at} AS s"
            " WHERE session_id = %s AND seq IS NOT NULL"
            f" AND NOT EXISTS (SELECT FROM {self._connection.prefix}quarantine AS q"
            " WHERE q.projection = %s AND q.seq = s.seq) ORDER BY seq",
            (escaped(session), unless_quarantined),
        )
        return [(seq, messages, bool(replaces)) for seq, messages, replaces in rows]

    def check(self) -> None:
        name = tables.index_of_words(_TABLE)
        if name not in tables.indexes_of(self._connection, _TABLE.name):
            raise InterventionRequired(
                f"{self._connection.name}: the table {_TABLE.name} has no index {name}, and each"
                " search reads all of it",
                "make it again: restart the daemon, or `projector run --once`",
            )


def _asked(phrase: Phrase) -> tuple[str, str]:
    """The function that makes a query, and its argument: words with spaces between, in quotes
    where anything else has a meaning."""
    text = phrase.text.replace("\0", " ").translate(_AS_SPACES)
    text = text.encode(errors="ignore").decode().strip()
    if phrase.is_prefix and text:
        return "to_tsquery", f"'{text}':*"
    return "phraseto_tsquery", text
