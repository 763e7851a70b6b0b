"""Plain connections to a PostgreSQL server."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import Thread
from typing import Any, Final

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8BinaryDumper

from session_projector.worker.errors import InterventionRequired
from session_projector.worker.storage.limits import BUSY_TIMEOUT_S
from session_projector.worker.storage.postgres.errors import translated, unreachable
from session_projector.worker.storage.postgres.target import Target

OLDEST: Final = 14
CONNECT_TIMEOUT_S: Final = "5"
_PROGRAM: Final = "projector@"
_HOST_BYTES: Final = 40
_NAME_BYTES: Final = 63
"""Of what is longer the server leaves out the end."""
# A host that is gone without a word is given up after 5 + 3 * 2 s, by either end.
KEEPALIVES: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "11000",
}
_SESSION: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "11000",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "client_min_messages": "warning",
    "search_path": "pg_catalog, pg_temp",
    "jit": "off",
}
"""What a role or a database may have otherwise, and must not be so here."""
Values = Sequence[Any] | Mapping[str, Any]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class _DriverLog(logging.Handler):
    """What the driver warns of is what it goes on after: another error of that is raised."""

    def emit(self, record: logging.LogRecord) -> None:
        log.debug("driver_warned", said=record.getMessage())


logging.getLogger("psycopg").addHandler(_DriverLog())
logging.getLogger("psycopg").propagate = False


def application_name(said: str = "") -> str:
    """How the server lists this process, and what is `said` of it, for which the host's name has to
    make room."""
    end = f":{os.getpid()}{said and ' '}{said}"
    most = min(_NAME_BYTES - len(_PROGRAM + end), _HOST_BYTES)
    host = socket.gethostname().encode()[:most].decode(errors="ignore")
    return f"{_PROGRAM}{host}{end}"


def connect(
    target: Target, *, busy_timeout_s: float = BUSY_TIMEOUT_S, writable: bool = True
) -> psycopg.Connection[Any]:
    """A connection outside any transaction unless it begins one; raises `ProjectorError`."""
    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        **KEEPALIVES,
        **target.settings,
        "client_encoding": "UTF8",
        "application_name": application_name(),
    }
    hosts = str(settings.get("host", "")).count(",")
    if hosts and writable:
        settings.setdefault("target_session_attrs", "read-write")
    try:
        raw = psycopg.connect(autocommit=True, **settings)
    except psycopg.Error as error:
        raise unreachable(target, error) from None
    try:
        with translated(target.name):
            if (version := raw.info.server_version // 10_000) < OLDEST:
                raise InterventionRequired(
                    f"{target.name}: the server is PostgreSQL {version}",
                    f"upgrade it: {OLDEST} is the oldest that this program works with",
                )
            if is_pooled(raw):
                raw.prepare_threshold = None
            else:
                lock_timeout = str(max(1, round(busy_timeout_s * 1000)))
                read_only = "off" if writable else "on"
                settled = {"lock_timeout": lock_timeout, "default_transaction_read_only": read_only}
                _settle(raw, _SESSION | settled)
    except BaseException:
        raw.close()
        raise
    raw.adapters.register_dumper(int, Int8BinaryDumper)  # one type, whatever the number
    return raw


def _settle(raw: psycopg.Connection[Any], settings: Mapping[str, str]) -> None:
    """Let a session have some settings, whatever the role and the database have."""
    each = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(settings))
    raw.execute(f"SELECT {each}".encode(), [part for pair in settings.items() for part in pair])


def is_pooled(raw: psycopg.Connection[Any]) -> bool:
    """Whether something stands between this process and the server, such as PgBouncer: it gives
    each client a number of its own, which is not the server process's."""
    row = raw.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return row is not None and row[0] != raw.info.backend_pid


def refuse_pooler(name: str, raw: psycopg.Connection[Any]) -> None:
    """Raises `InterventionRequired` where a daemon would lose its locks and be deaf."""
    if is_pooled(raw):
        raise InterventionRequired(
            f"{name} is behind a pooler, such as PgBouncer, which hands a session to others: its"
            " locks and what it listens to would be lost",
            "name the server's own address to run a daemon or to replay; other commands and writers"
            " may use the pooler",
        )


