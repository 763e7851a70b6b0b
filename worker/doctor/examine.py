"""`projector doctor`: what is wrong with a database and around it, and what fixes it.

Checks only read; one that cannot read says so, and the others go on.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial

from session_projector.worker import registry
from session_projector.worker.doctor import daemon, event_times, host
from session_projector.worker.errors import DatabaseUnavailable, ProjectorError, quoted
from session_projector.worker.storage.port import FOLD_AGAIN, Check, Database


def examine(database: Database) -> list[Check]:
    """What every check found: first what fails, of that a log that was truncated or replaced, then
    what a daemon says it waits for, as each may be the cause of all else; then in the order in
    which an operator would look. On such a log no daemon starts, so that none is said to."""
    levels, found = ["fail", "warn", "ok"], [*_checks(database)]
    if any(one.fix == FOLD_AGAIN for one in found):
        found = [one for one in found if one.fix != daemon.START]
    return sorted(found, key=lambda one: (levels.index(one.level), one.fix != FOLD_AGAIN))


def _checks(database: Database) -> Iterator[Check]:
    """Make every check; one cause is found once."""
    told: set[str] = set()
    for leader, lacks in daemon.troubled(database):
        yield from _attempt("daemon", database, partial(daemon.trouble, database, leader), ())
        told.add(lacks)
    versions = {projection.name: projection.version for projection in registry.known(search=True)}
    with database.checks(versions) as (inside, around):
        inside["clock"] = partial(event_times.clock, database, inside.get("clock"))
        if check := inside.get("checkpoint"):
            inside["checkpoint"] = partial(daemon.checkpoint, database, check)
        inside["projections"] = lambda: daemon.projections(database)
        inside["quarantine"] = lambda: daemon.quarantine(database)
        inside["event types"] = lambda: daemon.types(database)
        inside["search"] = lambda: daemon.search(database)
        if not told:
            inside["daemon"] = lambda: daemon.daemon(database)
        if file := database.file:
            around["filesystem"] = lambda: host.filesystem(file)
            if "space" not in told:
                around["space"] = lambda: host.space(file)
            around["litestream"] = lambda: host.litestream(file)
        for name, check in inside.items():
            found = [*_attempt(name, database, check, told)]
            yield from found
            if name in ("database", "schema") and {one.level for one in found} != {"ok"}:
                if name == "database" and database.is_served:
                    return  # every check would say the same
                break  # what comes next asks its tables
        for name, check in around.items():
            yield from _attempt(name, database, check, told)


def _attempt(
    name: str, database: Database, check: Callable[[], Iterator[Check]], told: Collection[str]
) -> Iterator[Check]:
    """Make a check; an error that it raises is what it found, unless it lacks what was `told`."""
    try:
        yield from check()
    except ProjectorError as error:
        if isinstance(error, DatabaseUnavailable) and error.lacks in told:
            return
        yield Check(name, "fail", str(error), error.hint)
    except OSError as error:
        said = f"{error.filename or database.name}: {error.strerror}"
        folder = f"look at `ls -la {quoted(database.file.parent)}`" if database.file else ""
        yield Check(name, "fail", said, folder)
    except Exception as error:  # of rows that others left in our tables, say
        said = f"the check failed: {type(error).__name__}: {error}"
        yield Check(name, "fail", said, "see what is wrong: `projector verify`")
