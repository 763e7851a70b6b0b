"""Importing the files of a tool into a log, as often as one likes: only what is new is written."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

from session_projector.worker.errors import DatabaseUnavailable
from session_projector.worker.importing import claude_code, codex, files
from session_projector.worker.importing.transcript import Draft, Transcript, rows
from session_projector.worker.storage.port import Store

TOOLS: Final[dict[str, ModuleType]] = {tool.NAME: tool for tool in (claude_code, codex)}
BATCH_EVENTS: Final = 1000
BATCH_BYTES: Final = 4 * 1024 * 1024
"""Lines that are written in one transaction, unless one line alone is larger."""
POLL_S: Final = 0.5
"""How often files are looked at for more, and a database that is locked is tried again."""
Progress = Callable[[int, int], None]
"""Told how many files were read, and of how many."""


class Line(msgspec.Struct, frozen=True):
    """A line of a file by its number, the first being 1."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"


class Report(msgspec.Struct):
    """What was read and written: how many lines, messages and events, and the events that are new
    by session.

    `unknown` counts the lines that the format does not know, by their types; they are kept. So are
    those in `shortened`, in pieces. `invalid` lines are no JSON. `waiting` are files whose lines do
    not say yet which session they are of, and `unfinished` files whose last line has no end.
    """

    files: int = 0
    lines: int = 0
    sessions: set[str] = msgspec.field(default_factory=set)
    messages: int = 0
    new: Counter[str] = msgspec.field(default_factory=Counter)
    unknown: Counter[str] = msgspec.field(default_factory=Counter)
    invalid: list[Line] = msgspec.field(default_factory=list)
    shortened: list[Line] = msgspec.field(default_factory=list)
    waiting: list[Path] = msgspec.field(default_factory=list)
    unfinished: list[Path] = msgspec.field(default_factory=list)


class Importer:
    """Reads what was added to the files since it was called last, beginning with all of it."""

    def __init__(
        self, tool: str, places: Sequence[Path], *, write: "Write", since_s: float = 0
    ) -> None:
        """`since_s`: files that were changed last before this Unix time are left out."""
        self._tool = tool
        self._places = places
        self._write = write
        self._since_s = since_s
        self._open: dict[Path, tuple[files.Tail, Transcript]] = {}

    def run(self, progress: Progress = lambda *_: None) -> Report:
        """Import what is new. Broken off anywhere, it is done again by an importer that begins
        anew, but not by this one."""
        report = Report()
        batch: list[tuple[Draft, Line]] = []
        size = 0
        paths = files.found(self._places, TOOLS[self._tool].PATTERN, since_s=self._since_s)
        for number, path in enumerate(paths):
            for draft, line in self._drafts(path, report):
                batch.append((draft, line))
                size += len(draft.line)
                if len(batch) >= BATCH_EVENTS or size >= BATCH_BYTES:
                    self._flush(batch, report)
                    size = 0
            progress(number + 1, len(paths))
        self._flush(batch, report)
        return report

    def _drafts(self, path: Path, report: Report) -> Iterator[tuple[Draft, Line]]:
        """The drafts of the lines that were added to a file."""
        before, is_new = report.lines, path not in self._open
        try:
            tail, transcript = self._opened(path)
            for text in tail.lines():
                line = Line(path, tail.number)
                report.lines += 1
                if text:
                    try:
                        for draft in transcript.drafts(text):
                            yield draft, line
                    except ValueError:
                        report.invalid.append(line)
        except FileNotFoundError:  # its tool deleted it
            self._open.pop(path, None)
            return
        report.files += is_new or report.lines > before
        report.waiting += [path] * bool(transcript.held)
        report.unfinished += [path] * tail.is_unfinished

    def _opened(self, path: Path) -> tuple[files.Tail, Transcript]:
        there = self._open.get(path)
        if there is None or there[0].is_replaced():
            read = TOOLS[self._tool].reader(path)
            self._open[path] = files.Tail(path), Transcript(self._tool, read)
        return self._open[path]

    def _flush(self, batch: list[tuple[Draft, Line]], report: Report) -> None:
        if batch:
            self._write(self._tool, batch, report)
        for draft, _ in batch:
            report.sessions.add(draft.session_id)
            report.messages += draft.kind == "session_append"
            if draft.unknown:
                report.unknown[draft.unknown] += 1
        batch.clear()


Write = Callable[[str, Sequence[tuple[Draft, Line]], Report], None]
"""Writes the drafts that are new, all or none."""


def writing(store: Store) -> Write:
    """Write to a database. What it has under an id is not compared: ids are made of the lines."""

    def write(tool: str, batch: Sequence[tuple[Draft, Line]], report: Report) -> None:
        known = store.log.known([draft.id for draft, _ in batch])
        written: list[Any] = []
        for draft, line in batch:
            if draft.id not in known:
                known.add(draft.id)
                written.append((draft, line, rows(draft, tool)))
        if not written:
            return
        with store.transaction():
            for _, _, events in written:
                for row in events:
                    store.log.append(row)
        for draft, line, events in written:
            report.new[draft.session_id] += len(events)
            report.shortened += [line] * (len(events) > 1)

    return write


def patient(write: Write, tell: Callable[[str], None]) -> Write:
    """The same, but it waits for a database that is locked, full or away; `tell` is told why."""

    def write_in_the_end(*arguments: Any) -> None:
        while True:
            try:
                return write(*arguments)
            except DatabaseUnavailable as error:
                tell(str(error))
                time.sleep(POLL_S)

    return write_in_the_end
