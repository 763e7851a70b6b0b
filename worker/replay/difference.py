"""How a row that stands differs from the one that the log gives, in words a person can use."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from session_projector.projections.messagepack import Malformed, decode_exact
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.rows import restore

ABSENT: Final = "(absent)"
KINDS: Final = ("missing", "ghost", "damaged", "stale", "nondeterministic")


class Field(msgspec.Struct, frozen=True):
    """One field: what stands there, and what the log gives."""

    field: str
    stands: Any
    log: Any


class Difference(msgspec.Struct, frozen=True):
    """One row of a view, of the quarantine or of the checkpoint that the log does not explain.

    `kind` is missing (no row stands), ghost (no event explains the row), damaged (no fold can have
    written it), stale (a whole row, yet not what the log gives) or nondeterministic (folded twice,
    its events give two rows). `key` is a view's key, or the seq of a quarantined event.
    """

    projection: str
    row: str
    kind: str
    key: str | int | None
    fields: Sequence[Field]


def of_view(
    projection: Projection,
    key: str,
    standing: tuple[Any, ...] | None,
    row: tuple[Any, ...] | None,
    *,
    brief: bool = False,
) -> Difference:
    """How a view's row differs, None where there is none; `brief`: not field by field."""
    kind, found = "missing" if standing is None else "ghost" if row is None else "stale", []
    if standing is not None and row is not None and not brief:
        found = _fields([*projection.table.columns], standing, row)
        try:
            restore(projection, standing)
        except CorruptRow:
            kind = "damaged"
    return Difference(projection.name, "view", kind, key, found)


def of_quarantine(name: str, seq: int, standing: Any, reason: str | None) -> Difference:
    """How the row of an event in the quarantine differs; `standing` is ... where there is none."""
    kind = "missing" if standing is ... else "ghost" if reason is None else "stale"
    differs = [Field("reason", standing, reason)] if kind == "stale" else []
    return Difference(name, "quarantine", kind, seq, differs)


def of_skipped(name: str, standing: int, expected: int) -> Difference:
    """How the count of skipped events differs."""
    differs = Field("skipped", standing, expected)
    return Difference(name, "checkpoint", "stale", None, [differs])


def _fields(columns: Sequence[str], standing: Sequence[Any], row: Sequence[Any]) -> list[Field]:
    """The columns that differ; of one that holds MessagePack, what differs within."""
    found: list[Field] = []
    for column, stands, log in zip(columns, standing, row, strict=True):
        if stands != log or type(stands) is not type(log):
            within = list(_within(_decoded(stands), _decoded(log), ""))
            found += within or [Field(column, stands, log)]
    return found


def _within(stands: Any, log: Any, path: str) -> Iterator[Field]:
    """Down to the fields of a message, and no further: what it says differs as a whole."""
    if isinstance(stands, dict) and isinstance(log, dict) and path.count(".") < 1:
        for name in [*log, *(name for name in stands if name not in log)]:
            pair = (stands.get(name, ABSENT), log.get(name, ABSENT))
            if pair[0] != pair[1] or type(pair[0]) is not type(pair[1]):
                yield from _within(*pair, f"{path}.{name}" if path else str(name))
    elif isinstance(stands, list) and isinstance(log, list):
        if len(stands) != len(log):
            yield Field(f"{path} (count)", len(stands), len(log))
        for number, (one, other) in enumerate(zip(stands, log, strict=False), 1):
            if one != other:
                yield from _within(one, other, f"{path} {number}")
    elif path:
        yield Field(path, stands, log)


def _decoded(value: Any) -> Any:
    try:
        return decode_exact(value) if isinstance(value, bytes) else value
    except Malformed:
        return value
