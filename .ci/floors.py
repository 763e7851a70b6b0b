"""Print .ci/constraints.txt, with what pyproject.toml needs at the lowest versions allowed."""

import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
floors = {}
extras = project["optional-dependencies"]
for dependency in project["dependencies"] + extras["postgres"] + extras["board"]:
    found = re.match(r"([\w.-]+)(?:\[(\w+)\])?>=([\w.]+)", dependency)
    if not found:
        raise SystemExit(f"pyproject.toml: {dependency} has no lowest version")
    name, extra, lowest = found.groups()
    floors[name] = lowest
    if extra:  # psycopg[binary] needs psycopg-binary of the same version
        floors[f"{name}-{extra}"] = lowest
newest = (line.split("==") for line in (FOLDER / "constraints.txt").read_text().split())
for name, version in (dict(newest) | floors).items():
    print(f"{name}=={version}")
