"""Everything a user can cause: what happened, to which file or event, and what fixes it."""

import re
import shlex
from pathlib import Path
from typing import ClassVar, Final


class ProjectorError(Exception):
    """Ends a command with one line, a hint and its exit code, never with a traceback.

    A hint names commands of this program in backticks and without the database, `projector status`;
    the command line, which knows the database, adds it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Finding(ProjectorError):
    """The answer is no: no such session, an event that would not fold."""


class BadUsage(ProjectorError):
    """The call's words are off."""

    exit_code = 2


class RetryLater(ProjectorError):
    """A retry may mend it: the database is locked, the disk full, the file replaced."""

    exit_code = 3


class Unavailable(RetryLater):
    """The database may not be written or read just now; a daemon waits and goes on."""


class NeedsPerson(ProjectorError):
    """No retry mends it: unknown layout, newer schema, corrupt file, a log that does not fit."""

    exit_code = 4


class ProjectionFailed(NeedsPerson):
    """One projection cannot go on; a daemon sets it aside, and goes on with the others."""

    def __init__(self, projection: str, message: str, hint: str) -> None:
        super().__init__(f"{projection}: {message}", hint)
        self.projection = projection


class LostRace(Exception):
    """Somebody else moved the checkpoint: drop what is remembered of it and read again."""


def quoted(path: Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def naming(database: str, hint: str) -> str:
    """A hint whose commands of this program, in backticks, name a database, safe to paste."""
    option = f" -d {shlex.quote(database)}"
    return _QUOTED.sub(
        lambda quoted: _COMMAND.sub(lambda command: command[0] + option, quoted[0]), hint
    )


_QUOTED: Final = re.compile("`[^`]+`")
_COMMAND: Final = re.compile(r"\bprojector (?!.* -d )(?:(?! && )[^`])+")
