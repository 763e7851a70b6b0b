"""The checks of an SQLite database: file, schema, triggers, indexes, checkpoints, SQLite.

Each takes the path, and opens the database for itself and only to read.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from session_projector import migrations
from session_projector.projections.event import LogRow
from session_projector.worker.errors import argument, many, quoted, upgrade
from session_projector.worker.storage.port import FOLD_AGAIN, Check, digest
from session_projector.worker.storage.sqlite import connection
from session_projector.worker.storage.sqlite.connection import connect
from session_projector.worker.storage.sqlite.errors import translated
from session_projector.worker.storage.sqlite.schema import integrity as objects
from session_projector.worker.storage.sqlite.schema import kanbatte, migrate
from session_projector.worker.storage.sqlite.sql import IS_NAME, IS_SOUND, READ_POSITION, identifier

MIB: Final = 1024 * 1024
LOOK_TIMEOUT_S: Final = 1.0
_LOOK_AT_TRIGGERS: Final = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of one check, closed when it is done."""
    opened = connect(path, mode="ro", busy_timeout_s=LOOK_TIMEOUT_S)
    with translated(path), closing(opened):
        yield opened


def opens(path: Path, rights: Sequence[Check]) -> Iterator[Check]:
    """Check that the file opens as a database; `rights` is what the check of them found."""
    if os.geteuid() == 0 and os.path.isfile(path) and any(one.level != "ok" for one in rights):
        said = "not opened: as root, SQLite gives the files beside it to the owner of the database"
        yield Check("database", "warn", said, "fix the rights first: see below")
        return
    with reading(path) as db:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    yield Check("database", "ok", f"{path}, {path.stat().st_size / MIB:,.1f} MiB")


def schema(path: Path) -> Iterator[Check]:
    with reading(path) as db:
        select = "SELECT group_concat(name, ', ') FROM sqlite_master WHERE rootpage > 0"
        for (names,) in db.execute(f"{select} GROUP BY rootpage HAVING count(*) > 1"):
            said = f"{names} share one page of the file: somebody edited the schema, and each"
            yield Check("schema", "fail", f"{said} overwrites the other", kanbatte.COPY_LOG)
            return
        if wrong := objects.virtual(db):
            yield _made_otherwise(db, path, wrong)
            return
        found = kanbatte.layout(db, path)
        if found is kanbatte.Layout.EMPTY:
            yield Check("schema", "fail", "there are no tables yet", f"create them: {_SETUP}")
        elif found is kanbatte.Layout.KANBATTE:
            said = "a database of Kanbatte up to 0.0.3, not adopted yet"
            yield Check("schema", "fail", said, f"stop its writers for good, then {_SETUP}")
        else:
            if wrong := sorted({*objects.altered(db)} - {"event_log", *objects.lacking(db)}):
                yield _made_otherwise(db, path, wrong)
                return
            migrate.check(db, path)
            yield Check("schema", "ok", [*migrations.load()][-1])


def _made_otherwise(db: sqlite3.Connection, path: Path, names: Sequence[str]) -> Check:
    said = (
        f"somebody made {', '.join(names)} in another way than the migrations do, so that it may"
        " refuse or change what is written there"
    )
    fix = f"put it aside and create it again: {objects.put_aside(db, path, names)}"
    return Check("schema", "fail", said, fix)


def journal_mode(path: Path) -> Iterator[Check]:
    with reading(path) as db:
        (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        yield Check("journal mode", "ok", "WAL")
    else:
        said = f"{mode}, not WAL: readers and writers block each other"
        yield Check("journal mode", "warn", said, f"{_SETUP}, or the next daemon's start")


def autoincrement(path: Path) -> Iterator[Check]:
    """Check for AUTOINCREMENT, without which positions may be used twice or be renumbered."""
    with reading(path) as db:
        ((sql,),) = db.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'event_log'"
        )
        newest = objects.sequence(db)
        is_altered = "event_log" in objects.altered(db)
    if newest is not None:
        said = (
            "somebody raised the counter of positions in sqlite_sequence: the log is closed, or the"
            " next event leaves a gap that others take for lost events"
        )
        yield Check("seq", "fail", said, _SETUP)
        return
    words = " ".join(str(sql).replace('"', " ").replace("(", " ( ").upper().split())
    if "( SEQ INTEGER PRIMARY KEY AUTOINCREMENT" not in words:
        said = (
            "event_log.seq is not INTEGER PRIMARY KEY AUTOINCREMENT: somebody made the table"
            " again, and positions may be used twice"
        )
        yield Check("seq", "fail", said, kanbatte.COPY_LOG)
    elif is_altered:
        said = (
            "somebody made event_log in another way than the migrations do, so that it may refuse"
            " events, or compare keys otherwise"
        )
        yield Check("seq", "fail", said, kanbatte.COPY_LOG)
    else:
        yield Check("seq", "ok", "INTEGER PRIMARY KEY AUTOINCREMENT")


