"""The files of a tool: which there are, and the lines that were added to each."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path


def found(places: Sequence[Path], pattern: str, *, since_s: float = 0) -> list[Path]:
    """The files of a name in some folders and in those below, in order, that were changed since a
    Unix time; links to folders are not followed. A place that is a file is one, whatever its name.
    """
    inside = (
        Path(folder, name)
        for place in places
        for folder, _, names in os.walk(place)
        for name in names
        if fnmatch(name, pattern)
    )
    every = sorted({*inside, *(place for place in places if place.is_file())})
    return [path for path in every if not since_s or _changed_s(path) >= since_s]


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its tool deleted it
        return 0


class Tail:
    """The lines of a file that other programs append to. A last line without an end is left for the
    next time: it may be half a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        """Of the line that was read last."""
        self.is_unfinished = False
        """Whether there was more after it."""
        self._offset = 0
        self._inode = 0

    def is_replaced(self) -> bool:
        """Whether what was read is no longer what the file begins with, as far as that is quickly
        seen."""
        stat = self.path.stat()
        return self._inode not in (0, stat.st_ino) or stat.st_size < self._offset

    def lines(self) -> Iterator[bytes]:
        """The lines that were not read yet, without their ends."""
        if self.path.stat().st_size == self._offset:
            return
        with self.path.open("rb") as file:
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            self.is_unfinished = False
            for line in file:
                if not line.endswith(b"\n"):
                    self.is_unfinished = True
                    return
                self._offset += len(line)
                self.number += 1
                yield line.strip()
