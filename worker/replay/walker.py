"""What each of the `walkers` runs: fold and compare its ranges of the log, send what differs."""

import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any, BinaryIO, Final

import anyio

from session_projector.projections.projection import Projection
from session_projector.worker.errors import LostRace, ProjectorError
from session_projector.worker.folding.faults import faults_of
from session_projector.worker.replay.as_of import AsOf
from session_projector.worker.replay.compare import Comparison
from session_projector.worker.replay.here import Here
from session_projector.worker.replay.walk import FoldedPage, Pages, Walk
from session_projector.worker.replay.walkers import Found
from session_projector.worker.storage.port import Database

MOST_BYTES: Final = 16 * 1024 * 1024
"""Where more wait to be sent, nothing more is folded."""


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no message
    try:
        job: tuple[Any, ...] = pickle.load(sys.stdin.buffer)
    except EOFError:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outbox = Outbox(out)
    anyio.run(partial(_work, outbox, *job))
    outbox.close()


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing comes, until its other end is closed
    os._exit(1)


class Outbox:
    """Messages that a thread sends, so that folding goes on while nobody takes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._send, daemon=True).start()

    def put(self, message: Found) -> None:
        data = pickle.dumps(message)
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < MOST_BYTES)
            self._waiting.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def close(self) -> None:
        """Return when all is sent."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes)

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = self._waiting.popleft()
            try:
                self._file.write(data)
                self._file.flush()
            except OSError:  # nobody is there to take it
                os._exit(1)
            with self._changed:
                self._bytes -= len(data)
                self._changed.notify_all()


async def _work(
    outbox: Outbox,
    database: Database,
    projections: Sequence[Projection],
    as_of: AsOf,
    number: int,
    jobs: int,
) -> None:
    """Send the pages of the range with a number, of every `jobs` of them."""
    left = [*projections]
    try:
        with database.open() as store:
            here = Here(store)
            pages = Pages(here, projections)
            async for of in pages.ranges(as_of.until):
                if number % jobs == 0:
                    scans = {
                        one: Walk(
                            here, one, Comparison(here, one, as_of, brief=True), pages
                        ).sifted(of)
                        for one in left
                    }
                    while found := await _page(scans, left):
                        outbox.put(found)
                    outbox.put({})
                number -= 1
    except (ProjectorError, LostRace) as error:
        outbox.put({projection.name: error for projection in projections})


async def _page(
    scans: dict[Projection, AsyncGenerator[FoldedPage, None]], left: list[Projection]
) -> Found:
    """The next page of each scan that has one; a projection that fails is `left` no more."""
    found: Found = {}
    for projection, scan in [*scans.items()]:
        page: FoldedPage | ProjectorError | LostRace | None
        try:
            with faults_of(projection):
                page = await anext(scan, None)
        except (ProjectorError, LostRace) as error:
            page = error
            left.remove(projection)
        if not isinstance(page, FoldedPage):
            del scans[projection]
        if page is not None:
            found[projection.name] = page
    return found
