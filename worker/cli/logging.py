"""The set-up of structlog: past-tense events with fields on stderr, never message contents."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

from session_projector.worker.cli import color
from session_projector.worker.cli.inert import InertStream, printable
from session_projector.worker.cli.options import pasteable
from session_projector.worker.cli.output import LONGEST_LINE
from session_projector.worker.errors import InterventionRequired, ProjectorError, UsageError

# structlog imports rich, a dependency of typer, to draw tracebacks if it is there. We log none, and
# the import would add 70 ms to every start.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    del sys.modules["rich"]
    if _rich:
        sys.modules["rich"] = _rich


LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]


_ends_in_json = False
"""Whether what ends this command is a line of the log."""


def configure(
    level: LogLevel, form: LogFormat, *, queued: bool = False, of_daemon: bool = False
) -> None:
    """Log JSON lines or readable ones; `auto` is readable if stderr is a terminal.

    `of_daemon`: where they are JSON, what ends the command is one of them.

    `queued`: what is written to stderr or stdout from here on goes to stderr by a thread, see
    `log_queue`.
    Raises `DatabaseUnavailable` where that cannot be started.
    """
    terminal = sys.stderr.isatty()
    limit: list[Any] = []
    if queued:
        from session_projector.worker.cli.log_queue import LineLimit, LogQueue

        limit = [LineLimit()]
        sys.stderr = cast(TextIO, LogQueue(sys.stderr, *limit))
        sys.stdout = cast(TextIO, InertStream(sys.stderr))  # what projections print
    readable = form == "console" or (form == "auto" and terminal)
    global _ends_in_json
    _ends_in_json = of_daemon and not readable
    renderer: Any = structlog.processors.JSONRenderer()
    if readable:
        renderer = structlog.dev.ConsoleRenderer(colors=color.wanted(sys.stderr))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *limit,
            _printable,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Lenient())),
    )


def ends_in_json() -> bool:
    """Whether what ends this command is to be told by `tell_end`, so that the log is all JSON."""
    return _ends_in_json


def tell_end(error: ProjectorError) -> None:
    """Log what ends this command: critical where it would end each time that it is started."""
    log = structlog.get_logger()
    permanent = isinstance(error, UsageError | InterventionRequired)
    (log.critical if permanent else log.error)(
        "run_failed", why=str(error), hint=error.hint, exit_code=error.exit_code
    )


class _Lenient:
    """Standard error, where a full disk or a closed pipe must not stop the daemon."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def _printable(_logger: Any, _name: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if "hint" in fields:
        fields["hint"] = pasteable(fields["hint"])
    return {key: _value(value) for key, value in fields.items()}


def _value(value: Any) -> Any:
    """A field of a log line: printable, and no longer than a line should be."""
    if isinstance(value, list):
        return [_value(one) for one in value]
    if not isinstance(value, str):
        return value
    return printable(value if len(value) <= LONGEST_LINE else value[:LONGEST_LINE] + "…")
