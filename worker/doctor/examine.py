"""`projector doctor`: what is wrong with a database and around it, and what fixes it.

Checks only read; one that cannot read says so, and the others go on.
"""

from collections.abc import Callable, Iterator

from session_projector.worker import registry
from session_projector.worker.clock import now_ms
from session_projector.worker.doctor import daemon, host
from session_projector.worker.errors import ProjectorError, quoted
from session_projector.worker.storage.port import Check, Database


def examine(database: Database) -> Iterator[Check]:
    """Make every check, in the order in which an operator would."""
    versions = {projection.name: projection.version for projection in registry.known(search=True)}
    with database.checks(versions) as (inside, around):
        if clock := inside.get("clock"):  # where that of this machine can be right
            inside["clock"] = lambda: iter([*host.clock(now_ms())] or clock())
        inside["projections"] = lambda: daemon.projections(database)
        inside["quarantine"] = lambda: daemon.quarantine(database)
        inside["search"] = lambda: daemon.search(database)
        inside["daemon"] = lambda: daemon.daemon(database)
        if file := database.file:
            around["filesystem"] = lambda: host.filesystem(file)
            around["space"] = lambda: host.space(file)
            around["litestream"] = lambda: host.litestream(file)
        for name, check in inside.items():
            found = [*_attempt(name, database, check)]
            yield from found
            if name in ("database", "schema") and any(one.level != "ok" for one in found):
                if name == "database" and database.is_served:
                    return  # every check would say the same
                break  # what comes next asks its tables
        for name, check in around.items():
            yield from _attempt(name, database, check)


def _attempt(
    name: str, database: Database, check: Callable[[], Iterator[Check]]
) -> Iterator[Check]:
    """Make a check; an error that it raises is what it found."""
    try:
        yield from check()
    except ProjectorError as error:
        yield Check(name, "fail", str(error), error.hint)
    except OSError as error:
        said = f"{error.filename or database.name}: {error.strerror}"
        folder = f"look at `ls -la {quoted(database.file.parent)}`" if database.file else ""
        yield Check(name, "fail", said, folder)
    except Exception as error:  # of rows that others left in our tables, say
        said = f"the check failed: {type(error).__name__}: {error}"
        yield Check(name, "fail", said, "see what is wrong: `projector verify`")
