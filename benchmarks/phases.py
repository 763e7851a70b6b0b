"""`projector` that says from moment to moment what it does: phases.py FILE ARGUMENTS...

It calls through to the product and changes nothing of it. The first byte of FILE, which is mapped
into memory and so outlives a SIGKILL, is the index in `PHASES` of what is being done.
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
        "session_projector.worker.storage.sqlite.store:SqliteStore.look",
        "session_projector.worker.storage.sqlite.store:SqliteStore.read_events",
        "session_projector.worker.storage.sqlite.store:SqliteStore.load_views",
    ),
    "fold": (
        "session_projector.projections.fold:read",
        "session_projector.projections.fold:fold",
    ),
    "commit": ("session_projector.worker.storage.sqlite.store:SqliteStore.commit",),
    "setup": ("session_projector.worker.storage.sqlite.schema.migrate:setup",),
    "migration": ("session_projector.worker.storage.sqlite.schema.migrate:_migrate",),
    "walk": ("session_projector.worker.replay.round_robin:side_by_side",),
    "replay": ("session_projector.worker.replay.verify:replay",),
}
"""What belongs to a phase; a new phase is one line here."""
OUTER: Final = frozenset({"walk", "replay"})
"""Phases that hide those of what they call, the outermost of them; of all others the innermost
counts."""
PHASES: Final = ("other", *WRAPPED)


class Board:
    """Shows the phase to whoever maps the same file."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 1)
        self._active: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Tasks take turns, so phases need not end in the order in which they began."""
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
    """The function, its phase shown while it runs."""
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


def instrument(board: Board) -> None:
    """Before any module that takes these names to itself is imported."""
    for name, places in WRAPPED.items():
        for place in places:
            module, _, path = place.partition(":")
            *owners, attribute = path.split(".")
            owner: Any = import_module(module)
            for step in owners:
                owner = getattr(owner, step)
            setattr(owner, attribute, wrap(board, name, getattr(owner, attribute)))


def main() -> None:
    file = Path(sys.argv.pop(1))
    instrument(Board(file))
    import_module("session_projector.worker.cli.main").main()


if __name__ == "__main__":
    main()
