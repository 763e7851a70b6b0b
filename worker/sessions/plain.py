"""Any value that MessagePack can hold, as one that JSON can hold."""

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from session_projector.projections.messagepack import Extension


def _same(value: Any) -> Any:
    return value


def plain(value: Any, shown: Callable[[Any], Any] = _same) -> Any:
    """Binary as base64, an extension type as a map, NaN and infinity as null, keys as text.

    `shown` is what becomes of each text and number.
    """
    match value:
        case str() | int():
            return shown(value)
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return shown(base64.b64encode(value).decode())
        case Extension():
            return {"ext": value.code, "data": shown(base64.b64encode(value.data).decode())}
        case dict():
            return _texts(value, shown)
        case list() | tuple():
            return [plain(item, shown) for item in value]
    return value


def _texts(value: Mapping[Any, Any], shown: Callable[[Any], Any]) -> dict[str, Any]:
    """A map with keys that are text; where two would be the same, the type tells them apart."""
    found: dict[str, Any] = {
        key: plain(item, shown) for key, item in value.items() if isinstance(key, str)
    }
    for key, item in value.items():
        if not isinstance(key, str):
            text = plain(key) if isinstance(key, bytes) else json.dumps(plain(key))
            while text in found:
                text += f" ({type(key).__name__})"
            found[text] = plain(item, shown)
    return found
