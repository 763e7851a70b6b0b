"""How a stored row differs from the one that the log gives, in words that help a person."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from session_projector.projections.messagepack import decode_exact
from session_projector.projections.projection import CorruptRow, Projection
from session_projector.projections.rows import restore
from session_projector.projections.scanner import Malformed

ABSENT: Final = "(absent)"
# Scripts and alerts of operators know the kinds by these words, in output, logs and metrics.
MISSING: Final = "missing"
ORPHANED: Final = "ghost"
CORRUPT: Final = "damaged"
OUTDATED: Final = "stale"
NONDETERMINISTIC: Final = "nondeterministic"
KINDS: Final = (MISSING, ORPHANED, CORRUPT, OUTDATED, NONDETERMINISTIC)


class FieldDiff(msgspec.Struct, frozen=True):
    """The stored value of one field, and the one that the log gives."""

    field: str
    stored: Any
    expected: Any


class Difference(msgspec.Struct, frozen=True):
    """One row of a view, of the quarantine or of the checkpoint that the log does not explain.

    `kind` is `MISSING` (no row is stored), `ORPHANED` (no event is about the row), `CORRUPT` (no
    fold can have written it), `OUTDATED` (a valid row, but not what the log gives) or
    `NONDETERMINISTIC` (folded twice, its events give two rows). `key` is a view's key, or the
    position of a quarantined event.
    """

    projection: str
    row: str
    kind: str
    key: str | int | None
    fields: Sequence[FieldDiff]


def of_view(
    projection: Projection,
    key: str,
    stored: tuple[Any, ...] | None,
    expected: tuple[Any, ...] | None,
    *,
    brief: bool = False,
) -> Difference:
    """The difference of a view's rows, None where there is none; `brief`: not field by field."""
    kind, fields = MISSING if stored is None else ORPHANED if expected is None else OUTDATED, []
    if stored is not None and expected is not None and not brief:
        fields = _fields([*projection.table.columns], stored, expected)
        try:
            restore(projection, stored)
        except CorruptRow:
            kind = CORRUPT
    return Difference(projection.name, "view", kind, key, fields)


def of_quarantine(name: str, seq: int, stored: Any, expected: str | None) -> Difference:
    """The difference of the reasons why an event is in quarantine; `stored` is ... without one."""
    kind = MISSING if stored is ... else ORPHANED if expected is None else OUTDATED
    fields = [FieldDiff("reason", stored, expected)] if kind == OUTDATED else []
    return Difference(name, "quarantine", kind, seq, fields)


def of_skipped(name: str, stored: int, expected: int) -> Difference:
    """The difference of the counts of skipped events."""
    fields = [FieldDiff("skipped", stored, expected)]
    return Difference(name, "checkpoint", OUTDATED, None, fields)


def _fields(
    columns: Sequence[str], stored: Sequence[Any], expected: Sequence[Any]
) -> list[FieldDiff]:
    """The columns that differ; of one that holds MessagePack, what differs within."""
    found: list[FieldDiff] = []
    for column, one, other in zip(columns, stored, expected, strict=True):
        if one != other or type(one) is not type(other):
            within = list(_within(_decoded(one), _decoded(other), ""))
            found += within or [FieldDiff(column, one, other)]
    return found


def _within(stored: Any, expected: Any, path: str) -> Iterator[FieldDiff]:
    """The fields that differ, those of messages too; the content of a message is compared whole."""
    if isinstance(stored, dict) and isinstance(expected, dict) and path.count(".") < 1:
        for name in [*expected, *(name for name in stored if name not in expected)]:
            pair = (stored.get(name, ABSENT), expected.get(name, ABSENT))
            if pair[0] != pair[1] or type(pair[0]) is not type(pair[1]):
                yield from _within(*pair, f"{path}.{name}" if path else str(name))
    elif isinstance(stored, list) and isinstance(expected, list):
        if len(stored) != len(expected):
            yield FieldDiff(f"{path} (count)", len(stored), len(expected))
        for number, (one, other) in enumerate(zip(stored, expected, strict=False), 1):
            if one != other:
                yield from _within(one, other, f"{path} {number}")
    elif path:
        yield FieldDiff(path, stored, expected)


def _decoded(value: Any) -> Any:
    try:
        return decode_exact(value) if isinstance(value, bytes) else value
    except Malformed:
        return value
