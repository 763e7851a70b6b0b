"""Texts that PostgreSQL can hold: it has none with a NUL, and JSON and MessagePack do.

U+0001 is the escape: a NUL is U+0001 and `0`, and a U+0001 is U+0001 and `1`. Only rows that this
program writes are escaped; `event_log` holds what its writers wrote.
"""

from typing import Any


def escaped(value: Any) -> Any:
    """A value as it is stored."""
    if type(value) is str and ("\0" in value or "\1" in value):
        return value.replace("\1", "\0011").replace("\0", "\0010")
    return value


def unescaped(value: Any) -> Any:
    """A value as it was before."""
    if type(value) is str and "\1" in value:
        return value.replace("\0010", "\0").replace("\0011", "\1")
    return value
