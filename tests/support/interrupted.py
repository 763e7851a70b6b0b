"""A helper that cancels a coroutine at a chosen point."""

from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Interrupted(Coroutine[Any, Any, bool]):
    """A coroutine that calls `cancel` when it is suspended for the n-th time."""

    def __init__(self, inner: Coroutine[Any, Any, bool], at: int, *, again: bool) -> None:
        self.cancel: Callable[[], object] = lambda: None
        self.suspensions = 0
        self._inner = inner
        self._at = at
        self._again = again

    def send(self, value: Any) -> Any:
        return self._suspended(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, bool]:
        return (yield from self._inner.__await__())

    def _suspended(self, awaited: Any) -> Any:
        self.suspensions += 1
        if self.suspensions == self._at or (self._again and self.suspensions > self._at):
            self.cancel()
        return awaited
