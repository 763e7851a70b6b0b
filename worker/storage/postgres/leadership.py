"""Who leads which projections: advisory locks of a session, which end with it.

There is a lock for each projection, and one for all of them: exclusive for who leads all, whatever
they are called, and shared by each who leads some. Who a session is stands in the table `leader`,
whose rows count while their session holds the lock.
"""

import hashlib
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import psycopg

from session_projector.worker import linux
from session_projector.worker.errors import InterventionRequired, ProjectorError
from session_projector.worker.storage.port import Leader, Trouble, marked, together
from session_projector.worker.storage.postgres.connection import (
    Connection,
    application_name,
    opened,
)
from session_projector.worker.storage.postgres.errors import psql
from session_projector.worker.storage.postgres.locks import LEAD_CLASS
from session_projector.worker.storage.postgres.target import Target

ALL: Final = ""
_STANDBY: Final = " standing by"
"""The lock that those share who wait, in the place of a projection's name."""
_LOG: Final = "SELECT to_regclass(%s)::oid::bigint"
# Not to lead, and to leave nothing locked, where another leads all.
_TAKE: Final = f"""
    SELECT name, CASE
        WHEN NOT pg_try_advisory_lock_shared({LEAD_CLASS}, %s::int4) THEN false
        WHEN pg_try_advisory_lock({LEAD_CLASS}, key) THEN true
        ELSE NOT pg_advisory_unlock_shared({LEAD_CLASS}, %s::int4)
    END
    FROM unnest(%s::text[], %s::int4[]) AS wanted (name, key)
"""
_TAKE_ALL: Final = f"SELECT pg_try_advisory_lock({LEAD_CLASS}, %s::int4)"
_GIVE_BACK: Final = f"""
    SELECT pg_advisory_unlock({LEAD_CLASS}, %s::int4),
        pg_advisory_unlock_shared({LEAD_CLASS}, %s::int4)
"""
_STAND_BY: Final = f"SELECT pg_advisory_lock_shared({LEAD_CLASS}, %s::int4)"
_STAND_BY_NO_MORE: Final = f"SELECT pg_advisory_unlock_shared({LEAD_CLASS}, %s::int4)"
_SAY: Final = """
    INSERT INTO {}leader (projection, version, place, session, host, pid, machine)
    SELECT name, version, place, pg_backend_pid(), %s, %s, %s
    FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS led (name, version, place)
    ON CONFLICT (projection) DO UPDATE SET version = excluded.version, place = excluded.place,
        session = excluded.session, host = excluded.host, pid = excluded.pid,
        machine = excluded.machine
"""
_SAID: Final = """
    SELECT session, projection, version, host, pid, machine FROM {}leader ORDER BY place, projection
"""
_HOLDERS: Final = f"""
    SELECT l.pid, l.objid::int4, l.mode = 'ExclusiveLock', coalesce(a.application_name, '')
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.classid = {LEAD_CLASS} AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_TELL: Final = "SELECT pg_catalog.set_config('application_name', %s, false)"
_LOOK: Final = f"""
    SELECT a.pid, usename, application_name, client_addr, backend_start FROM pg_stat_activity AS a
    JOIN pg_locks AS l ON l.pid = a.pid WHERE classid = {LEAD_CLASS} AND mode = 'ExclusiveLock'
