"""The minimum work that any fold must do: floor.py python|sqlite DATABASE prints the seconds.

`python` is one process with one transaction and everything in memory: it reads the log, decodes and
folds it, and writes each view once. `sqlite` is one `INSERT … SELECT` over a log of JSON. Neither
has a checkpoint, checks, a second projection or a second run. The rows that `python` writes are
those of `projector`, byte for byte.
"""

import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

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


def fold(connection: sqlite3.Connection) -> None:
    """Fold the whole log into views, in one transaction."""
    decode, encode = msgspec.msgpack.Decoder().decode, msgspec.msgpack.Encoder().encode
    views: dict[str, tuple[dict[str, Any], str]] = {}
    connection.execute("BEGIN IMMEDIATE")
    for event_id, key, data in connection.execute("SELECT id, key, data FROM event_log"):
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
    connection.executemany(
        "INSERT INTO view VALUES (?1, ?1, ?2, ?3, ?4, ?5)",
        (
            (key, encode(view), event_id, view["createdAt"], view["updatedAt"])
            for key, (view, event_id) in views.items()
        ),
    )
    connection.execute("COMMIT")


def main() -> None:
    kind, path = sys.argv[1], Path(sys.argv[2])
    started = time.perf_counter()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        if kind == "python":
            fold(connection)
        else:
            connection.execute(INSERT_SELECT)
        took = time.perf_counter() - started
    print(took)


if __name__ == "__main__":
    main()
