"""A transcript, line by line, as events whose ids never change.

What a line is, is known to the format of the tool alone: it gives a `Meaning`. Every line becomes
one event, whose id is made of the tool, the session and a digest of the line. So a line that was
imported is known by its id wherever it stands in the file, and events of the lines that are there
never depend on those that will come. A message is a `session_append`; what is beside the message in
its line stands in the event's `data.line`, which no projection reads. Any other line is an event of
the type `<tool>_line` with the whole line as its data. Such events are skipped when the log is
folded, so that the conversation stays readable, and are seen in the log and in the session's
history: nothing that a tool writes is lost, known or not.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import PureWindowsPath
from typing import Any, Final

import msgspec

from session_projector.projections.event import LogRow
from session_projector.worker.clock import EPOCH
from session_projector.worker.errors import UsageError
from session_projector.worker.sessions.write import new_event

WORKING: Final = "in-progress"
READY: Final = "ready"
"""The agent has ended its turn: the session waits for a person."""
DONE: Final = "done"
"""The same of an agent that another agent started, for which nobody waits."""
LONGEST_TEXT: Final = 20_000
"""Characters that are left of each text in a message that is too large for an event."""
PIECE: Final = 3_000_000
"""Characters of a line that is kept in pieces: 12 MB at most in UTF-8."""


class Meaning(msgspec.Struct):
    """What a line says. `session_id` is '' where only a later line can say which session it is.

    `message` is the message in the line, if there is one, and `rest` all else in it. `cwd` is the
    working directory, and `time` ISO 8601, where the line has them. `status` is what the session's
    status is after it, None where it stays. `unknown` names what the format does not know, '' for
    nothing. `is_unique`: no two lines of a session are equal, so that an equal one is a copy.
    """

    session_id: str = ""
    message: dict[str, Any] | None = None
    rest: dict[str, Any] = {}
    cwd: Any = None
    time: Any = None
    status: str | None = None
    unknown: str = ""
    is_unique: bool = True


Read = Callable[[dict[str, Any]], Meaning]
"""Reads the lines of one file, in order; it may remember what it has read."""


class Draft(msgspec.Struct):
    """An event that is not encoded yet; `line` is what it was made of, and `is_exact` whether an
    event can hold all of it. `unknown` is as in `Meaning`."""

    id: str
    session_id: str
    kind: str
    data: dict[str, Any]
    time_ms: int
    line: bytes = b""
    is_exact: bool = True
    unknown: str = ""


class Transcript:
    """Makes events of the lines of one file. What it gives for a line depends on the lines before
    it and on nothing else."""

    def __init__(self, tool: str, read: Read) -> None:
        self._tool = tool
        self._read = read
        self._held: list[tuple[Meaning, bytes, bool]] = []
        self._counts: Counter[bytes] = Counter()
        self._projects: dict[str, str] = {}
        self._statuses: dict[str, str] = {}
        self._session_id = ""
        self._project = ""
        self._time_ms = 0

    @property
    def held(self) -> int:
        """How many lines wait for one that says which session they are of."""
        return len(self._held)

    def drafts(self, line: bytes) -> Iterator[Draft]:
        """The events of the next line; raises `ValueError` where it is not JSON."""
        value, is_exact = _decoded(line)
        if isinstance(value, dict):
            meaning = self._read(value)
        else:
            meaning = Meaning(self._session_id, unknown=type(value).__name__, is_unique=False)
            meaning.rest = {"value": value}
        self._project = self._project or _project(meaning.cwd)
        self._time_ms = _milliseconds(meaning.time) or self._time_ms
        if not meaning.session_id:
            self._held.append((meaning, line, is_exact))
            return
        self._session_id = self._session_id or meaning.session_id
        for held in self._held:
            held[0].session_id = meaning.session_id
            yield from self._of(*held)
        self._held.clear()
        yield from self._of(meaning, line, is_exact)

    def _of(self, meaning: Meaning, line: bytes, is_exact: bool) -> Iterator[Draft]:
        session_id = meaning.session_id
        line_id = self._line_id(line, meaning.is_unique)

        def draft(kind: str, event_id: str, **data: Any) -> Draft:
            return Draft(event_id, session_id, kind, data, self._time_ms)

        if session_id not in self._statuses:
            self._statuses[session_id] = READY
            given = {"project": self._project or self._tool, "createdAt": self._time_ms}
            yield draft("session_created", f"{self._tool}:{session_id}:created", **given)
        elif self._project and not self._projects[session_id]:
            yield draft("session_updated", f"{line_id}:project", project=self._project)
        self._projects[session_id] = self._project
        kind, data = f"{self._tool.replace('-', '_')}_line", meaning.rest
        if meaning.message is not None:
            kind, data = "session_append", {"messages": [meaning.message]}
            data |= {"line": meaning.rest} if meaning.rest else {}
        yield Draft(line_id, session_id, kind, data, self._time_ms, line, is_exact, meaning.unknown)
        if meaning.status and meaning.status != self._statuses[session_id]:
            self._statuses[session_id] = meaning.status
            yield draft("session_status_update", f"{line_id}:status", status=meaning.status)

    def _line_id(self, line: bytes, is_unique: bool) -> str:
        digest = hashlib.blake2b(line, digest_size=16)
        line_id = f"{self._tool}:{self._session_id}:{digest.hexdigest()}"
        if not is_unique:
            self._counts[digest.digest()] += 1
            if (count := self._counts[digest.digest()]) > 1:
                line_id += f":{count}"
        return line_id


def rows(draft: Draft, tool: str) -> list[LogRow]:
    """A draft as it is written: one event, or, where no event can hold it, the same with what is
    too large in it shortened, and the line in pieces, each in an event of its own."""
    if draft.is_exact:
        try:
            return [_row(draft, draft.kind, draft.data)]
        except UsageError:
            pass
    text = draft.line.decode()
    starts = range(0, len(text), PIECE)
    kind = f"{tool.replace('-', '_')}_line"
    pieces = [
        _row(draft, kind, {"piece": n, "of": len(starts), "text": text[at : at + PIECE]}, f":p{n}")
        for n, at in enumerate(starts, 1)
    ]
    return [_shortened(draft), *pieces]


def _shortened(draft: Draft) -> LogRow:
    note = f"({len(draft.line):,} bytes, which the log has in pieces)"
    short: dict[str, Any] = {"note": note}
    if messages := draft.data.get("messages") if draft.kind == "session_append" else None:
        try:
            return _row(draft, draft.kind, {"messages": [_cut(messages[0])], **short})
        except (UsageError, RecursionError):
            roles = {"role": messages[0]["role"]} if "role" in messages[0] else {}
            short["messages"] = [{**roles, "content": note}]
    return _row(draft, draft.kind, short)


def _row(draft: Draft, kind: str, data: dict[str, Any], more: str = "") -> LogRow:
    time_ms = draft.time_ms
    return new_event(
        draft.session_id, kind, data, time_ms, event_id=draft.id + more, timestamp=time_ms
    )


def _cut(value: Any) -> Any:
    """A value with the beginning alone of each text that is too long."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{value[:LONGEST_TEXT]}… ({len(value) - LONGEST_TEXT:,} characters more)"
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list) else value


def _decoded(line: bytes) -> tuple[Any, bool]:
    """The value of a line, and whether that is all of it: half a surrogate pair, as it stands where
    a tool cut a text within a character, becomes a question mark."""
    try:
        return msgspec.json.decode(line), True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(line.decode(), parse_constant=_refused)
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")), False
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _project(cwd: Any) -> str:
    """The last part of a working directory, of Windows too; '' where that says nothing."""
    if not isinstance(cwd, str):
        return ""
    return PureWindowsPath(cwd).name or cwd


def _milliseconds(time: Any) -> int | None:
    if not isinstance(time, str):
        return None
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return None
    since = found.replace(tzinfo=found.tzinfo or EPOCH.tzinfo) - EPOCH
    return max(0, since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000)
