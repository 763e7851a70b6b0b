"""What a table can keep of a view, and the view that a row of it keeps."""

from typing import Any, Final

from session_projector.projections.event import Unfoldable, is_utf8
from session_projector.projections.projection import FAULT, CorruptRow, Projection

MAX_ROW_BYTES: Final = 256 * 1024 * 1024
"""The texts and BLOBs of one row."""


def require_key(key: Any) -> None:
    """Raises `Unfoldable` unless a row can have this key."""
    if not isinstance(key, str) or not is_utf8(key):
        raise Unfoldable(f"{FAULT}key_of gave no text in UTF-8")


def require_row(projection: Projection, key: str, row: Any) -> None:
    """Raises `Unfoldable` where its table would not keep a row as it is, under this key."""
    columns = projection.table.columns
    if not isinstance(row, tuple) or len(row) != len(columns):
        size_of = f" of {len(row)}" if isinstance(row, tuple | list) else ""
        raise Unfoldable(
            f"{FAULT}a row is a tuple of {len(columns)} columns, and not a"
            f" {type(row).__name__}{size_of}"
        )
    size = 0
    for (name, kind), value in zip(columns.items(), row, strict=True):
        if not fits(kind, value):
            what = type(value).__name__
            raise Unfoldable(f"{FAULT}the column {name} is {kind} and cannot keep this {what}")
        if name == projection.table.key and value != key:
            raise Unfoldable(f"{FAULT}the column {name} is not what key_of says")
        size += len(value) if isinstance(value, str | bytes) else 0
    if size > MAX_ROW_BYTES:
        raise Unfoldable(f"the view would be larger than {MAX_ROW_BYTES} bytes")


def fits(kind: str, value: Any) -> bool:
    """Whether a column of this SQL type gives the value back as it is."""
    if value is None:
        return True
    match kind:
        case "TEXT":
            return type(value) is str and is_utf8(value)
        case "INTEGER":
            return type(value) is int and -(2**63) <= value < 2**63
        case "REAL":
            return type(value) is float and value == value  # SQLite keeps NaN as NULL
    return type(value) is bytes


def restore(projection: Projection, row: tuple[Any, ...]) -> Any:
    """The view that a row keeps; raises `CorruptRow`."""
    for (name, kind), value in zip(projection.table.columns.items(), row, strict=True):
        odd = isinstance(value, str) and not is_utf8(value)
        if odd or not (projection.built_in or fits(kind, value)):
            raise CorruptRow(f"{name} is not {kind} as a fold would write it")
    return projection.from_row(row)