def triggers(path: Path) -> Iterator[Check]:
    with reading(path) as db:
        wrong = [f"{name} is {how}" for name, how in objects.amiss(db, "trigger").items()]
        others = [] if wrong else objects.foreign_triggers(db)
        refused = objects.refused(db)
    named = ", ".join(f"{name} on {table}" for name, table, _ in others)
    if wrong:
        said = f"the log can be rewritten: {', '.join(wrong)}"
        yield Check("triggers", "fail", said, _SETUP)
    elif refused:
        told = "; ".join(f"{table}: {why}" for table, why in refused.items())
        yield Check(
            "triggers",
            "fail",
            f"nothing can be written to {told}: a trigger there, or one that it sets off, names"
            " what is gone",
            "see which, and drop it (`DROP TRIGGER NAME`):"
            f" `sqlite3 -safe -readonly {quoted(path)} {quoted(_LOOK_AT_TRIGGERS)}`",
        )
    elif any(meddles for *_, meddles in others):
        yield Check(
            "triggers",
            "warn",
            "triggers of other programs may refuse or lose what is written to our tables, or write"
            f" to them: {named}",
            "see what each does, and drop what is not wanted (`DROP TRIGGER NAME`):"
            f" `sqlite3 -safe {quoted(path)} {quoted(_LOOK_AT_TRIGGERS)}`",
        )
    else:
        also = f"; other programs have triggers here: {named}" if others else ""
        yield Check("triggers", "ok", f"the log is append-only{also}")


def indexes(path: Path) -> Iterator[Check]:
    """Check the indexes that make reading fast, and the one that keeps a session in one row."""
    with reading(path) as db:
        amiss = objects.amiss(db, "index")
        others, obstacles = objects.foreign_indexes(db), objects.obstacles(db)
        doubled = migrate.doubled_keys(db) if objects.SESSION_KEY in amiss else []
    for one in others:
        drop = quoted(f"DROP INDEX {identifier(one.name)}")
        said = f"an index of another program may refuse what is written to {one.table}: {one.name}"
        if one in obstacles:
            yield Check("indexes", "fail", said, _SETUP)
        else:
            fix = f"if nothing needs it: `sqlite3 -safe {quoted(path)} {drop}`"
            yield Check("indexes", "warn", said, fix)
    if gone := [f"{name} is {how}" for name, how in amiss.items() if name != objects.SESSION_KEY]:
        said = f"{', '.join(gone)}, and reading is slow without"
        yield Check("indexes", "warn", said, _SETUP)
    elif not others:
        yield Check("indexes", "ok", "all are there")
    if how := amiss.get(objects.SESSION_KEY):
        said = f"nothing keeps a session from having two rows: {objects.SESSION_KEY} is {how}"
        fix = _SETUP
        if doubled:
            more = ", …" if len(doubled) > 3 else ""
            said += f"; {len(doubled)} do: {', '.join(doubled[:3])}{more}"
            fix += ", then `projector replay`"
        yield Check("session keys", "fail", said, fix)
    else:
        yield Check("session keys", "ok", "each session has one row at most")


def checkpoint(path: Path, code_versions: Mapping[str, int]) -> Iterator[Check]:
    """Check that each checkpoint fits the log, and that its version is not newer than the code."""
    wrong = []
    with reading(path) as db:
        for name, version, position, remembered in db.execute(
            f"SELECT name, abs(version), {READ_POSITION}, digest FROM checkpoint"
            f" WHERE {IS_NAME} AND {IS_SOUND} ORDER BY name"
        ):
            here = code_versions.get(name, version)
            if not fits_log(db, position, remembered):
                at = f"{name}@{position}"
                said = f"event_log was truncated or replaced: checkpoint {at} does not match"
                wrong.append(Check("checkpoint", "fail", said, FOLD_AGAIN))
            elif version > here:
                said = f"the views of {name} are of version {version}, the code here of {here}"
                fix = (
                    f"{upgrade()}, or its package;"
                    " where no newer one ever ran here, somebody wrote that: let the next run build"
                    f" them again: `projector projection drop {argument(name)}`"
                )
                wrong.append(Check("checkpoint", "fail", said, fix))
        if stray := objects.stray_checkpoints(db):
            said = f"{many(stray, 'row')} of checkpoint: no projection has such a name"
            wrong.append(Check("checkpoint", "warn", said, _SETUP))
    yield from wrong or [Check("checkpoint", "ok", "fits the log")]


def fits_log(db: sqlite3.Connection, position: int, remembered: str) -> bool:
    """Whether the event at a checkpoint is the one that the checkpoint remembers."""
    return not position or any(digest(row) == remembered for row in event(db, position))


def event(db: sqlite3.Connection, seq: int) -> list[LogRow]:
    """The event at a position, or none."""
    row = connection.event(db, seq)
    return [LogRow(*row)] if row else []


# Of the WAL-reset bug, by branch: https://sqlite.org/wal.html#walresetbug
_FIXED_IN: Final = ((3, 44, 6), (3, 50, 7), (3, 51, 3))


def sqlite_version(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Iterator[Check]:
    said = ".".join(map(str, version))
    if version >= next((one for one in _FIXED_IN if one[:2] == version[:2]), _FIXED_IN[-1]):
        yield Check("sqlite", "ok", f"SQLite {said}, none of whose known bugs matters here")
        return
    fixed = ", ".join(".".join(map(str, one)) for one in _FIXED_IN)
    yield Check(
        "sqlite",
        "warn",
        f"SQLite {said} has the WAL-reset bug: where several processes have the database open, a"
        " checkpoint at the very moment of another's checkpoint and write may, very rarely,"
        " corrupt it",
        f"run a Python whose SQLite has the fix ({fixed} or newer), and see to it that every"
        " other program that opens the database has it too; until then keep backups",
    )


_SETUP: Final = "`projector db setup`"
