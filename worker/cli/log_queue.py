"""The log of the daemon: bounded in rate, and written by a thread of its own, so that nothing waits
for whoever reads standard error."""

import atexit
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from queue import Empty, SimpleQueue
from typing import Any, Final, TextIO

import structlog

from session_projector.worker.errors import no_thread

MOST_WRITES: Final = 1000
"""While so many lines, or groups of lines, wait to be read, further ones are left out."""
LONGEST_PART: Final = 64 * 1024
"""Characters of a line that is kept until its end is written."""
LINES_AT_ONCE: Final = 100
LINES_PER_S: Final = 10
"""Of one event and level, so that all that is logged is less than journald lets through."""
LAST_WORDS_S: Final = 2.0
"""How long the end of the process waits for what is still to be written."""

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class LogQueue:
    """A text stream that takes everything at once and never raises.

    Text is left out, and its lines counted, while the one before is not read (a pipe that is full,
    a stopped terminal) or cannot be written (a full disk). `log_lines_dropped` says so as soon as
    something can be written again.
    """

    def __init__(self, stream: TextIO, limit: "LineLimit") -> None:
        """Raises `DatabaseUnavailable` where no thread can be started."""
        self._descriptor = stream.fileno()
        self.encoding = stream.encoding
        self._limit = limit
        self._writes: SimpleQueue[str | None] = SimpleQueue()
        self._lock = threading.RLock()  # the garbage collector may print while it is held
        self._of_thread = threading.local()
        """`part`, the beginning of a line that the thread has not ended yet."""
        self._dropped = 0
        limit.held_back = lambda: self._writes.put("")
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        with no_thread():
            self._thread.start()
        atexit.register(self._end)

    def write(self, text: str) -> int:
        before, self._of_thread.part = getattr(self._of_thread, "part", ""), ""
        lines, newline, part = (before + text).rpartition("\n")
        if len(part) > LONGEST_PART:
            lines, newline, part = lines + newline, part, ""
        self._of_thread.part = part
        if newline:
            self._put(lines + newline)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def _put(self, text: str) -> None:
        """The thread's own lines, which are few, always find room."""
        if self._writes.qsize() < MOST_WRITES or threading.current_thread() is self._thread:
            self._writes.put(text)
        else:
            self._drop(text)

    def _end(self) -> None:
        if getattr(self._of_thread, "part", ""):
            self.write("\n")
        self._writes.put(None)
        self._thread.join(LAST_WORDS_S)

    def _run(self) -> None:
        """Write what comes, and the lines that the limit holds back, each in its time."""
        while True:
            try:
                text = self._writes.get(timeout=self._limit.due_s())
            except Empty:
                text = ""
            self._limit.release(all_of_them=text is None)
            if text is None:
                break
            self._write(text)
        while not self._writes.empty():
            self._write(self._writes.get() or "")

    def _write(self, text: str) -> None:
        data = text.encode(self.encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever started the daemon made it so
                select.select([], [self._descriptor], [])
            except OSError:
                self._drop(text)
                return
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("log_lines_dropped", lines=dropped)

    def _drop(self, text: str) -> None:
        with self._lock:
            self._dropped += text.count("\n")


class LineLimit:
    """A processor of structlog that lets so many lines of an event through.

    Of the others, the last is held back until it may be written, with `left_out`, the number of
    those that were not.
    """

    def __init__(self) -> None:
        self.held_back: Callable[[], object] = lambda: None
        """Called when a line is held back, and none of its event was before."""
        self._lock = threading.RLock()
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def __call__(
        self, _logger: Any, method: str, fields: MutableMapping[str, Any]
    ) -> Mapping[str, Any]:
        with self._lock:
            bucket = self._buckets.setdefault((str(fields.get("event")), method), _Bucket())
            waits = bucket.held is not None
            bucket.left_out += waits
            if bucket.take():
                bucket.held = None
                left_out, bucket.left_out = bucket.left_out, 0
                return {**fields, "left_out": left_out} if left_out else fields
            bucket.held = dict(fields)
        if not waits:
            self.held_back()
        raise structlog.DropEvent

    def due_s(self) -> float | None:
        """Seconds until a line that is held back may be written; None where there is none."""
        with self._lock:
            held = [bucket.due_s() for bucket in self._buckets.values() if bucket.held is not None]
        return min(held, default=None)

    def release(self, *, all_of_them: bool = False) -> None:
        """Log the lines that were held back and may be written by now."""
        with self._lock:
            due = []
            for (_, method), bucket in self._buckets.items():
                if bucket.held is not None and (all_of_them or bucket.due_s() == 0):
                    if all_of_them:
                        bucket.full_at -= bucket.due_s()
                    due.append((method, bucket.held))
                    bucket.held = None
        for method, fields in due:
            getattr(log, method)(**fields)


class _Bucket:
    """How many lines of an event may be written now; the lock of the limit is held."""

    def __init__(self) -> None:
        self.held: dict[str, Any] | None = None
        self.left_out = 0
        self.full_at = 0.0
        """When so many as `LINES_AT_ONCE` may be again, by the monotonic clock."""

    def take(self) -> bool:
        if self.due_s():
            return False
        self.full_at = max(self.full_at, time.monotonic()) + 1 / LINES_PER_S
        return True

    def due_s(self) -> float:
        """Seconds until a line may be written."""
        return max(self.full_at - time.monotonic() - (LINES_AT_ONCE - 1) / LINES_PER_S, 0)
