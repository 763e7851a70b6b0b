"""The console script, installed as the module `session_projector`.

`worker`, `projections` and `migrations` are plain names: another package of one of them may stand
before ours on the path. This module is found under a name of its own, and says so.
"""

import gc
import sys
from importlib.util import find_spec
from pathlib import Path

_OURS = {
    "worker": "tail.py",
    "projections": "sessions.py",
    "migrations": "0003-projector-sessions.sql",
}

GARBAGE_AFTER = 100_000
"""Containers made between two looks for cycles: a batch has many, all of them live."""
SWITCH_S = 0.0005
"""How long the database thread waits, at each statement, for Python where events are decoded."""


def main() -> None:
    """Run `projector`, unless a foreign package would be imported in place of ours."""
    for package, file in _OURS.items():
        spec = find_spec(package)
        found = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
        if not any((folder / file).is_file() for folder in found):
            where = f"is {found[0]}" if found else "is missing"
            print(
                f"projector: the Python package `{package}` {where}, which is not projector's own\n"
                "  install projector into a venv of its own, and take the other package off"
                " PYTHONPATH",
                file=sys.stderr,
            )
            sys.exit(4)
    gc.set_threshold(GARBAGE_AFTER)  # before the imports, which make many
    sys.setswitchinterval(SWITCH_S)
    from worker import cli

    cli.main()
