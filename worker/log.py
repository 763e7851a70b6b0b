"""structlog set-up: past-tense events with fields on stderr, never message contents."""

import logging
import sys
from typing import Any

import structlog

from worker.options import LogFormat, LogLevel


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
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
