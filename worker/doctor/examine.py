"""`projector doctor`: what is wrong with a database and around it, and what mends it.

By reading alone; a check that cannot read says so, and the others go on.
"""

import os
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from session_projector import migrations
from session_projector.projections.decode import created_ms
from session_projector.projections.event import Unfoldable
from session_projector.worker.doctor import daemon as daemon_checks
from session_projector.worker.doctor import host as surroundings
from session_projector.worker.doctor.check import Checked
from session_projector.worker.errors import ProjectorError, quoted, translated
from session_projector.worker.operations.projections import fits_log, listing
from session_projector.worker.storage.sqlite.client import Client
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.doctor import old_writers, rights
from session_projector.worker.storage.sqlite.schema import integrity as objects
from session_projector.worker.storage.sqlite.schema import migrate as schema

BUSY_TIMEOUT_S: Final = 1.0
CLOCK_EVENTS: Final = 300
AHEAD_MS: Final = 60_000
_LOOK_AT_TRIGGERS: Final = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"

_Check = Callable[[], Iterator[Checked]]


def examine(path: Path) -> Iterator[Checked]:
    """Every check, in the order in which one would look."""
    allowed = [*_tried("rights", path, partial(rights.rights, path))]
    if os.geteuid() == 0 and os.path.isfile(path) and any(one.level != "ok" for one in allowed):
        # As root, SQLite gives the files beside it to the owner of the database.
        said = "not looked into: as root, that would change whose the files beside it are"
        found = [Checked("database", "warn", said, "mend the rights first: see below")]
    else:
        found = [*_tried("database", path, partial(_database, path))]
    yield from found
    if all(one.level == "ok" for one in found):
        yield from _tried("schema", path, partial(_inside, path))
    for name, check in (
        ("sqlite", surroundings.sqlite_version),
        ("filesystem", partial(surroundings.filesystem, path)),
        ("rights", lambda: iter(allowed)),
        ("wal", partial(surroundings.wal, path)),
        ("space", partial(surroundings.space, path)),
        ("litestream", partial(surroundings.litestream, path)),
    ):
        if name != "wal" or os.path.isfile(path):
            yield from _tried(name, path, check)


def _tried(name: str, path: Path, check: _Check) -> Iterator[Checked]:
    """A check; where it raises, that is what it found."""
    try:
        with translated(path):
            yield from check()
    except ProjectorError as error:
        yield Checked(name, "fail", str(error), error.hint)
    except OSError as error:
        said = f"{error.filename or path}: {error.strerror}"
        yield Checked(name, "fail", said, f"look at `ls -la {quoted(path.parent)}`")
    except Exception as error:  # of rows that others left in our tables, say
        said = f"it could not be looked at: {type(error).__name__}: {error}"
        yield Checked(
            name, "fail", said, f"see what is wrong: `projector verify -d {quoted(path)}`"
        )


def _database(path: Path) -> Iterator[Checked]:
    with closing(connect(path, mode="ro", busy_timeout_s=BUSY_TIMEOUT_S)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    yield Checked("database", "ok", f"{path}, {path.stat().st_size / surroundings.MIB:,.1f} MiB")


def _inside(path: Path) -> Iterator[Checked]:
    """What can be asked of a database that opens, as far as its schema is known."""
    with closing(connect(path, mode="ro", busy_timeout_s=BUSY_TIMEOUT_S)) as connection:
        on = (connection, path)
        found = [*_tried("schema", path, partial(_schema, *on))]
        yield from found
        if any(one.level == "fail" for one in found):
            return
        yield from _tried("journal mode", path, partial(_journal_mode, *on))
        yield from _tried("seq", path, partial(_autoincrement, *on))
        yield from _tried("triggers", path, partial(_triggers, *on))
        yield from _tried("indexes", path, partial(_indexes, *on))
        yield from _tried("session keys", path, partial(_session_keys, *on))
        yield from _tried("clock", path, partial(_clock, connection))
    with Client(path, mode="ro", busy_timeout_s=BUSY_TIMEOUT_S) as client:
        for name, check in (
            ("checkpoint", _checkpoint),
            ("projections", daemon_checks.projections),
            ("old writers", old_writers.old_writers),
            ("daemon", daemon_checks.daemon),
        ):
            yield from _tried(name, path, partial(check, client))


def _schema(connection: sqlite3.Connection, path: Path) -> Iterator[Checked]:
    found = schema.layout(connection, path)
    setup = f"`projector db setup -d {quoted(path)}`"
    if found is schema.Layout.EMPTY:
        yield Checked("schema", "fail", "there are no tables yet", f"make them: {setup}")
    elif found is schema.Layout.KANBATTE:
        said = "a database of Kanbatte up to 0.0.3, not adopted yet"
        yield Checked("schema", "fail", said, f"stop its writers for good, then {setup}")
    else:
        schema.check(connection, path)
        yield Checked("schema", "ok", [*migrations.load()][-1])


def _journal_mode(connection: sqlite3.Connection, path: Path) -> Iterator[Checked]:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        yield Checked("journal mode", "ok", "WAL")
        return
    said = f"{mode}, not WAL: readers and writers shut each other out"
    mend = f"`projector db setup -d {quoted(path)}`, or the next daemon's start"
    yield Checked("journal mode", "warn", said, mend)


def _autoincrement(connection: sqlite3.Connection, path: Path) -> Iterator[Checked]:
    """Without it a position could be used twice, or a VACUUM renumber them all."""
    ((sql,),) = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'event_log'"
    )
    words = " ".join(str(sql).replace('"', " ").replace("(", " ( ").upper().split())
    if "( SEQ INTEGER PRIMARY KEY AUTOINCREMENT" in words:
        yield Checked("seq", "ok", "INTEGER PRIMARY KEY AUTOINCREMENT")
        return
    new = path.with_name(f"new-{path.name}")
    columns = "seq, id, key, data, created_at"
    old = str(path).replace("'", "''")
    copy = (
        f"ATTACH '{old}' AS old; INSERT INTO event_log ({columns}) SELECT {columns} FROM"
        " old.event_log ORDER BY seq; INSERT INTO view SELECT * FROM old.view WHERE"
        " key < 'session:' OR key >= 'session;'"
    )
    yield Checked(
        "seq",
        "fail",
        "event_log.seq is not INTEGER PRIMARY KEY AUTOINCREMENT: somebody made the table anew, and"
        " positions may be used twice",
        f"stop all that use it, copy the log: `projector db setup -d {quoted(new)} && sqlite3"
        f" {quoted(new)} {shlex.quote(copy)}`; give the new file the owner, group"
        " and mode of the old (chown and chmod with --reference), remove the old -wal and -shm, and"
        " mv it over the old",
    )


