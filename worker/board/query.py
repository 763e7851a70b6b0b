"""The parameters of a request; raises `UsageError` for those that are wrong."""

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from session_projector.worker.errors import UsageError

MOST: int = 2**63 - 1
MOST_NAMED: int = 16


def required(request: Request, name: str) -> str:
    if value := request.query_params.get(name):
        return value
    raise UsageError(f"the parameter {name} is missing", f"add {name}= to the address")


def text(request: Request, name: str) -> str | None:
    return request.query_params.get(name) or None


def number(
    request: Request, name: str, default: int | None = None, *, low: int = 0, high: int = MOST
) -> int:
    """A whole number; one that is `required` has no default."""
    value = request.query_params.get(name)
    if not value and default is not None:
        return default
    return _number(value, name, low, high)


def numbered(request: Request, name: str, number: str) -> dict[str, int | None]:
    """A parameter that may be given several times, and for each a number, or none for any."""
    names = [one for one in request.query_params.getlist(name) if one]
    numbers = [one for one in request.query_params.getlist(number) if one]
    if len(names) > MOST_NAMED:
        raise UsageError(f"{name} is given {len(names)} times", f"give {MOST_NAMED} at most")
    if not numbers:
        return dict.fromkeys(names)
    if len(names) != len(numbers):
        raise UsageError(f"{number} is not given for each {name}", f"correct {number}=")
    return {one: _number(value, number, 0, MOST) for one, value in zip(names, numbers, strict=True)}


def _number(value: str | None, name: str, low: int, high: int) -> int:
    digits = value is not None and value.isascii() and value.isdigit() and len(value) < 20
    if value and digits and low <= int(value) <= high:
        return int(value)
    raise UsageError(f"{name} is not a number from {low} to {high}", f"correct {name}=")


def chosen(request: Request, name: str, *choices: str) -> str:
    """One of some words, by default the first."""
    value = request.query_params.get(name) or choices[0]
    if value not in choices:
        raise UsageError(f"{name} is none of {', '.join(choices)}", f"correct {name}=")
    return value


def token(values: Sequence[Any] | None) -> str | None:
    """Where a page ends, as the text that asks for the next one."""
    if values is None:
        return None
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).decode().rstrip("=")


def page(request: Request, name: str, kinds: Any) -> Any:
    """What `token` made, None where it is not given."""
    if not (value := request.query_params.get(name)):
        return None
    try:
        return msgspec.json.decode(
            base64.b64decode(value + "=" * (-len(value) % 4), b"-_", validate=True), type=kinds
        )
    except (ValueError, msgspec.MsgspecError):
        wrong = f"{name} is not what an answer had as `next`"
        raise UsageError(wrong, f"leave {name}= out") from None
