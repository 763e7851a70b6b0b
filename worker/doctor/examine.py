"""`projector doctor`: what is wrong with a database and around it, and what fixes it.

Checks only read; one that cannot read says so, and the others go on.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from session_projector.worker import registry
from session_projector.worker.doctor import daemon, host
from session_projector.worker.errors import ProjectorError, quoted
from session_projector.worker.sessions.read import WAL_WARNING_BYTES
from session_projector.worker.storage.check import Check
from session_projector.worker.storage.sqlite.doctor import checks, old_writers, rights

_Checks = dict[str, Callable[[Path], Iterator[Check]]]


def examine(path: Path) -> Iterator[Check]:
    """Make every check, in the order in which an operator would."""
    allowed = [*_attempt("rights", path, rights.rights)]
    inside: _Checks = {
        "database": partial(checks.opens, rights=allowed),
        "schema": checks.schema,
        "journal mode": checks.journal_mode,
        "seq": checks.autoincrement,
        "triggers": checks.triggers,
        "indexes": checks.indexes,
        "clock": _clock,
        "checkpoint": _checkpoint,
        "projections": daemon.projections,
        "old writers": old_writers.old_writers,
        "daemon": daemon.daemon,
    }
    around: _Checks = {
        "sqlite": lambda _: checks.sqlite_version(),
        "filesystem": host.filesystem,
        "rights": lambda _: iter(allowed),
        "wal": partial(checks.wal, large_bytes=WAL_WARNING_BYTES),
        "space": host.space,
        "litestream": host.litestream,
    }
    for name, check in inside.items():
        found = [*_attempt(name, path, check)]
        yield from found
        if name in ("database", "schema") and any(one.level != "ok" for one in found):
            break  # what comes next asks its tables
    for name, check in around.items():
        yield from _attempt(name, path, check)


def _attempt(name: str, path: Path, check: Callable[[Path], Iterator[Check]]) -> Iterator[Check]:
    """Make a check; an error that it raises is what it found."""
    try:
        yield from check(path)
    except ProjectorError as error:
        yield Check(name, "fail", str(error), error.hint)
    except OSError as error:
        said = f"{error.filename or path}: {error.strerror}"
        yield Check(name, "fail", said, f"look at `ls -la {quoted(path.parent)}`")
    except Exception as error:  # of rows that others left in our tables, say
        said = f"the check failed: {type(error).__name__}: {error}"
        fix = f"see what is wrong: `projector verify -d {quoted(path)}`"
        yield Check(name, "fail", said, fix)


def _clock(path: Path) -> Iterator[Check]:
    """Check the clock of this machine and, where it can be right, those of the writers."""
    yield from [*host.clock(time.time_ns() // 1_000_000)] or checks.clock(path)


def _checkpoint(path: Path) -> Iterator[Check]:
    return checks.checkpoint(path, {one.name: one.version for one in registry.known()})
