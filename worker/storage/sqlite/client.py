"""A plain connection for one command."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from session_projector.worker.errors import translated
from session_projector.worker.storage.sqlite.connection import BUSY_TIMEOUT_S, FileIdentity, connect
from session_projector.worker.storage.sqlite.schema import migrate as schema


class Client:
    """A connection for one command, to a database whose schema is this program's."""

    def __init__(self, path: Path, *, mode: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.identity = FileIdentity(path)
        self.connection = connect(path, mode=mode, busy_timeout_s=busy_timeout_s)
        try:
            with translated(path):
                schema.check(self.connection, path)
        except BaseException:
            self.connection.close()
            raise

    @classmethod
    def reading(cls, path: Path) -> Self:
        return cls(path, mode="ro")

    @classmethod
    def writing(cls, path: Path) -> Self:
        return cls(path, mode="rw")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def rows(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> Iterator[tuple[Any, ...]]:
        with translated(self.path):
            for row in self.connection.execute(sql, parameters):  # noqa: UP028
                yield row  # `yield from` would close the cursor, maybe after the connection

    def value(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        """The one column of the one row."""
        return next(self.rows(sql, parameters))[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with translated(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
