"""Temporary."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from session_projector.worker.storage.sqlite.store import SqliteStore


class Client:
    def __init__(self, path: Path, *, mode: str, busy_timeout_s: float = 5.0) -> None:
        self.path = path
        self.store = SqliteStore.open(path, writable=mode == "rw", busy_timeout_s=busy_timeout_s)
        self.connection = self.store.connection.raw

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def rows(self, sql: str, values: Any = ()) -> Iterator[tuple[Any, ...]]:
        yield from self.store.connection.rows(sql, values)

    def value(self, sql: str, values: Any = ()) -> Any:
        return self.store.connection.value(sql, values)
