"""How much is read at once, and how long a lock of another process is waited for."""

from typing import Final

import msgspec

BATCH_EVENTS: Final = 8192
"""The most events of one batch: what falls into it for one view is one write."""
BUSY_TIMEOUT_S: Final = 5.0
"""How long a statement waits for a lock of another process, in seconds."""
ASK_EVERY_S: Final = 0.00005
"""Between two questions of a thread that waits for a commit; an event loop's timers are whole
milliseconds."""


class Limits(msgspec.Struct, frozen=True):
    """How much one call reads at most, and how long it waits for a lock of another process."""

    page_events: int = 4000
    """Events of a page where the caller does not say how many."""
    range_events: int = 15_000
    """A full scan begins a page with the next key after so many events: a few pages."""
    page_bytes: int = 8 * 1024 * 1024
    """A page ends with the event whose `id`, `key` and `data` take it above this."""
    page_keys: int = 500
    """Keys of views, or positions of strays, of a page."""
    page_matches: int = 60
    """Rows of a page of those that have some words."""
    view_bytes: int = 24 * 1024 * 1024
    """What one batch may load of views, and so about what it writes while it holds the lock."""
    busy_timeout_s: float = BUSY_TIMEOUT_S
