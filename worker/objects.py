"""The triggers and indexes that keep the log and the views sound: as they should be, put back."""

import sqlite3
from contextlib import closing
from functools import cache
from typing import Final

import migrations
from worker.errors import NeedsPerson

TRIGGERS: Final = (
    "event_log_no_update",
    "event_log_no_delete",
    "event_log_known_id",
    "event_log_next_seq",
)
SESSION_KEY: Final = "idx_view_session_key"
_NAMED: Final = f"lower(name) IN {(*TRIGGERS, SESSION_KEY)}"
_NEWEST_ROW_WINS: Final = (
    "DELETE FROM view WHERE rowid IN (SELECT rowid FROM (SELECT rowid, row_number() OVER"
    " (PARTITION BY key ORDER BY updated_at DESC, rowid DESC) AS n FROM view"
    " WHERE key >= 'session:' AND key < 'session;') WHERE n > 1)"
)


def amiss(connection: sqlite3.Connection) -> dict[str, str]:
    """Those that are gone, or not as the migrations make them: name to `gone` or `changed`."""
    there = _standing(connection)
    return {
        name: "changed" if name in there else "gone"
        for name, sql in _expected().items()
        if there.get(name) != sql
    }


def restore(connection: sqlite3.Connection) -> list[str]:
    """Put back what is amiss, inside the caller's transaction; returns the names.

    Raises `NeedsPerson` where one of the names is taken by something of somebody else's.
    """
    names = amiss(connection)
    for name, kind, table in connection.execute(
        f"SELECT name, type, tbl_name FROM sqlite_master WHERE {_NAMED}"
    ):
        if (kind, table.lower()) != _place(name):
            raise NeedsPerson(
                f"{name} is {kind} of {table}: another program took the name of what keeps the log"
                " and the views sound",
                f"give that {kind} another name, and run this again",
            )
    for name, how in names.items():
        kind = "TRIGGER" if name in TRIGGERS else "INDEX"
        if how == "changed":
            connection.execute(f"DROP {kind} {name}")
        if name == SESSION_KEY:
            connection.execute(_NEWEST_ROW_WINS)
        connection.execute(_expected()[name])
    return [*names]


@cache
def _expected() -> dict[str, str]:
    """As a fresh database has them."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript("".join(migrations.load().values()))
        return _standing(fresh)


def _standing(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute(
        f"SELECT lower(name), type, tbl_name, sql FROM sqlite_master WHERE {_NAMED}"
    )
    return {
        name: " ".join(str(sql).split())
        for name, kind, table, sql in rows
        if (kind, table.lower()) == _place(name)
    }


def _place(name: str) -> tuple[str, str]:
    return ("index", "view") if name.lower() == SESSION_KEY else ("trigger", "event_log")
