"""A PostgreSQL database as any writer and reader sees it, for daemons that are tried on it."""

import json
from typing import Any

import psycopg

from support import Daemon, event


class Log:
    def __init__(self, url: str, *, schema: str = "public") -> None:
        self.url = url
        self._plain = url.replace(f"&schema={schema}", "")
        self._schema = schema
        self._written = 0

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._plain, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def created(self) -> int:
        """Write a session; returns the position of the event."""
        self._written += 1
        session, data = f"S{self._written}", event("session_created", {"project": "P"})
        insert = (
            f"INSERT INTO {self._schema}.event_log (id, key, data, created_at)"
            " VALUES (%s, %s, %s, 1) RETURNING seq"
        )
        return int(self.sql(insert, session, session, json.dumps(data))[0][0])


def folds(running: Daemon, log: Log) -> None:
    """Wait until a daemon has folded an event that is written now."""
    running.wait_until_at(log.created())