def _triggers(connection: sqlite3.Connection, path: Path) -> Iterator[Checked]:
    wrong = {n: how for n, how in objects.amiss(connection).items() if n in objects.TRIGGERS}
    if wrong:
        told = ", ".join(f"{name} is {how}" for name, how in wrong.items())
        said = f"the log can be rewritten: {told}"
        yield Checked("triggers", "fail", said, f"`projector db setup -d {quoted(path)}`")
        return
    others = objects.foreign_triggers(connection)
    named = ", ".join(f"{name} on {table}" for name, table, _ in others)
    if any(meddles for *_, meddles in others):
        yield Checked(
            "triggers",
            "warn",
            f"others' triggers may refuse or lose what is written to our tables, or write there:"
            f" {named}",
            "see what each does, and drop what is not wanted (`DROP TRIGGER NAME`):"
            f" `sqlite3 {quoted(path)} {shlex.quote(_LOOK_AT_TRIGGERS)}`",
        )
    else:
        also = f"; others have triggers here: {named}" if others else ""
        yield Checked("triggers", "ok", f"the log is append-only{also}")


def _indexes(connection: sqlite3.Connection, path: Path) -> Iterator[Checked]:
    gone = [
        n for n in objects.amiss(connection) if n not in (*objects.TRIGGERS, objects.SESSION_KEY)
    ]
    if gone:
        said = f"{', '.join(gone)}: gone, and reading is slow without"
        yield Checked("indexes", "warn", said, f"`projector db setup -d {quoted(path)}`")
    else:
        yield Checked("indexes", "ok", "all are there")


def _session_keys(connection: sqlite3.Connection, path: Path) -> Iterator[Checked]:
    wrong = objects.amiss(connection).get(objects.SESSION_KEY)
    if wrong is None:
        yield Checked("session keys", "ok", "each session has one row at most")
        return
    said = f"nothing keeps a session from standing in two rows: {objects.SESSION_KEY} is {wrong}"
    mend = f"`projector db setup -d {quoted(path)}`"
    if doubled := schema.doubled_keys(connection):
        more = ", …" if len(doubled) > 3 else ""
        said += f"; {len(doubled)} do: {', '.join(doubled[:3])}{more}"
        mend += f", then `projector replay -d {quoted(path)}`"
    yield Checked("session keys", "fail", said, mend)


def _clock(connection: sqlite3.Connection) -> Iterator[Checked]:
    now_ms = time.time_ns() // 1_000_000
    wrong = [*surroundings.clock(now_ms)]
    ahead = now_ms
    rows = connection.execute(
        "SELECT created_at FROM event_log ORDER BY seq DESC LIMIT ?", (CLOCK_EVENTS,)
    )
    for (created_at,) in rows:
        with suppress(Unfoldable):
            ahead = max(ahead, created_ms(created_at))
    if not wrong and ahead - now_ms > AHEAD_MS:
        wrong = [
            Checked(
                "clock",
                "warn",
                f"an event was written {(ahead - now_ms) / 1000:,.0f} s in the future: its writer's"
                " clock is ahead, or this machine's behind (views do not depend on it)",
                "set the clock of both: `timedatectl set-ntp true`; see the event's created_at",
            )
        ]
    yield from wrong or [Checked("clock", "ok", "no recent event is ahead of it")]


def _checkpoint(client: Client) -> Iterator[Checked]:
    """Whether the log is the one that was folded, by code that is here."""
    wrong = []
    for listed in listing(client):
        if not fits_log(client, listed.position, listed.digest):
            said = (
                f"the log is not the one that was folded into {listed.name} up to"
                f" {listed.position:,}: it was rewound or replaced"
            )
            mend = f"fold it from the first event: `projector replay -d {quoted(client.path)}`"
            wrong.append(Checked("checkpoint", "fail", said, mend))
        elif listed.code_version and abs(listed.version or 0) > listed.code_version:
            said = (
                f"the views of {listed.name} are of version {abs(listed.version or 0)}, the code"
                f" here is of version {listed.code_version}"
            )
            mend = "upgrade projector: `pip install -U session-projector`, or its package"
            wrong.append(Checked("checkpoint", "fail", said, mend))
    yield from wrong or [Checked("checkpoint", "ok", "fits the log")]
