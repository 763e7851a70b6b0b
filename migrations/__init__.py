"""The SQL files that make and upgrade a database, a folder for each engine, in the order of their
names."""

from functools import cache
from importlib.resources import files


@cache
def load(engine: str = "sqlite") -> dict[str, str]:
    """Name (without `.sql`) to SQL text, oldest first."""
    found = (entry for entry in (files(__name__) / engine).iterdir() if entry.name.endswith(".sql"))
    return {
        entry.name.removesuffix(".sql"): entry.read_text(encoding="utf-8")
        for entry in sorted(found, key=lambda entry: entry.name)
    }
