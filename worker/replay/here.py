"""A store that is used in the thread that opened it."""

from collections.abc import Callable

from session_projector.worker.storage.port import Store, T


class Here:
    """Implements `worker.storage.port.Thread`, where nothing else is to run meanwhile."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self, work: Callable[[Store], T]) -> T:
        return work(self._store)

    async def changed(self, patience_s: float = 0) -> bool:
        del patience_s  # nobody waits here
        return self._store.changed()
