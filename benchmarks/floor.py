"""The minimum work that any fold must do: floor.py python|sqlite|postgres|tail DATABASE.

The first three print how many seconds they took. `python` is one process with one transaction and
everything in memory: it reads the log, decodes and folds it, and writes each view once. `postgres`
is the same on a PostgreSQL server: it reads batches of 8,192 events and writes 1,000 rows a
statement, all of it in binary. `sqlite` is one `INSERT … SELECT` over a log of JSON. `tail` waits
for events on a PostgreSQL server, and writes the view of each as it comes, with one read and one
statement; it prints a line once it waits. None has a checkpoint, checks, a second projection or a
second run. The rows that `python` and `postgres` write are those of `projector`, byte for byte.
"""

import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Final

import msgspec

INSERT_SELECT = """
INSERT INTO view
SELECT key, key,
  '{"id":"' || substr(key, 9) || '","project":"' || max(data ->> '$.data.project')
    || '","messages":[' || group_concat(data -> '$.data.messages[0]')
    || '],"status":"ready","createdAt":' || min(created_at)
    || ',"updatedAt":' || max(created_at) || '}',
  substr(max(printf('%012d', seq) || id), 13), min(created_at), max(created_at)
FROM event_log GROUP BY key
"""


READ = "SELECT seq, id, key, packed FROM event_log WHERE seq > %s ORDER BY seq LIMIT %s"
READ_ROWS = 8192
WRITE = (
    "INSERT INTO view SELECT key, * FROM"
    " unnest(%b::text[], %b::bytea[], %b::text[], %b::int8[], %b::int8[])"
    " AS rows (key, data, last_offset_id, created_at, updated_at)"
)
WRITTEN_ROWS = 1000


def fold(events: Iterable[tuple[str, str, bytes]]) -> Iterator[tuple[Any, ...]]:
    """Fold id, key and data of all events into the rows of `view`, but for the first column."""
    decode, encode = msgspec.msgpack.Decoder().decode, msgspec.msgpack.Encoder().encode
    views: dict[str, tuple[dict[str, Any], str]] = {}
    for event_id, key, data in events:
        event = decode(data)
        body, time_ms = event["data"], event["timestamp"]
        if event["type"] == "session_created":
            view = {
                "id": event["sessionId"],
                "project": body["project"],
                "messages": [],
                "status": "ready",
                "createdAt": time_ms,
            }
        else:
            view = views[key][0]
            view["messages"] += body["messages"]
        view["updatedAt"] = time_ms
        views[key] = view, event_id
    for key, (view, event_id) in views.items():
        yield key, encode(view), event_id, view["createdAt"], view["updatedAt"]


def in_sqlite(path: str, *, inside: bool) -> float:
    started = time.perf_counter()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        if inside:
            connection.execute(INSERT_SELECT)
        else:
            connection.execute("BEGIN IMMEDIATE")
            rows = fold(connection.execute("SELECT id, key, data FROM event_log"))
            connection.executemany("INSERT INTO view VALUES (?1, ?1, ?2, ?3, ?4, ?5)", rows)
            connection.execute("COMMIT")
        return time.perf_counter() - started


def in_postgres(url: str) -> float:
    import psycopg  # peers and SQLite need none

    def events() -> Iterator[tuple[str, str, bytes]]:
        rows: list[tuple[Any, ...]] = [(0,)]
        while rows:
            rows = connection.execute(READ, (rows[-1][0], READ_ROWS), binary=True).fetchall()
            yield from (row[1:] for row in rows)

    started = time.perf_counter()
    with psycopg.connect(url) as connection:
        views = fold(events())
        while rows := [*islice(views, WRITTEN_ROWS)]:
            connection.execute(WRITE, [[*column] for column in zip(*rows, strict=True)])
        connection.commit()
        return time.perf_counter() - started


RING: Final = (
    "CREATE FUNCTION ring() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_notify('floor', ''); RETURN NULL; END $$",
    "CREATE TRIGGER ring AFTER INSERT ON event_log FOR EACH STATEMENT EXECUTE FUNCTION ring()",
    "LISTEN floor",
)
UPDATE: Final = (
    "UPDATE view SET data = %b, last_offset_id = %b, updated_at = %b"
    " WHERE key >= 'session:' AND key < 'session;' AND key = %b"
)


def tail_postgres(url: str) -> None:
    import psycopg

    decode, encode = msgspec.msgpack.Decoder().decode, msgspec.msgpack.Encoder().encode
    with (
        psycopg.connect(url, autocommit=True) as bell,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        for statement in RING:
            bell.execute(statement)
        stored = connection.execute("SELECT key, data FROM view", binary=True)
        views = {key: decode(data) for key, data in stored}
        ((position,),) = connection.execute("SELECT max(seq) FROM event_log")
        print(flush=True)
        for _ in bell.notifies():
            for row in connection.execute(READ, (position, READ_ROWS), binary=True).fetchall():
                position, event_id, key, data = row
                event, view = decode(data), views[key]
                view["messages"] += event["data"]["messages"]
                view["updatedAt"] = event["timestamp"]
                written = (encode(view), event_id, view["updatedAt"], key)
                connection.execute(UPDATE, written)


def main() -> None:
    kind, database = sys.argv[1:]
    if kind == "postgres":
        print(in_postgres(database))
    elif kind == "tail":
        tail_postgres(database)
    else:
        print(in_sqlite(database, inside=kind == "sqlite"))


if __name__ == "__main__":
    main()
