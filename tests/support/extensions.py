"""Projections of other people, for daemons that are started with `--projection extensions:…`."""

import os
import random
import time
from pathlib import Path
from typing import Any

from session_projector.projections.event import Event, SessionCreated
from session_projector.projections.projection import Projection, Table
from support import PROJECTOR

HOLD = Path(os.environ["HOLD"]) if "HOLD" in os.environ else None
PROGRAM = ["/usr/bin/env", f"PYTHONPATH={Path(__file__).parents[1]}", *PROJECTOR]


class PerProject(Projection):
    """How many sessions a project has."""

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
    """A later version, with one column more; it is slow for as long as the file HOLD is there."""

    version = 2
    table = Table(
        name="per_project",
        columns={"project": "TEXT", "sessions": "INTEGER", "latest": "TEXT"},
        key="project",
        indexes=("sessions",),
    )

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        if HOLD and HOLD.exists():
            time.sleep(0.008)
        return (self.key_of(event), view[1] + 1 if view else 1, event.session_id)


class Elsewhere(PerProject):
    """A later version whose column is another one, in a table of another name."""

    version = 2
    table = Table(name="projects", columns={"project": "TEXT", "sessions": "REAL"}, key="project")

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), view[1] + 1.0 if view else 1.0)


class Misshapen(Elsewhere):
    """The same in the table of version 1."""

    table = Table(
        name="per_project", columns={"project": "TEXT", "sessions": "REAL"}, key="project"
    )


class Widened(PerProject):
    """One column more, and the same version."""

    table = Slower.table


class Broken(PerProject):
    """Fails where no event can be blamed for it."""

    built_in = True

    def to_row(self, view: Any) -> Any:
        raise ZeroDivisionError


class Faulty(PerProject):
    """A later version that can fold nothing."""

    version = 2

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        raise ZeroDivisionError


class Hopeless(Slower):
    """A later version that fails where no event can be blamed for it."""

    built_in = True

    def to_row(self, view: Any) -> Any:
        raise ZeroDivisionError


class Unreadable(PerProject):
    """Cannot read what it wrote."""

    def from_row(self, row: Any) -> Any:
        raise KeyError("sessions")


class Greedy(PerProject):
    """Wants more memory than there is, for a project called `much`."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        if self.key_of(event) == "much":
            return ("x" * 2**62,)
        return super().fold(view, event)


class Shifting(PerProject):
    """Keyed by what differs from process to process."""

    def key_of(self, event: Event) -> str:
        return str(hash(event.session_id))


class Chancy(PerProject):
    """Not deterministic."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), random.randrange(2**60))


class Ordered(PerProject):
    """Not deterministic either, but the same for as long as a process lives."""

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        return (self.key_of(event), hash(event.session_id) % 2**60)


class Nameless(Projection):
    """Lacks nearly everything."""


class Thief(PerProject):
    """Wants the log for its table."""

    name = "thief"
    table = Table(name="Event_Log", columns={"project": "TEXT"}, key="project")


class Worded(PerProject):
    """Wants a column that SQL has another use for."""

    name = "worded"
    table = Table(name="worded", columns={"project": "TEXT", "group": "TEXT"}, key="project")


class Twin(PerProject):
    """Is called as one of the built-in ones."""

    name = "sessions"


class Named(Projection):
    """Every column that a checkpoint has too."""

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
    """Gathers over many sessions: how many a project got each day."""

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
