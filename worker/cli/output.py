"""The output of commands: JSON, tables and markdown, without terminal control characters."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from session_projector.worker.cli.color import painted
from session_projector.worker.cli.inert import printable
from session_projector.worker.clock import when
from session_projector.worker.sessions.content import said, speaker
from session_projector.worker.sessions.plain import plain

LONGEST_LINE: Final = 4000
"""Characters of a message, and of a finding of doctor."""
LONGEST_CELL: Final = 200
"""Characters of a cell of a table; JSON has all of them."""
_MARKDOWN: Final = re.compile(r"[\\`*_\[\]<>|&!]")


def one_line(value: object, width: int = LONGEST_LINE) -> str:
    """Printable text on one line, shortened to `width` characters."""
    text = printable(" ".join(str(value)[: 8 * width].split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def fitted(value: object, width: int) -> str:
    """Printable text on one line that takes exactly `width` columns of a terminal."""
    width = max(width, 0)
    text = one_line(value, width) if width else ""
    while _width(text) > width:
        text = text[:-1]
    return text + " " * (width - _width(text))


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """JSON of any value that MessagePack can hold; what JSON cannot hold is converted."""
    return printable(json.dumps(plain(value), ensure_ascii=False, indent=indent))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with columns aligned by spaces; one called `status` has states in colour."""
    states = headers.index("status") if "status" in headers else None
    cells = [list(headers), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            (painted(cell) if number == states else cell) + " " * (width - _width(cell))
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(_markdown, line)) + " |" for line in lines)


def cell(value: object) -> str:
    """The exact value on one line, so that an id can be copied, but no more than a cell shows;
    empty for None."""
    text = "" if value is None else printable(str(value)[: LONGEST_CELL + 1])
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"


def _markdown(value: object) -> str:
    """A value that stays the text that it is where markdown is rendered: no link, no HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", cell(value))


def session_markdown(view: Mapping[str, Any]) -> str:
    """A session in markdown, with one heading per message."""
    lines = [
        f"# {_markdown(view['id'])}",
        "",
        f"project {_markdown(view['project'])} · {_markdown(view['status'])}"
        f" · created {when(view['createdAt'])} · updated {when(view['updatedAt'])}",
    ]
    for message in view["messages"]:
        lines += ["", f"## {_markdown(speaker(message))}", "", content(message)]
    return "\n".join(lines)


def session_table(view: Mapping[str, Any]) -> str:
    """A session as tables: its fields, and one line per message."""
    fields = [(name, value) for name, value in view.items() if name != "messages"]
    fields = [(name, when(value) if name.endswith("At") else value) for name, value in fields]
    messages = [
        (number, speaker(message), one_line(content(message), 80))
        for number, message in enumerate(view["messages"], 1)
    ]
    return table(["field", "value"], fields) + "\n\n" + table(["#", "role", "content"], messages)


def changes(changed: Mapping[str, Any], began: int) -> str:
    """What changed in a session, one line per change; `changed` is as in `session diff --json`."""
    fields, messages = changed["fields"], changed["messages"]
    lines = [f"{_point(changed['from'], began)} → {_point(changed['to'], began)}"]
    for entry in fields:
        before, after = (_field(entry["field"], entry[side]) for side in ("before", "after"))
        lines.append(f"{entry['field']}: {before} → {after}")
    for entry in messages["changed"]:
        before, after = entry["before"], entry["after"]
        differing = _differing(before, after)
        names = ", ".join(one_line(name, 40) for name in differing) or "how it is encoded"
        lines.append(f"message {entry['number']} changed ({names})" + ":" * bool(differing))
        if differing:
            lines += [f"  {sign} {text}" for sign, text in _both(before, after, differing)]
    for kind in ("removed", "added"):
        lines += [f"message {m['number']} {kind}: {_short(m['message'])}" for m in messages[kind]]
    return "\n".join(lines if len(lines) > 1 else [*lines, "nothing changed"])


def _point(seq: int | None, began: int) -> str:
    return f"before the session began at seq {began}" if seq is None else f"seq {seq}"


def _field(name: str, value: Any) -> str:
    if value is None:
        return "(none)"
    return when(value) if name.endswith("At") else cell(value)


def _differing(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Any]:
    """The keys whose values differ; 1, 1.0 and true differ from each other."""
    return [
        key
        for key in [*before, *(key for key in after if key not in before)]
        if key not in before or key not in after or repr(before[key]) != repr(after[key])
    ]


def _both(
    before: Mapping[Any, Any], after: Mapping[Any, Any], differing: Sequence[Any]
) -> Iterator[tuple[str, str]]:
    """Both sides, one line each, in the first of three forms in which they differ."""
    sides = [{key: side[key] for key in differing if key in side} for side in (before, after)]
    ways = (
        [_short(before), _short(after)],
        [one_line(to_json(side, indent=None)) for side in sides],
        [one_line(repr(side)) for side in sides],
    )
    one, other = next((way for way in ways if way[0] != way[1]), ways[-1])
    pairs = enumerate(zip(one, other, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    start = max(same - 40, 0) if same > 60 else 0
    for sign, text in (("-", one), ("+", other)):
        yield sign, ("…" if start else "") + one_line(text[start:], 80)


def _short(message: Mapping[Any, Any]) -> str:
    return f"{one_line(speaker(message), 40)}: {one_line(content(message), 80)}"


def content(message: Mapping[Any, Any]) -> str:
    """The printable content of a message: what it says as text, the rest as JSON."""
    parts = (
        printable(part) if isinstance(part, str) else f"```json\n{to_json(part)}\n```"
        for part in said(message)
    )
    return "\n\n".join(parts)


def _width(text: str) -> int:
    """Columns on a terminal: wide East Asian characters and emoji take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
