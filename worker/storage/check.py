"""The findings of `projector doctor`, whatever the engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from session_projector.worker.errors import ProjectorError, quoted


class Check(msgspec.Struct, frozen=True):
    """What one check found, and the command or the setting that fixes it.

    In JSON the fix is called `mend`, as it always was: scripts of operators read it.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    fix: str = msgspec.field(default="", name="mend")


def attempt(name: str, path: Path, check: Callable[[Path], Iterator[Check]]) -> Iterator[Check]:
    """What a check finds; where it raises, that is what it found, and the others go on."""
    try:
        yield from check(path)
    except ProjectorError as error:
        yield Check(name, "fail", str(error), error.hint)
    except OSError as error:
        said = f"{error.filename or path}: {error.strerror}"
        yield Check(name, "fail", said, f"look at `ls -la {quoted(path.parent)}`")
    except Exception as error:  # of rows that others left in our tables, say
        said = f"it could not be looked at: {type(error).__name__}: {error}"
        fix = f"see what is wrong: `projector verify -d {quoted(path)}`"
        yield Check(name, "fail", said, fix)
