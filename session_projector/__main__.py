"""`python -m session_projector` is `projector`."""

# Few imports, and no slow ones: until `main` runs, Ctrl-C is a traceback.
import gc
import os
import signal
import sys

GARBAGE_AFTER = 100_000
"""Containers made between two looks for cycles: a batch has many, all of them live."""
SWITCH_S = 0.0005
"""How long the database thread waits, at each statement, for Python where events are decoded."""
INTERRUPTED = 130
"""The exit code of Ctrl-C."""


def main() -> None:
    """Run a command."""
    _end_at_interrupt()  # until `cli.commands` has imported the command
    gc.set_threshold(GARBAGE_AFTER)  # before the imports, which make many
    sys.setswitchinterval(SWITCH_S)
    from session_projector.worker.cli import main as cli

    try:
        cli.main()
    finally:
        _end_at_interrupt()


def _end_at_interrupt() -> None:
    """Let Ctrl-C end the process, without a traceback, while there is nothing to clean up."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


if __name__ == "__main__":
    main()
