"""The package that `projector projection new` writes: a projection and its test."""

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.projections.projection import Table
from session_projector.worker.errors import CheckFailed, UsageError
from session_projector.worker.storage.open import table_fault

_NAME: Final = re.compile("[a-z][a-z0-9_]{0,49}")
_MODULE: Final = '''\
"""The projection {name}: how many messages were written on each day (UTC)."""

from datetime import UTC, datetime

from session_projector import Event, MessagesAppended, Projection, SessionCreated, Table

Row = tuple[str, int]
"""A row of the table, in the order of its columns."""


class {cls}(Projection[Row]):
    """One row for each day on which there were messages."""

    name = "{name}"
    version = 1  # raise it with each change that makes the same events give other rows
    table = Table(
        name="{name}",
        columns={{"day": "TEXT", "messages": "INTEGER"}},
        key="day",
    )

    def key_of(self, event: Event) -> str | None:
        """The key of the row that an event changes; None skips the event."""
        if not isinstance(event.body, SessionCreated | MessagesAppended):
            return None
        return datetime.fromtimestamp(event.time // 1000, UTC).date().isoformat()

    def fold(self, view: Row | None, event: Event) -> Row:
        """The row after an event; `view` is the row before it, None if there is none yet."""
        assert isinstance(event.body, SessionCreated | MessagesAppended)
        day, messages = view or (self.key_of(event) or "", 0)
        return day, messages + event.body.messages.count
'''
_TEST: Final = '''\
"""Run it with `python -m pytest` in this folder."""

from session_projector.testing import appended, created, given, updated

from {name} import {cls}


def test_messages_are_counted_by_day() -> None:
    question = {{"role": "user", "content": "Fix the login form"}}
    answer = {{"role": "assistant", "content": "Done."}}

    given(created("A-1", question), updated("A-1", status="review")).when(
        appended("A-1", answer, question)
    ).expect({cls}(), {{"2023-11-14": {{"messages": 3}}}}, skipped=1)
'''
_PYPROJECT: Final = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "projector-{distribution}"
version = "0.1.0"
description = "The projection {name} for projector"
requires-python = ">=3.11"
dependencies = ["session-projector"]

# By this, every projector that is installed beside this package runs the projection.
[project.entry-points."projector.projections"]
{name} = "{name}:{cls}"

[tool.hatch.build.targets.wheel]
only-include = ["{name}.py"]
"""
_README: Final = """\
The projection `{name}` for projector. `pip install .` beside projector, then restart the daemon.
"""


def write(name: str) -> tuple[Path, str]:
    """Write the package into a new folder of the projection's name in the working folder; returns
    the folder and the class as `module:Name`. Raises `UsageError` for a name that cannot be one,
    and `CheckFailed` where there is such a folder."""
    if fault := _fault(name):
        raise UsageError(f"{name!r} cannot be the name of a projection: {fault}", "give another")
    folder, cls = Path(name), "".join(word.capitalize() for word in name.split("_"))
    files = {
        f"{name}.py": _MODULE,
        f"test_{name}.py": _TEST,
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
    }
    try:
        folder.mkdir()
    except FileExistsError:
        raise CheckFailed(
            f"{name} is there already, and was left as it is",
            "give another name, or work in another folder",
        ) from None
    distribution = name.strip("_").replace("_", "-")
    for file, text in files.items():
        (folder / file).write_text(text.format(name=name, cls=cls, distribution=distribution))
    return folder, f"{name}:{cls}"


def _fault(name: str) -> str:
    """Why a projection, its table and its module cannot have a name; '' if they can."""
    if not _NAME.fullmatch(name):
        return "it is not a small letter followed by at most 49 small letters, digits and _"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "it is a word of Python's"
    if name in {one for p in (*BUILT_IN, SEARCH) for one in (p.name, p.table.name)}:
        return "projector has a projection or a table of that name"
    if name in sys.stdlib_module_names or ((spec := find_spec(name)) and spec.origin):
        return "there is a Python module of that name already"
    return table_fault(Table(name, {"day": "TEXT", "messages": "INTEGER"}, "day"))
