"""Projections of other packages, for daemons started with `--projection support.extensions:…`."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from session_projector.projections.event import Event, SessionCreated
from session_projector.projections.projection import Projection, Table
from support import PROJECTOR

HOLD = Path("hold")
"""In the working directory, which a process that is forked gets, too."""
TESTS = Path(__file__).parents[1]
PROGRAM = ["/usr/bin/env", f"PYTHONPATH={TESTS}:{TESTS.parent}", *PROJECTOR]
"""It finds these, and the program of the same folder, whichever else is installed; so do those
that are forked."""


class PerProject(Projection):
    """The number of sessions in a project."""

    name = "per_project"
    version = 1
    events = frozenset({"session_created"})
    table = Table(
        name="per_project", columns={"project": "TEXT", "sessions": "INTEGER"}, key="project"
    )

    def key_of(self, event: Event) -> str:
        assert isinstance(event.body, SessionCreated)
        return event.body.project

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), view[1] + 1 if view else 1)


class Slower(PerProject):
    """A later version with one more column; it is slow while the file `hold` exists."""

    version = 2
    table = Table(
        name="per_project",
        columns={"project": "TEXT", "sessions": "INTEGER", "latest": "TEXT"},
        key="project",
        indexes=("sessions",),
    )

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        if HOLD.exists():
            time.sleep(0.008)
        return (self.key_of(event), view[1] + 1 if view else 1, event.session_id)


class Elsewhere(PerProject):
    """A later version with a different column type, in a table with a different name."""

    version = 2
    table = Table(name="projects", columns={"project": "TEXT", "sessions": "REAL"}, key="project")

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), view[1] + 1.0 if view else 1.0)


class Misshapen(Elsewhere):
    """The same as `Elsewhere`, but in the table of version 1."""

    table = Table(
        name="per_project", columns={"project": "TEXT", "sessions": "REAL"}, key="project"
    )


class Widened(PerProject):
    """The same version with one more column."""

    table = Slower.table


class Broken(PerProject):
    """A projection that fails without an event being at fault."""

    built_in = True

    def to_row(self, view: Any) -> Any:
        raise ZeroDivisionError("its own words")


class Faulty(PerProject):
    """A later version that cannot fold any event."""

    version = 2

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        raise ZeroDivisionError


class Hopeless(Slower):
    """A later version that fails without an event being at fault."""

    built_in = True

    def to_row(self, view: Any) -> Any:
        raise ZeroDivisionError


class Unreadable(PerProject):
    """A projection that cannot read what it wrote."""

    def from_row(self, row: Any) -> Any:
        raise KeyError("sessions")


class Greedy(PerProject):
    """A projection that needs more memory than there is, for a project called `much`."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        if self.key_of(event) == "much":
            return ("x" * 2**62,)
        return super().fold(view, event)


ESCAPES: dict[str, type[BaseException]] = {
    "cancelled": asyncio.CancelledError,
    "interrupted": KeyboardInterrupt,
    "ended": SystemExit,
    "closed": GeneratorExit,
}


class Escaping(PerProject):
    """A projection that raises what is no `Exception`, for projects called by it."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        if error := ESCAPES.get(self.key_of(event)):
            raise error
        return super().fold(view, event)


class EscapingLater(PerProject):
    """A projection that raises the same where no event is to blame."""

    def settled(self, view: tuple[Any, ...]) -> tuple[Any, ...]:
        if error := ESCAPES.get(view[0]):
            raise error
        return view


class Shifting(PerProject):
    """A projection whose keys differ from process to process."""

    def key_of(self, event: Event) -> str:
        return str(hash(event.session_id))


class Chancy(PerProject):
    """A projection that is not deterministic."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), random.randrange(2**60))


class Ordered(PerProject):
    """A projection that is deterministic only within one process."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), hash(event.session_id) % 2**60)


class Nameless(Projection):
    """A projection that lacks nearly everything."""


class Thief(PerProject):
    """A projection that names the log as its table."""

    name = "thief"
    table = Table(name="Event_Log", columns={"project": "TEXT"}, key="project")


class Worded(PerProject):
    """A projection with a column whose name is an SQL keyword."""

    name = "worded"
    table = Table(name="worded", columns={"project": "TEXT", "group": "TEXT"}, key="project")


class Twin(PerProject):
    """A projection with the name of a built-in one."""

    name = "sessions"


class Named(Projection):
    """A projection whose columns have the names of a checkpoint's columns."""

    name = "named"
    version = 1
    table = Table(
        name="named",
        columns={"name": "TEXT", "version": "INTEGER", "position": "INTEGER", "digest": "BLOB"},
        key="name",
    )

    def key_of(self, event: Event) -> str:
        return event.session_id

    def fold(self, view: Any, event: Event) -> Any:
        return (event.session_id, event.seq, event.time, event.id.encode())


class CreatedPerDay(Projection):
    """A projection that aggregates over sessions: how many a project got each day."""

    name = "created_per_day"
    version = 1
    table = Table(
        name="created_per_day",
        columns={"id": "TEXT", "project": "TEXT", "day": "INTEGER", "count": "INTEGER"},
        key="id",
    )

    def key_of(self, event: Event) -> str | None:
        if not isinstance(event.body, SessionCreated):
            return None
        return f"{event.body.project}/{event.time // 86_400_000}"

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        assert isinstance(event.body, SessionCreated)
        key, project = self.key_of(event), event.body.project
        return (key, project, event.time // 86_400_000, view[3] + 1 if view else 1)
