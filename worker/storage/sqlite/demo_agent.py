"""An agent of `projector demo` on SQLite."""

import json
import shutil
import sqlite3
import subprocess
import uuid
from contextlib import closing
from typing import Any, Final

import msgspec

from session_projector.worker.storage.demo import work

INSERT: Final = "INSERT INTO event_log (id, key, data, created_at) VALUES (?, ?, ?, ?)"


def insert_as_library(path: str, key: str, event: dict[str, Any]) -> None:
    """Any language's way: MessagePack in a BLOB."""
    row = (uuid.uuid4().hex, key, msgspec.msgpack.encode(event), event["timestamp"])
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        connection.execute(INSERT, row)


def insert_as_shell(path: str, key: str, event: dict[str, Any]) -> None:
    """The `sqlite3` shell's way, where there is one: JSON in a TEXT, the SQL written out."""
    values = (uuid.uuid4().hex, key, json.dumps(event), event["timestamp"])
    quoted = ", ".join("'" + str(value).replace("'", "''") + "'" for value in values)
    sql = f"INSERT INTO event_log (id, key, data, created_at) VALUES ({quoted})"
    if shell := shutil.which("sqlite3"):
        subprocess.run([shell, "-cmd", ".timeout 5000", path, sql], check=True)
        return
    with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
        connection.execute(sql)


if __name__ == "__main__":
    work(insert_as_shell, insert_as_library)
