"""Cached views: those of a projection that were written last, as they were folded."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

CACHE_BYTES: Final = 12 * 1024 * 1024
"""What the cached views may come to; the newest is kept whatever its size."""
VIEW_BYTES: Final = 1024
"""Of a view in Python, beside the bytes of its row."""


class ViewCache:
    """A bounded cache, as true as the checkpoint that it was filled under.

    Whoever else moves a projection on, or repairs its rows, moves the checkpoint too: then this
    is of no use any more. A row that is changed behind its back is made right by the next write.
    """

    def __init__(self) -> None:
        self._views: dict[str, tuple[Any, int]] = {}  # the one used longest ago first
        self._bytes = 0
        self._pinned: dict[str, Any] = {}

    def take(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of some views that are cached."""
        held = {key: self._views[key][0] for key in keys if key in self._views}
        return held | {key: self._pinned[key] for key in keys if key in self._pinned}

    def pin(self, key: str) -> None:
        """Keep a view that is cached, beside the others, until another one is pinned: it costs much
        to load, and will be folded on soon."""
        pinned = self.take([key])
        self._forget(key)
        self._pinned = pinned

    def unpin(self) -> None:
        self._pinned = {}

    def keep(self, views: Mapping[str, Any], sizes: Iterable[int]) -> None:
        """Views as they now stand, and the bytes of their rows."""
        for (key, view), size in zip(views.items(), sizes, strict=True):
            self._forget(key)
            self._views[key] = (view, size + VIEW_BYTES)
            self._bytes += size + VIEW_BYTES
        for key in [*self._views]:  # not the first again and again, which is slow in a dict
            if self._bytes <= CACHE_BYTES or len(self._views) == 1:
                break
            self._forget(key)

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._forget(key)

    def _forget(self, key: str) -> None:
        self._pinned.pop(key, None)
        if found := self._views.pop(key, None):
            self._bytes -= found[1]
