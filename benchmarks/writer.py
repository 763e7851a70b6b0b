"""An ordinary writer: writer.py DATABASE NAME COUNT EVERY_S SESSIONS BYTES.

It appends to the existing sessions `session:S-<n>`, under ids `NAME-<number>`, with one INSERT and
commit every EVERY_S seconds (0: as fast as possible), until COUNT, or until its standard input
ends. It prints JSON: when each commit began and ended on the monotonic clock, and how many were
BUSY after waiting for five seconds.
"""

import json
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec
from workload import INSERT, T0, event

PROGRAM: Final = (sys.executable, __file__)


class Written(msgspec.Struct):
    """What a writer did; times are seconds on the monotonic clock."""

    busy: int
    commits: list[tuple[float, float]]

    @property
    def took_ms(self) -> list[float]:
        return [(end - begin) * 1000 for begin, end in self.commits]


class Writer:
    """A writer in a separate process."""

    def __init__(self, command: list[str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._child = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]

    def stop(self) -> Written:
        """Stop the writer at once, whether or not it has finished."""
        return msgspec.json.decode(self._child.communicate()[0], type=Written)

    def kill(self) -> None:
        with self._child:
            self._child.kill()

    def wait(self) -> Written:
        """Wait until the writer has finished."""
        assert self._child.stdout is not None
        said = self._child.stdout.read()
        self._child.communicate()
        return msgspec.json.decode(said, type=Written)


@contextmanager
def writer(
    path: Path,
    name: str = "w",
    *,
    count: int = 10**9,
    every_s: float,
    sessions: int,
    size: int,
    program: Sequence[str] = PROGRAM,
) -> Iterator[Writer]:
    numbers = [str(count), str(every_s), str(sessions), str(size)]
    running = Writer([*program, str(path), name, *numbers])
    try:
        yield running
    finally:
        running.kill()


def keep_pace(append: Callable[[int], None], count: int, every_s: float) -> None:
    """Call `append` with 0, 1, 2, … up to `count`, and print when each call began and ended."""
    busy, commits = 0, []
    due = time.monotonic() + 0.2
    for number in range(count):
        if select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0]:
            break
        begin = time.monotonic()
        try:
            append(number)
        except sqlite3.OperationalError:
            busy += 1
        commits.append((begin, time.monotonic()))
        due += every_s
    print(json.dumps({"busy": busy, "commits": commits}))


def main() -> None:
    path, name = sys.argv[1:3]
    count, sessions, size = (int(sys.argv[at]) for at in (3, 5, 6))
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:

        def append(number: int) -> None:
            session = number % sessions
            data = msgspec.msgpack.encode(event(session, size, number, created=False))
            row = (f"{name}-{number}", f"session:S-{session}", data, T0 + number)
            connection.execute(INSERT, row)

        keep_pace(append, count, float(sys.argv[4]))


if __name__ == "__main__":
    main()
