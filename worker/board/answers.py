"""Answers in JSON, and the errors among them."""

from typing import Any, Final

from starlette.responses import Response

from session_projector.worker.board.values import to_json
from session_projector.worker.errors import (
    CheckFailed,
    InterventionRequired,
    ProjectorError,
    TransientError,
    UsageError,
    naming,
)


class Conflict(ProjectorError):
    """It cannot be done as things are."""


_STATUS: Final = {
    UsageError: 400,
    CheckFailed: 404,
    Conflict: 409,
    TransientError: 503,
    InterventionRequired: 500,
}


def answer(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def refused(status: int, error: str, hint: str = "") -> Response:
    return answer({"error": error, "hint": hint}, status)


def told(error: ProjectorError, database: str) -> dict[str, str]:
    """An error in the words of the command line, its hint about this database."""
    return {"error": str(error), "hint": naming(database, error.hint)}


def failed(error: ProjectorError, database: str) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    return answer(told(error, database), status)
