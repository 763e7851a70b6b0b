"""The wall clock, times as text, and an interruptible wait."""

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anyio


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def when(milliseconds: int) -> str:
    """A time as ISO 8601 in UTC, or as a plain number if it is beyond the calendar."""
    try:
        return (EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{milliseconds} ms"


async def wait(seconds: float, stop: "anyio.Event") -> None:
    """Wait for a number of seconds, or until `stop`."""
    import anyio  # commands that only read the clock do not need it

    with anyio.move_on_after(seconds):
        await stop.wait()
