"""`python -m session_projector` is `projector`."""

import gc
import sys
from typing import Final

GARBAGE_AFTER: Final = 100_000
"""Containers made between two looks for cycles: a batch has many, all of them live."""
SWITCH_S: Final = 0.0005
"""How long the database thread waits, at each statement, for Python where events are decoded."""


def main() -> None:
    """Run a command."""
    gc.set_threshold(GARBAGE_AFTER)  # before the imports, which make many
    sys.setswitchinterval(SWITCH_S)
    from session_projector.worker.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
