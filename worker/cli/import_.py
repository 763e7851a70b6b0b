"""`projector import …`: the sessions that other tools keep, as events."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from session_projector.worker.cli import output
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.inert import printable
from session_projector.worker.cli.options import Database, JsonLines, pasteable
from session_projector.worker.cli.progress import Progress
from session_projector.worker.errors import CheckFailed, UsageError, many
from session_projector.worker.importing.importer import (
    POLL_S,
    TOOLS,
    Importer,
    Report,
    patient,
    writing,
)
from session_projector.worker.sessions import time_travel
from session_projector.worker.storage import open as storage

import_ = typer.Typer(help=HELP["import"], **SETTINGS)

MOST_NAMED: Final = 10
"""Lines and files of a kind that are named; JSON names all."""
_STATES: Final = ("waiting", "unfinished")
"""Why a file is left for later, by the fields of a report."""
Place = Annotated[
    Path | None,
    typer.Argument(
        metavar="[PATH]", help="A file or folder, instead of where the tool keeps them."
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only files that changed since an ISO 8601 time (UTC without an offset).",
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow", help="Continue with new lines and files, until Ctrl-C.")
]


@import_.command("claude-code")
def import_claude_code(
    path: Place = None,
    database: Database = "local.db",
    since: Since = None,
    follow: Follow = False,
    json: JsonLines = False,
) -> None:
    """Import the sessions of Claude Code, found by CLAUDE_CONFIG_DIR or in ~/.claude.

    It can be repeated at any time, and adds only what is new."""
    _import(
        "claude-code", path, _home("CLAUDE_CONFIG_DIR", ".claude"), database, since, follow, json
    )


@import_.command("codex")
def import_codex(
    path: Place = None,
    database: Database = "local.db",
    since: Since = None,
    follow: Follow = False,
    json: JsonLines = False,
) -> None:
    """Import the sessions of Codex, found by CODEX_HOME or in ~/.codex.

    It can be repeated at any time, and adds only what is new."""
    _import("codex", path, _home("CODEX_HOME", ".codex"), database, since, follow, json)


def _home(variable: str, name: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / name)


def _import(
    tool: str,
    path: Path | None,
    home: Path,
    database: str,
    since: str | None,
    follow: bool,
    json: bool,
) -> None:
    since_s = (time_travel.time_ms(since) or 0) / 1000
    if path is not None and not path.exists():
        raise UsageError(
            f"there is no {path}", "name a file or folder, or none for where the tool keeps all"
        )
    places = TOOLS[tool].folders(home) if path is None else [path]
    target = storage.database(database)
    with target.open(writable=True) as store:
        write = writing(store)
        write = patient(write, _tell_why) if follow else write
        importer = Importer(tool, places, write=write, since_s=since_s)
        with _interruptible(follow):
            report = _first(importer)
            if not report.files and not follow:
                changed = f" that changed since {since}" if since else ""
                how = "name the folder that has the transcripts"
                how = f"leave out --since, or {how}" if since else how
                raise CheckFailed(
                    f"there is no {TOOLS[tool].PATTERN}{changed} in"
                    f" {' or '.join(map(str, places))}",
                    f"{how}: `projector import {tool} PATH`",
                )
            _print(report, json)
            if not json:
                _print_next(target.leadership().leader() is not None)
            told = {name: {*getattr(report, name)} for name in _STATES}
            while follow:
                time.sleep(POLL_S)
                if (report := importer.run()).lines:
                    _print(_once(report, told), json, named=True)


@contextmanager
def _interruptible(follow: bool) -> Iterator[None]:
    """Ctrl-C is how following ends, and no failure."""
    try:
        yield
    except KeyboardInterrupt:
        if not follow:
            raise


def _tell_why(why: str) -> None:
    print(f"projector: {output.one_line(why)}; trying again", file=sys.stderr)


def _first(importer: Importer) -> Report:
    progress = Progress()
    report = importer.run(lambda done, total: progress.tell("import", done, total, "files"))
    progress.clear()
    return report


def _once(report: Report, told: dict[str, set[Path]]) -> Report:
    """Without the files that an earlier report named in the same state, which it remembers."""
    for name in _STATES:
        setattr(report, name, [path for path in getattr(report, name) if path not in told[name]])
        told[name].update(getattr(report, name))
    return report


def _print(report: Report, json: bool, *, named: bool = False) -> None:
    """`named`: with the ids of the sessions that have new events."""
    if json:
        print(output.to_json(_plain(report), indent=None), flush=True)
        return
    new = sum(report.new.values())
    print(
        f"{many(len(report.sessions), 'session')}, {many(report.messages, 'message')} in"
        f" {many(report.files, 'file')}: {many(new, 'new event')} in"
        f" {many(len(report.new), 'session')}" + (_listed([*report.new]) if named else ""),
        flush=True,
    )
    if report.unknown:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in report.unknown.most_common())
        _tell(f"{many(report.unknown.total(), 'line')} of unknown types, kept as is", [kinds])
    _tell_each("not JSON, left out", "line", report.invalid)
    _tell_each("too large or odd for one event, kept in pieces", "line", report.shortened)
    _tell_each("without a conversation, left for later", "file", report.waiting)
    _tell_each("with an unfinished last line, left for later", "file", report.unfinished)


def _listed(ids: list[str]) -> str:
    more = ", …" * (len(ids) > MOST_NAMED)
    return printable(": " + ", ".join(ids[:MOST_NAMED]) + more if ids else "")


def _tell_each(what: str, of: str, named: Sequence[object]) -> None:
    if named:
        more = [f"… {len(named) - MOST_NAMED:,} more"] * (len(named) > MOST_NAMED)
        _tell(f"{many(len(named), of)} {what}", [*map(str, named[:MOST_NAMED]), *more])


def _tell(what: str, named: list[str]) -> None:
    for line in (f"{what}:", *(f"  {one}" for one in named)):
        print(printable(line), file=sys.stderr)


def _print_next(is_folded: bool) -> None:
    start = "" if is_folded else "start the daemon: `projector run`; "
    print(pasteable(f"{start}see them: `projector session list`, `projector board`"), flush=True)


def _plain(report: Report) -> dict[str, object]:
    return {
        "files": report.files,
        "lines": report.lines,
        "sessions": len(report.sessions),
        "messages": report.messages,
        "new_events": report.new.total(),
        "new": dict(report.new),
        "unknown": dict(report.unknown),
        **{
            name: [*map(str, getattr(report, name))]
            for name in ("invalid", "shortened", "waiting", "unfinished")
        },
    }
