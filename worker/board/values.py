"""Values as the API gives them: JSON that a browser keeps exact, and none that is endless."""

import json
from typing import Any, Final

import msgspec

from session_projector.worker.sessions.plain import plain

CUT_BYTES: Final = 16 * 1024
"""Where a long text in a message is cut."""
MESSAGE_BYTES: Final = 256 * 1024
"""The largest message, as JSON, that is shown in parts; of a larger one the beginning is."""
NAME_LENGTH: Final = 200
"""Characters of a project, a status or a role."""
_EXACT: Final = 2**53
_encoded: Final = msgspec.json.encode


def to_json(value: Any) -> bytes:
    try:
        return _encoded(value)
    except UnicodeEncodeError:  # a lone surrogate, of an id or key that is not UTF-8
        return json.dumps(msgspec.to_builtins(value)).encode()


def exact(value: Any) -> Any:
    """A text or number that JavaScript would not round."""
    if type(value) is int and not -_EXACT <= value <= _EXACT:
        return {"int": str(value)}
    return value


def cut(value: Any) -> Any:
    """The same, and a long text cut."""
    if isinstance(value, str) and len(value) > CUT_BYTES // 4:
        data = value.encode("utf-8", "replace")
        if len(data) > CUT_BYTES:
            return {"cut": len(data), "text": data[:CUT_BYTES].decode(errors="ignore")}
    return exact(value)


def whole(value: Any) -> Any:
    return plain(value, exact)


def short(text: str) -> str:
    """A name, which may be as long as an event."""
    return text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…"


def shown(message: dict[Any, Any]) -> bytes:
    """A message with what is long in it cut, as JSON."""
    data = to_json(plain(message, cut))
    if len(data) <= MESSAGE_BYTES:
        return data
    role = message.get("role")
    text = data[:CUT_BYTES].decode(errors="ignore")
    return to_json(
        {"role": short(role) if isinstance(role, str) else None} | {"cut": len(data), "text": text}
    )
