"""An ordinary writer: writer.py DATABASE NAME COUNT EVERY_S SESSIONS BYTES.

DATABASE is a path, or the URL of a database on a PostgreSQL server. It appends to the existing
sessions `session:S-<n>`, under ids `NAME-<number>`, with one INSERT and commit every EVERY_S
seconds (0: as fast as possible), until COUNT, or until its standard input ends. It prints an empty
line when it begins, and at its end JSON: when each commit began and ended on the monotonic clock,
and how many were BUSY after waiting for five seconds.
"""

import json
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from workload import INSERT, POSTGRES_INSERT, T0, connected, event

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

    def end(self) -> None:
        """Tell the writer to stop."""
        if self._child.stdin:
            self._child.stdin.close()
            self._child.stdin = None

    def stop(self) -> Written:
        """Stop the writer at once, whether or not it has finished."""
        return msgspec.json.decode(self._child.communicate()[0], type=Written)

    def began(self) -> None:
        """Wait until it is connected."""
        assert self._child.stdout is not None
        self._child.stdout.readline()

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
    database: Path | str,
    name: str = "w",
    *,
    count: int = 10**9,
    every_s: float,
    sessions: int,
    size: int,
    program: Sequence[str] = PROGRAM,
) -> Iterator[Writer]:
    numbers = [str(count), str(every_s), str(sessions), str(size)]
    running = Writer([*program, str(database), name, *numbers])
    try:
        yield running
    finally:
        running.kill()


def at_once(database: Path | str, count: int, seconds: float) -> list[Written]:
    """Let `count` writers append as fast as they can, all of them together for `seconds`."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(writer(database, f"w{number}", every_s=0, sessions=50, size=300))
            for number in range(count)
        ]
        for one in started:
            one.began()
        time.sleep(seconds)
        for one in started:
            one.end()
        return [one.stop() for one in started]


def together(done: Sequence[Written]) -> tuple[float, list[float]]:
    """Return events per second and ms of each commit, of the time in which all writers wrote."""
    commits = sorted(commit for one in done for commit in one.commits)
    all_write_at = max(one.commits[0][0] for one in done)
    first_ends_at = min(one.commits[-1][1] for one in done)
    took = [(end - begin) * 1000 for begin, end in commits if all_write_at <= begin < first_ends_at]
    return len(took) / (first_ends_at - all_write_at), took


def row(name: str, number: int, sessions: int, size: int) -> tuple[Any, ...]:
    """The row of `event_log` that a writer appends."""
    session = number % sessions
    data = msgspec.msgpack.encode(event(session, size, number, created=False))
    return f"{name}-{number}", f"session:S-{session}", data, T0 + number


def keep_pace(append: Callable[[int], None], count: int, every_s: float) -> None:
    """Call `append` with 0, 1, 2, … up to `count`, and print when each call began and ended."""
    busy, commits = 0, []
    print(flush=True)
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
    database, name = sys.argv[1:3]
    count, sessions, size = (int(sys.argv[at]) for at in (3, 5, 6))
    is_url = "://" in database
    insert = POSTGRES_INSERT if is_url else INSERT
    with connected(database if is_url else Path(database), timeout_s=5) as connection:

        def append(number: int) -> None:
            connection.execute(insert, row(name, number, sessions, size))

        keep_pace(append, count, float(sys.argv[4]))


if __name__ == "__main__":
    main()
