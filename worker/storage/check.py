"""The findings of `projector doctor`, whatever the engine."""

from typing import Literal

import msgspec


class Check(msgspec.Struct, frozen=True):
    """What one check found, and the command or the setting that fixes it.

    In JSON the fix is called `mend`, as it always was: scripts of operators read it.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    fix: str = msgspec.field(default="", name="mend")
