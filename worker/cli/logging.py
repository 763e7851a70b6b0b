"""structlog set-up: past-tense events with fields on stderr, never message contents."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, TextIO, cast

from session_projector.worker.cli.options import pasteable
from session_projector.worker.cli.output import printable

# structlog loads rich where there is one, as typer brings it, to draw tracebacks. We log none, and
# it would have 70 ms of every start.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    del sys.modules["rich"]
    if _rich:
        sys.modules["rich"] = _rich


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


def configure(level: LogLevel, form: LogFormat) -> None:
    """JSON lines, or readable ones; `auto` is readable where stderr is a terminal."""
    terminal = sys.stderr.isatty()
    readable = form is LogFormat.CONSOLE or (form is LogFormat.AUTO and terminal)
    last: list[Any] = [
        structlog.dev.ConsoleRenderer(colors=terminal)
        if readable
        else structlog.processors.JSONRenderer()
    ]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _printable,
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lenient())),
    )


class _Lenient:
    """Standard error, of which a full disk or a reader that is gone must not stop the folding."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def _printable(_logger: Any, _name: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if "hint" in fields:
        fields["hint"] = pasteable(fields["hint"])
    return {key: printable(v) if isinstance(v, str) else v for key, v in fields.items()}
