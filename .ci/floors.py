"""Print .ci/constraints.txt, the dependencies of pyproject.toml at the lowest versions allowed."""

import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
floors = {}
for dependency in project["dependencies"]:
    found = re.match(r"([\w.-]+)>=([\w.]+)", dependency)
    if not found:
        raise SystemExit(f"pyproject.toml: {dependency} has no lowest version")
    floors[found[1]] = found[2]
newest = (line.split("==") for line in (FOLDER / "constraints.txt").read_text().split())
for name, version in (dict(newest) | floors).items():
    print(f"{name}=={version}")
