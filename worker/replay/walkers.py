"""Processes that read, fold and compare for the scans of one command."""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, Final, Self

from anyio import to_thread

from session_projector.projections.projection import Projection
from session_projector.worker.errors import LostRace, ProjectorError, TransientError, no_thread
from session_projector.worker.replay.as_of import AsOf
from session_projector.worker.replay.walk import FoldedPage
from session_projector.worker.storage.port import Database

WORTH_EVENTS: Final = 25_000
"""A process that has fewer to fold costs more, by its start, than it saves."""

_MAIN: Final = "session_projector.worker.replay.walker"
Found = dict[str, FoldedPage | ProjectorError | LostRace]
"""What a page gave, or why it gave nothing, by projection; an empty one ends a range."""


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def worth(jobs: int, newest: int) -> int:
    """How many of some jobs are quicker than fewer, for a log with this newest position."""
    return max(1, min(jobs, newest // WORTH_EVENTS))


class Walkers:
    """Several processes (`worker.replay.walker`) that scan ranges of the log in turn, one each.

    Each has a connection of its own and only reads. What it finds as it is to be is done with; all
    else comes here, in the order of the log, and is compared once more, reported and repaired as
    if it had been folded here. So only this process writes, and all that a repair relies on is
    what it has read itself.

    The first scan that begins says as of when they fold. Those that begin with it, as of the same
    moment, share their pages. All others read by themselves: one that lost a race and begins
    again, and those of other packages' projections, which need not be there in another process.
    The processes end with the block, and when this process ends in whatever way.
    """

    def __init__(self, database: Database, projections: Sequence[Projection], jobs: int) -> None:
        """`jobs`: how many processes; none are started for 1."""
        self._database = database
        self._projections = [one for one in projections if one.built_in or one.per_event]
        self._jobs = jobs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._turn = 0
        self._moment: tuple[int, bool] | None = None
        self._waiting: dict[str, deque[Any]] = {}
        """What came and was not taken yet, by projection."""
        self._taken: set[str] = set()
        self._pages = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, as_of: AsOf) -> None:
        """Let the processes fold what a scan as of a moment will ask for, if any will."""
        self.stop()
        if self._jobs > 1 and self._projections:
            self._moment = (as_of.until, as_of.follows)
            self._waiting = {one.name: deque() for one in self._projections}
            for number in range(self._jobs):
                self._processes.append(_started())
                job = (self._database, self._projections, as_of, number, self._jobs)
                _tell(self._processes[-1], job)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(BrokenPipeError), process:
                pass
        self._processes.clear()

    def take(self, projection: Projection, as_of: AsOf) -> bool:
        """Whether `pages` has those of a scan that begins; the first one says as of when."""
        moment = (as_of.until, as_of.follows)
        if moment != self._moment and not self._taken and projection in self._projections:
            self.start(as_of)
        if moment != self._moment or projection.name not in self._waiting.keys() - self._taken:
            return False
        self._taken.add(projection.name)
        return True

    async def pages(self, projection: Projection) -> AsyncGenerator[FoldedPage, None]:
        """The pages of the log for a scan that was taken; raises what the fold of one raised."""
        waiting = self._waiting[projection.name]
        try:
            while waiting or await self._receive():
                if waiting:
                    page = waiting.popleft()
                    if isinstance(page, Exception):
                        raise page
                    yield page
        finally:
            del self._waiting[projection.name]

    async def _receive(self) -> bool:
        """Take what comes next in the order of the log; False if nothing does."""
        process = self._processes[self._turn]
        found = await to_thread.run_sync(_heard, process, abandon_on_cancel=True)
        if found is None:
            return False
        if not found:
            self._turn = (self._turn + 1) % self._jobs
            return True
        if self._pages == 1:  # whose scan has not begun by now reads by itself
            self._waiting = {
                name: self._waiting[name] for name in self._waiting.keys() & self._taken
            }
        self._pages += 1
        for name in found.keys() & self._waiting.keys():
            self._waiting[name].append(found[name])
        return True


def _started() -> subprocess.Popen[bytes]:
    # Without rich, which structlog would import for nothing.
    paths = f"import sys; sys.path[:] = {sys.path}; sys.modules['rich'] = None"
    code = f"{paths}; from {_MAIN} import main; main()"
    command = [sys.executable, "-P", "-c", code]
    with no_thread():
        # Ctrl-C is for this process alone, which then ends the others.
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0)


def _tell(process: subprocess.Popen[bytes], job: tuple[Any, ...]) -> None:
    """The other end of its standard input stays open for as long as this process lives."""
    if process.stdin:
        with suppress(BrokenPipeError):
            pickle.dump(job, process.stdin)
            process.stdin.flush()


def _heard(process: subprocess.Popen[bytes]) -> Found | None:
    """What a process says next, None where it has said all."""
    try:
        found: Found = pickle.load(process.stdout)  # type: ignore[arg-type]
    except (EOFError, pickle.UnpicklingError):
        code = process.wait()
    else:
        return found
    if code == 0:
        return None
    how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise TransientError(
        f"a process that folded a part of the log was {how}",
        "start again; where memory is short, without such processes: `projector verify --jobs 1`,"
        " `projector replay --jobs 1`",
    )
