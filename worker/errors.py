"""The errors that a user can cause: what happened, to which file or event, and what fixes it."""

import re
import shlex
from pathlib import Path
from typing import ClassVar, Final


class ProjectorError(Exception):
    """Base of the errors that end a command with one line, a hint and an exit code, no traceback.

    A hint has this program's commands in backticks and without the database, `projector status`;
    the command line, which knows the database, adds it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckFailed(ProjectorError):
    """Exit code 1: the answer is no, such as no such session, or an event that would not fold."""


class UsageError(ProjectorError):
    """Exit code 2: the command or the call is wrong, such as an invalid value."""

    exit_code = 2


class TransientError(ProjectorError):
    """Exit code 3: transient, safe to retry: database locked, disk full, file replaced."""

    exit_code = 3


class DatabaseUnavailable(TransientError):
    """Exit code 3: the database cannot be written or read for now; a daemon waits and continues."""


class InterventionRequired(ProjectorError):
    """Exit code 4: permanent, needs an operator: no database, unknown layout, newer schema, corrupt
    file, or a log that does not match its checkpoint."""

    exit_code = 4


class ProjectionFailed(InterventionRequired):
    """Exit code 4: one projection cannot continue; a daemon sets it aside and runs the others."""

    def __init__(self, projection: str, message: str, hint: str) -> None:
        super().__init__(f"{projection}: {message}", hint)
        self.projection = projection


class LostRace(Exception):
    """Another process moved the checkpoint: drop what is remembered of it and read it again."""


def quoted(path: Path) -> str:
    """A path, quoted for a shell."""
    return shlex.quote(str(path))


def naming(database: str, hint: str) -> str:
    """Add `-d DATABASE`, quoted for a shell, to this program's commands in a hint."""
    option = f" -d {shlex.quote(database)}"
    return _QUOTED.sub(
        lambda quoted: _COMMAND.sub(lambda command: command[0] + option, quoted[0]), hint
    )


_QUOTED: Final = re.compile("`[^`]+`")
_COMMAND: Final = re.compile(r"\bprojector (?!.* -d )(?:(?! && )[^`])+")
