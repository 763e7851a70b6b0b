"""A PostgreSQL server's database and schema: implements `worker.storage.port.Database`."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, closing, suppress
from typing import Final

from session_projector.worker.errors import ProjectorError, UsageError
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import (
    Checks,
    Holder,
    Leadership,
    Setup,
    Sizes,
    Store,
    Thread,
    Wakeup,
)
from session_projector.worker.storage.postgres import migrate
from session_projector.worker.storage.postgres.connection import opened
from session_projector.worker.storage.postgres.roles import owner_name
from session_projector.worker.storage.postgres.store import PATIENCE_S, PostgresStore
from session_projector.worker.storage.postgres.target import parse

_HURRIED_S: Final = 2.0


class PostgresDatabase:
    """The database at a URL, not opened yet."""

    file = None

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        self._target = parse(url)
        self._limits = limits or Limits()
        self._patience_s = PATIENCE_S
        self.name = self._target.name

    def owner_name(self) -> str:
        with suppress(ProjectorError), opened(self._target, writable=False) as connection:
            return owner_name(connection)
        return self.name

    @property
    def engine(self) -> tuple[str, str]:
        version = 0
        with suppress(ProjectorError), opened(self._target, writable=False) as connection:
            version = connection.raw.info.server_version
        return "postgresql", f"{version // 10_000}.{version % 10_000}" if version else ""

    @property
    def is_served(self) -> bool:
        return True

    def exists(self) -> bool:
        with opened(self._target, writable=False) as connection:
            return migrate.is_there(connection)

    def setup(
        self, *, group: str | None = None, writer: str | None = None, reader: str | None = None
    ) -> Setup:
        if group is not None:
            raise UsageError(
                f"{self.name} is no file that a group could share",
                "let a role write events: `projector db setup --writer ROLE`",
            )
        return migrate.setup(self._target, writer=writer, reader=reader)

    def migrations(self) -> list[tuple[str, bool]]:
        return migrate.status(self._target)

    def open(self, *, writable: bool = False) -> AbstractContextManager[Store]:
        return closing(PostgresStore.open(self._target, self._limits, writable=writable))

    def open_thread(self, *, writable: bool = True) -> AbstractAsyncContextManager[Thread]:
        from session_projector.worker.storage import thread  # commands need no aiosqlite

        def open_store() -> Store:
            return PostgresStore.open(self._target, self._limits, writable=writable)

        return thread.opened(open_store, lambda: self._patience_s)

    def hurry(self) -> None:
        self._patience_s = _HURRIED_S

    def newest(self, *, busy_timeout_s: float) -> int:
        sql = "SELECT coalesce(max(seq), 0) FROM {}event_log"
        with opened(self._target, busy_timeout_s=busy_timeout_s, writable=False) as connection:
            return int(connection.value(sql.format(connection.prefix)))

    def leadership(self, running: Mapping[str, int] | None = None) -> Leadership:
        from session_projector.worker.storage.postgres.leadership import PostgresLeadership

        return PostgresLeadership(self._target, running)

    def wakeup(self) -> Wakeup:
        from session_projector.worker.storage.postgres.wakeup import Bell

        return Bell(self._target)

    def view_wakeup(self) -> Wakeup:
        from session_projector.worker.storage.postgres.listener import Listener

        return Listener(self._target)

    def watch_identity(self) -> Callable[[], None]:
        return lambda: None  # the server keeps it

    def sizes(self) -> Sizes:
        size = "SELECT pg_catalog.pg_database_size(current_database())"
        with opened(self._target, writable=False) as connection:
            return Sizes(int(connection.value(size)), 0, 0, [])

    def wal_bytes(self) -> int:
        return 0  # the server looks after it

    def checks(
        self, code_versions: Mapping[str, int]
    ) -> AbstractContextManager[tuple[Checks, Checks]]:
        from session_projector.worker.storage.postgres.doctor import checks

        return checks.checks(self._target, code_versions)

    def locked_by(self, *, but: int = 0) -> list[Holder]:
        from session_projector.worker.storage.postgres.doctor import checks

        del but
        with opened(self._target, writable=False) as connection:
            return checks.blocking(connection)

    def who_locks_it(self, *, but: int = 0) -> str:
        del but
        return ""  # the server names all who do
