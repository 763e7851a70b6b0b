"""What `projector demo` shows: the log and the views as who looks all the time sees them."""

import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from session_projector.projections.decode import decode
from session_projector.projections.event import (
    LogRow,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
    Unfoldable,
    session_of,
)
from session_projector.projections.session_index import Entry
from session_projector.worker.cli import output
from session_projector.worker.cli.color import Style
from session_projector.worker.errors import TransientError
from session_projector.worker.sessions.read import sessions
from session_projector.worker.sessions.timeline import SESSIONS
from session_projector.worker.storage.port import Store

KILL_EVERY_S: Final = 15.0
KEPT: Final = 200
"""Events that are kept to be shown."""
Said = tuple[str, Style]


class Happened(msgspec.Struct):
    """An event in the log: committed after `after_s` of the monotonic clock, and in the views at
    most `fresh_ms` after its commit, None while it is not in them."""

    seq: int
    session_id: str
    text: str
    after_s: float
    fresh_ms: float | None = None


class Scene:
    """The last events, all sessions, and what became of the daemon and of `verify`."""

    def __init__(
        self, where: str, store: Store, projector: Callable[..., "subprocess.Popen[bytes]"]
    ) -> None:
        """`projector` starts a command of this program on the database."""
        self.where = where
        self.events: deque[Happened] = deque(maxlen=KEPT)
        self.sessions: dict[str, Entry] = {}
        self.newest = 0
        self.killed: Said = f"every {KILL_EVERY_S:.0f} s the daemon is killed with kill -9", "dim"
        self.verified: Said = "", "dim"
        self._store = store
        self._projector = projector
        self._position = self._seen = 0
        """All views hold their events up to the one; the last change seen is that of the other."""
        self._looked_s = time.monotonic()
        self._kills = self._unread = 0
        self._dead_at: int | None = None
        """What the views held when the daemon was killed, until the next one has caught up."""
        self._verify: subprocess.Popen[bytes] | None = None
        self._start()

    def looks(self, until_s: float | None) -> Iterator[list[Entry]]:
        """Look again and again, until a time of the monotonic clock; yields the sessions that
        changed. Raises `TransientError` where the daemon ended by itself."""
        while until_s is None or time.monotonic() < until_s:
            if self._daemon.poll() is not None:
                raise TransientError("the daemon of the demo has ended", "its log is above")
            yield self._look()
            self._follow_daemon()
            self._follow_verify()
            if self._dead_at is None and time.monotonic() > self._started_s + KILL_EVERY_S:
                self.kill()

    @property
    def lag(self) -> int:
        """How many events the views do not hold."""
        return self.newest - self._position

    def kill(self) -> None:
        """Kill the daemon, and start another one at once."""
        self._daemon.kill()
        self._daemon.wait()
        self._kills += 1
        self._unread = 0
        self._dead_at = self._folded()
        self.killed = f"kill -9 ({self._kills}): the daemon is dead, the next one starts …", "red"
        self._start()

    def verify(self) -> None:
        """Begin to verify the views, unless that is under way."""
        if self._verify is None:
            how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            self._verify = self._projector("verify", **how)
            self.verified = "verify: folding the log again …", "yellow"

    def _start(self) -> None:
        self._started_s = time.monotonic()
        self._daemon = self._projector("run", "--log-level", "warning")

    def _folded(self) -> int:
        checkpoint = self._store.checkpoints.get(SESSIONS.name)
        return checkpoint.complete if checkpoint else 0

    def _look(self) -> list[Entry]:
        """What is new was committed after the last look began."""
        after_s, self._looked_s = self._looked_s, time.monotonic()
        if not self._store.changed():
            return []
        for row in self._store.log.page(start=self.newest + 1):
            self.events.append(Happened(row.seq, *_told(row), after_s))
            self.newest = row.seq
        self._position = self._folded()
        now_s = time.monotonic()
        for event in self.events:
            if event.fresh_ms is None and event.seq <= self._position:
                event.fresh_ms = (now_s - event.after_s) * 1000
        changed = [*sessions(self._store, after=self._seen)]
        for entry in changed:
            self.sessions[entry.session_id] = entry
            self._seen = entry.last_seq
        return changed

    def _follow_daemon(self) -> None:
        self._unread = max(self._unread, self.lag)
        if self._dead_at is not None and self._position > self._dead_at and not self.lag:
            self._dead_at = None
            took_s = time.monotonic() - self._started_s
            said = f"{self._unread} events unread; caught up in {took_s:.1f} s"
            self.killed = f"kill -9 ({self._kills}): {said}", "green"

    def _follow_verify(self) -> None:
        if self._verify is None or self._verify.poll() is None:
            return
        said, _ = self._verify.communicate()
        lines = said.decode(errors="replace").splitlines()
        sums = [line for line in lines if " views differ" in line]
        first = [line.removesuffix(" views differ") for line in sums[:-1]]
        told = ", ".join([*first, *(sums or lines)[-1:]])
        self.verified = (
            f"verify, {time.strftime('%H:%M:%S')}: {told}",
            "red" if self._verify.returncode else "green",
        )
        self._verify = None


def _told(row: LogRow) -> tuple[str, str]:
    """The session that an event is about, and what it says of it."""
    session_id = session_of(str(row.key))
    try:
        event = decode(row)
    except Unfoldable:
        return session_id, "goes to quarantine"
    match event.body:
        case SessionCreated(messages=messages) | MessagesAppended(messages=messages):
            said = messages.values[-1:]
            return session_id, " ".join(map(output.content, said))
        case SessionUpdated(status=str(status)):
            return session_id, f"status: {status}"
    return session_id, event.type