class Connection:
    """A connection whose statements raise errors of this program, made anew once it is lost.

    `number` counts how often it was made: what a session remembers, such as temporary tables, ends
    with each.
    """

    def __init__(
        self,
        target: Target,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        writable: bool = True,
        direct: bool = False,
    ) -> None:
        """`direct`: for a daemon, which cannot do with a pooler."""
        self.target = target
        self.name = target.name
        self.prefix = target.prefix.replace("%", "%%")
        self.log_name = f"{target.prefix}event_log"
        """As a value for `::regclass`."""
        self.number = 0
        self._direct = direct
        self._settings: dict[str, Any] = {"busy_timeout_s": busy_timeout_s, "writable": writable}
        self._since: float | None = None
        self._raw: psycopg.Connection[Any] | None = None
        _ = self.raw

    @property
    def raw(self) -> psycopg.Connection[Any]:
        if self._raw is None or self._raw.closed:
            raw = connect(self.target, **self._settings)
            try:
                if self._direct:
                    with translated(self.name):
                        refuse_pooler(self.name, raw)
            except BaseException:
                raw.close()
                raise
            self._raw = raw
            self.number += 1
        return self._raw

    def rows(
        self, sql: str, values: Values = (), *, projection: str | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a statement; `projection`: the one whose own rows they are."""
        with self.errors(projection):
            raw = self.raw
            self._since = time.monotonic()
            try:
                cursor = raw.execute(sql.encode(), values, binary=True)
            finally:
                self._since = None
            return cursor.fetchall() if cursor.description else []

    def row(
        self, sql: str, values: Values = (), *, projection: str | None = None
    ) -> tuple[Any, ...] | None:
        """The first row, None where there is none."""
        found = self.rows(sql, values, projection=projection)
        return found[0] if found else None

    def value(self, sql: str, values: Values = ()) -> Any:
        """The one column of the one row."""
        return (self.row(sql, values) or (None,))[0]

    def errors(self, projection: str | None = None) -> AbstractContextManager[None]:
        """The same errors for a block that uses `raw`, many statements at once."""
        return translated(self.name, projection)

    def together(
        self,
        statements: Sequence[tuple[str, Values]],
        begin: str = "",
        *,
        projection: str | None = None,
        plain: bool = False,
    ) -> list[list[tuple[Any, ...]]]:
        """The rows of several statements, all in one transaction and one round trip. Several that
        write need a `begin`: without it, where a value cannot be sent, those before it are
        committed. `plain`: what PostgreSQL says is raised as it is."""
        with nullcontext() if plain else self.errors(projection):
            raw = self.raw
            self._since = time.monotonic()
            try:
                with raw.pipeline() if begin or len(statements) > 1 else nullcontext():
                    if begin:
                        raw.execute(begin.encode())
                    cursors = [
                        raw.execute(sql.encode(), values, binary=True) for sql, values in statements
                    ]
                    if begin:
                        raw.execute(b"COMMIT")
            except BaseException:
                if not raw.closed:
                    raw.rollback()
                raise
            finally:
                self._since = None
            return [cursor.fetchall() if cursor.description else [] for cursor in cursors]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction; nothing of it stays where the block fails. Within another it is part of
        that one."""
        with self.errors():
            if self.raw.info.transaction_status is not TransactionStatus.IDLE:
                yield
                return
            with self.raw.transaction():
                yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One moment for all that is read."""
        with self.errors():
            if self.raw.info.transaction_status is not TransactionStatus.IDLE:
                yield
                return
            with self.raw.transaction():
                self.raw.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield

    def is_overdue(self, after_s: float) -> bool:
        """Whether a statement has been running for longer."""
        return (since := self._since) is not None and time.monotonic() - since > after_s

    def cancel(self) -> None:
        """From another thread: end the statement that runs, if there is one."""
        raw = self._raw
        if raw is not None and not raw.closed:
            Thread(target=lambda: _cancel(raw), daemon=True).start()

    def close(self) -> None:
        if self._raw is not None:
            with suppress(psycopg.Error):
                self._raw.close()


def _cancel(raw: psycopg.Connection[Any]) -> None:
    with suppress(psycopg.Error):
        raw.cancel_safe(timeout=5)


@contextmanager
def opened(target: Target, **settings: Any) -> Iterator[Connection]:
    """A connection for the block."""
    connection = Connection(target, **settings)
    try:
        yield connection
    finally:
        connection.close()
