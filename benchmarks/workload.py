"""The logs that the benchmarks fold, and the check that a log was folded correctly."""

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

T0: Final = 1_700_000_000_000
INSERT: Final = "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)"
POSTGRES_INSERT: Final = (
    "INSERT INTO event_log (id, key, packed, created_at) VALUES (%s, %s, %s, %s)"
)


class WrongViews(Exception):
    """The views of a run do not match its log, so the run gives no figure."""


class Log(msgspec.Struct, frozen=True):
    """A log to be written.

    In `local` order, `live` sessions are written to at any time, and old ones give way to new ones.
    In `random` order, any session is written to at any time. In `interleaved` order, the sessions
    take turns, one event each. The first event of a session creates it, and every other one appends
    a message whose text has `content_bytes`.
    """

    events: int
    sessions: int
    order: Literal["local", "random", "interleaved"] = "local"
    live: int = 200
    content_bytes: int = 300

    @property
    def view_mib(self) -> float:
        """The approximate size of the largest view."""
        return self.events / self.sessions * self.content_bytes / 2**20

    def smaller(self, factor: int) -> "Log":
        return msgspec.structs.replace(
            self,
            events=max(self.events // factor, 50),
            sessions=max(min(self.sessions, self.sessions * 4 // factor), 1),
        )

    def of(self) -> Iterator[int]:
        """Yield the session number of each event."""
        chance, created = random.Random(1), 0
        for number in range(self.events):
            if self.order == "interleaved":
                yield number % self.sessions
            elif self.order == "random":
                yield number if number < self.sessions else chance.randrange(self.sessions)
            else:
                window = max(0, (self.sessions - self.live) * number // self.events)
                if created < min(window + self.live, self.sessions):
                    yield created
                    created += 1
                else:
                    yield window + chance.randrange(min(self.live, self.sessions))

    def rows(self, *, json: bool = False) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of `event_log`, with `data` as MessagePack or as JSON."""
        encode = msgspec.json.encode if json else msgspec.msgpack.encode
        seen: set[int] = set()
        for number, session in enumerate(self.of()):
            made = event(session, self.content_bytes, number, created=session not in seen)
            seen.add(session)
            data = encode(made)
            key, time = f"session:S-{session}", T0 + number
            yield f"e{number}", key, data.decode() if json else data, time


def event(session: int, content_bytes: int, number: int, *, created: bool) -> dict[str, Any]:
    """Make one event, as a writer would."""
    kind, data = "session_created", dict[str, Any](project="bench")
    if not created:
        message = {"role": "assistant", "content": "x" * content_bytes, "timestamp": T0 + number}
        kind, data = "session_append", {"messages": [message]}
    return {"type": kind, "sessionId": f"S-{session}", "data": data, "timestamp": T0 + number}


def fill(path: Path, log: Log, *, json: bool = False) -> None:
    """Create a database with the log, all of it in the main file."""
    from session_projector.worker.storage.sqlite.schema import (
        migrate as schema,  # not at the top, because peers import this module too
    )

    schema.setup(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.executemany(INSERT, log.rows(json=json))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def copied(template: Path, path: Path) -> Path:
    """Make a copy and sync it to disk, so that writing it does not disturb the measurement."""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    shutil.copyfile(template, path)
    with path.open("rb") as copy:
        os.fsync(copy.fileno())
    return path


def connected(database: Path | str, *, timeout_s: float = 30) -> AbstractContextManager[Any]:
    """A connection for the block to a file, or to a PostgreSQL server by its URL."""
    if isinstance(database, Path):
        return closing(sqlite3.connect(database, timeout=timeout_s, isolation_level=None))
    import psycopg  # not at the top, because peers import this module too

    return psycopg.connect(database, autocommit=True)


def check(database: Path | str, *, index: bool = True) -> None:
    """Check that every session has a view, every view its last event, and no message is missing."""
    with connected(database) as connection:
        wrong = {
            "position": "SELECT position <> (SELECT max(seq) FROM event_log) FROM checkpoint"
            " WHERE name = 'sessions'",
            "quarantine": "SELECT count(*) FROM quarantine",
            "views": "SELECT (SELECT count(*) FROM view) <> (SELECT count(DISTINCT key)"
            " FROM event_log)",
            "last events": "SELECT count(*) FROM view WHERE last_offset_id <> (SELECT id FROM"
            " event_log WHERE key = view.key ORDER BY seq DESC LIMIT 1)",
        }
        if index:
            wrong["messages"] = (
                "SELECT sum(message_count) <> (SELECT count(*) FROM event_log)"
                " - (SELECT count(*) FROM view) FROM session_index"
            )
        for what, query in wrong.items():
            if any(found != (0,) for found in connection.execute(query)):
                raise WrongViews(f"wrong {what} in {database}")


def views(database: Path | str) -> list[tuple[Any, ...]]:
    """Return every view, to compare with another fold of the same log."""
    with connected(database) as connection:
        query = "SELECT key, data, last_offset_id, created_at, updated_at FROM view ORDER BY key"
        return connection.execute(query).fetchall()