"""


class PostgresLeadership:
    """Implements `worker.storage.port.Leadership`, on a connection of its own.

    `running` are the projections that this process would run, and their versions; without them it
    leads all or nothing.
    """

    def __init__(self, target: Target, running: Mapping[str, int] | None = None) -> None:
        self._target = target
        self._versions = dict(running or {ALL: 0})
        self._connection: Connection | None = None
        self._session = 0
        self._log = 0
        self._led: set[str] = set()
        self._stands_by = False

    @property
    def who_holds_it(self) -> str:
        return f"`{psql(self._target.name, ' '.join(_LOOK.split()))}`"

    def acquire(self, *, stand_by: bool = False) -> bool:
        self._acquire(stand_by=stand_by, all_or_none=True)
        return self._led == self._versions.keys()

    def acquire_some(self, *, stand_by: bool = False) -> set[str]:
        self._acquire(stand_by=stand_by)
        return self._led - {ALL}

    def _acquire(self, *, stand_by: bool, all_or_none: bool = False) -> None:
        try:
            wanted = self._connected()
            led = self._take(wanted) if wanted else []
            if all_or_none and led != wanted:
                self._give_back(led)
                led = []
            if led:
                self._say(led)
            self._led |= {*led}
            self._await(stand_by and self._led != self._versions.keys())
        except BaseException:
            self._disconnect()
            raise
        if not (self._led or stand_by):
            self._disconnect()

    def tell(self, trouble: Trouble | None) -> None:
        """By the name of the session, which needs no room on the server's disk, and ends with it.
        Not of a session that is made for it: that would lead nothing."""
        if self._connection is None or not self._led:
            return
        raw = self._connection.raw
        try:
            raw.execute(_TELL, (application_name(trouble.mark if trouble else ""),))
        except psycopg.Error:
            if raw.closed:  # or `lost` would make another
                self._disconnect()

    async def lost(self) -> None:
        import anyio  # commands do not need it

        raw = self._connection.raw if self._connection and self._led else None
        try:
            while raw is not None:
                await anyio.wait_readable(raw.fileno())
                raw.pgconn.consume_input()
        except (psycopg.Error, ProjectorError, OSError):
            pass
        self._disconnect()

    def release(self) -> None:
        if self._connection is not None:
            with suppress(ProjectorError):
                self._connection.rows("SELECT pg_advisory_unlock_all()")
        self._disconnect()

    def leader(self) -> Leader | None:
        return together(self.leaders())

    def barred(self) -> str:
        return ""

    def leaders(self) -> list[Leader]:
        with opened(self._target, writable=False) as connection:
            return [*_leaders(connection).values()]

    def standing_by(self) -> list[str]:
        with opened(self._target, writable=False) as connection:
            key, leaders = _key(_log(connection) or 0, _STANDBY), _leaders(connection)
            return [
                name.removeprefix("projector@")
                for session, lock, _, name in connection.rows(_HOLDERS)
                if lock == key and session not in leaders
            ]

    def _connected(self) -> list[str]:
        """Have a session; returns what it does not lead."""
        if self._connection is None:
            self._connection = Connection(self._target, direct=True)
        _ = self._connection.raw
        if self._connection.number != self._session:
            self._session, self._led, self._stands_by = self._connection.number, set(), False
            log = _log(self._connection)
            if log is None:
                raise InterventionRequired(
                    f"{self._target.name} has no event log in the schema {self._target.schema}",
                    "create it with `projector db setup`",
                )
            self._log = log
        return [name for name in self._versions if name not in self._led]

    def _take(self, names: list[str]) -> list[str]:
        assert self._connection
        everything = _key(self._log, ALL)
        if ALL in names:
            return [ALL] if self._connection.value(_TAKE_ALL, (everything,)) else []
        keys = [_key(self._log, name) for name in names]
        taken = self._connection.rows(_TAKE, (everything, everything, names, keys))
        return [name for name, is_ours in taken if is_ours]

    def _give_back(self, names: list[str]) -> None:
        """Nobody else saw that it led them: it has not said so."""
        assert self._connection
        everything = _key(self._log, ALL)
        for name in names:
            self._connection.rows(_GIVE_BACK, (_key(self._log, name), everything))

    def _say(self, names: list[str]) -> None:
        assert self._connection
        who = (socket.gethostname(), os.getpid(), linux.machine())
        versions, places = [self._versions[name] for name in names], [*self._versions]
        values = (*who, names, versions, [places.index(name) for name in names])
        self._connection.rows(_SAY.format(self._connection.prefix), values)

    def _await(self, stand_by: bool) -> None:
        """Let others see that this process waits, or no longer."""
        assert self._connection
        if stand_by != self._stands_by:
            sql = _STAND_BY if stand_by else _STAND_BY_NO_MORE
            self._connection.rows(sql, (_key(self._log, _STANDBY),))
            self._stands_by = stand_by

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._session, self._led, self._stands_by = 0, set(), False
        if connection is not None:
            connection.close()


def _key(log: int, name: str) -> int:
    """The number of a projection's lock, of which other logs on the database have others."""
    found = hashlib.blake2b(f"{log}:{name}".encode(), digest_size=4).digest()
    return int.from_bytes(found, signed=True)


def _log(connection: Connection) -> int | None:
    found: int | None = connection.value(_LOG, (connection.log_name,))
    return found


def _leaders(connection: Connection) -> dict[int, Leader]:
    """By session; a row of one that does not hold its lock any more says nothing."""
    log = _log(connection)
    if log is None:
        return {}
    holders = connection.rows(_HOLDERS)
    held = {(session, key) for session, key, exclusive, _ in holders if exclusive}
    names = {session: name for session, _, _, name in holders}
    found: dict[int, Leader] = {}
    if not held:
        return found
    for session, name, version, host, pid, machine in connection.rows(
        _SAID.format(connection.prefix)
    ):
        if (session, _key(log, name)) in held:
            leader = found.setdefault(session, _leader(host, pid, machine, marked(names[session])))
            if name != ALL:
                leader.running[name] = version
    return found


def _leader(host: str, pid: int, machine: str, trouble: Trouble | None) -> Leader:
    if machine != linux.machine():
        return Leader(pid, {}, suspended=False, seen=False, host=host, trouble=trouble)
    return Leader(pid, {}, suspended=linux.is_stopped(pid), seen=True, trouble=trouble)
