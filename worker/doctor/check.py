"""What a check of `projector doctor` says."""

from typing import Literal

import msgspec


class Checked(msgspec.Struct, frozen=True):
    """What one check found, and the command or the setting that mends it."""

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""
