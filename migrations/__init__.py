"""The SQL files that make and upgrade a database, in the order of their names."""

from functools import cache
from importlib.resources import files


@cache
def load() -> dict[str, str]:
    """Name (without `.sql`) to SQL text, oldest first."""
    found = (entry for entry in files(__name__).iterdir() if entry.name.endswith(".sql"))
    return {
        entry.name.removesuffix(".sql"): entry.read_text(encoding="utf-8")
        for entry in sorted(found, key=lambda entry: entry.name)
    }
