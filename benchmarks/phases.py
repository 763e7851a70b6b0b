"""`projector` that shows at any moment what it is doing: phases.py FILE ARGUMENTS...

It calls the product without changing it. FILE is mapped into memory, so it survives a SIGKILL; its
first byte is the index of the current phase in `PHASES`.
"""

import mmap
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, Final

WRAPPED: Final[dict[str, tuple[str, ...]]] = {
    "read": (
        "{storage}.log:{Engine}Log.page",
        "{storage}.log:{Engine}Log.of",
        "{storage}.log:{Engine}Log.by_session",
        "{storage}.views:{Engine}Views.load",
    ),
    "fold": ("session_projector.projections.fold:read", "session_projector.projections.fold:fold"),
    "commit": ("{storage}.store:{Engine}Store.commit",),
    "setup": ("{migrate}:setup",),
    "migration": ("{migrate}:{migration}",),
    "walk": ("session_projector.worker.replay.round_robin:interleave",),
    "replay": ("session_projector.worker.replay.verify:replay",),
}
"""The functions that belong to each phase; add a new phase here."""
_STORAGE: Final = "session_projector.worker.storage"
SQLITE: Final = {
    "storage": f"{_STORAGE}.sqlite",
    "Engine": "Sqlite",
    "migrate": f"{_STORAGE}.sqlite.schema.migrate",
    "migration": "_migrate",
}
POSTGRES: Final = {
    "storage": f"{_STORAGE}.postgres",
    "Engine": "Postgres",
    "migrate": f"{_STORAGE}.postgres.migrate",
    "migration": "_setup",
}
OUTER: Final = frozenset({"walk", "replay"})
"""Phases that hide the phases of what they call: the outermost of these is shown, or else the
innermost phase."""
PHASES: Final = ("other", *WRAPPED)


class Board:
    """A file whose first byte shows the phase to any process that maps it."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 1)
        self._active: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase during the block; tasks interleave, so phases may end in any order."""
        self._active.append(name)
        self._show()
        try:
            yield
        finally:
            self._active.reverse()
            self._active.remove(name)
            self._active.reverse()
            self._show()

    def _show(self) -> None:
        outer = [name for name in self._active if name in OUTER]
        shown = (outer[:1] or self._active or ["other"])[-1]
        self._map[0] = PHASES.index(shown)


def wrap(board: Board, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its phase is shown while it runs."""
    if iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            with board.phase(name):
                result: Awaitable[Any] = function(*arguments, **options)
                return await result

        return awaited

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        with board.phase(name):
            return function(*arguments, **options)

    return called


def instrument(board: Board, engine: dict[str, str]) -> None:
    """Wrap all functions; call this before any module that imports them by name is imported."""
    for name, places in WRAPPED.items():
        for place in places:
            module, _, path = place.format(**engine).partition(":")
            *owners, attribute = path.split(".")
            owner: Any = import_module(module)
            for step in owners:
                owner = getattr(owner, step)
            setattr(owner, attribute, wrap(board, name, getattr(owner, attribute)))


def main() -> None:
    file = Path(sys.argv.pop(1))
    instrument(Board(file), POSTGRES if any("://" in word for word in sys.argv) else SQLITE)
    import_module("session_projector.worker.cli.main").main()


if __name__ == "__main__":
    main()
