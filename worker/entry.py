"""The console script, installed as the module `session_projector`.

`worker`, `projections` and `migrations` are plain names: another package of one of them may stand
before ours on the path. This module is found under a name of its own, and says so.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_OURS = {
    "worker": "tail.py",
    "projections": "sessions.py",
    "migrations": "0003-projector-sessions.sql",
}


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
    from worker import __main__

    __main__.main()
