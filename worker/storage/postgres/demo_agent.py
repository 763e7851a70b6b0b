"""An agent of `projector demo` on PostgreSQL."""

import json
import shutil
import subprocess
import uuid
from typing import Any, Final

import msgspec
import psycopg

from session_projector.worker.storage.demo import work
from session_projector.worker.storage.postgres.errors import without_schema
from session_projector.worker.storage.postgres.target import parse

INSERT: Final = "INSERT INTO {}event_log (id, key, {}, created_at) VALUES (%s, %s, %s, %s)"


def insert_as_library(url: str, key: str, event: dict[str, Any]) -> None:
    """Any language's way: MessagePack in `packed`."""
    row = (uuid.uuid4().hex, key, msgspec.msgpack.encode(event), event["timestamp"])
    with psycopg.connect(without_schema(url)) as connection:
        connection.execute(INSERT.format(parse(url).prefix, "packed").encode(), row)


def insert_as_shell(url: str, key: str, event: dict[str, Any]) -> None:
    """The way of `psql`, where there is one: JSON in `data`, the SQL written out."""
    values = (uuid.uuid4().hex, key, json.dumps(event), event["timestamp"])
    quoted = ", ".join("'" + str(value).replace("'", "''") + "'" for value in values)
    sql = f"INSERT INTO {parse(url).prefix}event_log (id, key, data, created_at) VALUES ({quoted})"
    if shell := shutil.which("psql"):
        # It may be in the middle of one when the demo ends, and its server.
        command = [shell, "-qXw", without_schema(url), "-c", sql]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return
    with psycopg.connect(without_schema(url)) as connection:
        connection.execute(sql.replace("%", "%%").encode())


if __name__ == "__main__":
    work(insert_as_shell, insert_as_library)
