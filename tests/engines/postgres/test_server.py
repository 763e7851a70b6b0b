"""The server that tests run on: it comes whole and goes whole."""

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from support.postgres import Server

TESTS = Path(__file__).parents[2]
HOLD = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from support.postgres import Server
server = Server()
print(server.socket, flush=True)
input()
"""


def test_each_test_has_a_database_of_its_own_with_text_that_compares_as_bytes(
    postgres: Server,
) -> None:
    with postgres.database() as first, postgres.database() as second:
        names = {url: url.split("/")[3].partition("?")[0] for url in (first, second)}
        postgres.sql("CREATE TABLE t (n integer)", database=names[first])
        with pytest.raises(psycopg.errors.UndefinedTable):
            postgres.sql("SELECT * FROM t", database=names[second])
        encoding = postgres.sql("SHOW server_encoding", database=names[first])

    there = {name for (name,) in postgres.sql("SELECT datname FROM pg_database")}
    assert not there & {*names.values()}
    assert encoding == [("UTF8",)]


def test_the_server_ends_with_the_process_that_started_it_and_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert (folder / "data" / "postmaster.pid").exists()

        process.kill()

    while folder.exists():
        pass
