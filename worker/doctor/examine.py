"""`projector doctor`: what is wrong with a database and around it, and what mends it.

By reading alone; a check that cannot read says so, and the others go on.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from session_projector.worker import registry
from session_projector.worker.doctor import daemon, host
from session_projector.worker.sessions.read import WAL_WARNING_BYTES
from session_projector.worker.storage.check import Check, attempt
from session_projector.worker.storage.sqlite.doctor import checks, old_writers, rights

_Named = tuple[str, Callable[[Path], Iterator[Check]]]


def examine(path: Path) -> Iterator[Check]:
    """Every check, in the order in which one would look."""
    allowed = [*attempt("rights", path, rights.rights)]
    inside: tuple[_Named, ...] = (
        ("database", partial(checks.opens, rights=allowed)),
        ("schema", checks.schema),
        ("journal mode", checks.journal_mode),
        ("seq", checks.autoincrement),
        ("triggers", checks.triggers),
        ("indexes", checks.indexes),
        ("session keys", checks.session_keys),
        ("clock", _clock),
        ("checkpoint", _checkpoint),
        ("projections", daemon.projections),
        ("old writers", old_writers.old_writers),
        ("daemon", daemon.daemon),
    )
    around: tuple[_Named, ...] = (
        ("sqlite", lambda _: checks.sqlite_version()),
        ("filesystem", host.filesystem),
        ("rights", lambda _: iter(allowed)),
        ("wal", partial(checks.wal, large_bytes=WAL_WARNING_BYTES)),
        ("space", host.space),
        ("litestream", host.litestream),
    )
    for name, check in inside:
        found = [*attempt(name, path, check)]
        yield from found
        if name in ("database", "schema") and any(one.level != "ok" for one in found):
            break  # what comes next asks its tables
    for name, check in around:
        yield from attempt(name, path, check)


def _clock(path: Path) -> Iterator[Check]:
    """This machine's, and where it can be right, the writers'."""
    yield from [*host.clock(time.time_ns() // 1_000_000)] or checks.clock(path)


def _checkpoint(path: Path) -> Iterator[Check]:
    return checks.checkpoint(path, {one.name: one.version for one in registry.known()})
