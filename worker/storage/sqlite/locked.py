"""Who holds the write lock of an SQLite database, as far as /proc/locks tells."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from session_projector.worker import linux
from session_projector.worker.storage.port import Holder

# What SQLite locks to write, by its file format: a byte of the -shm file; of the database the bytes
# PENDING, RESERVED and the first of SHARED, where there is no WAL or one connection has all of it.
WRITE_AT: Final = 120
_ALL_AT: Final = range(0x40000000, 0x40000003)


def holders(path: Path) -> dict[int, bool]:
    """The other processes that hold it now, and whether each is seen to have the database open;
    that cannot be seen of another user's."""
    shm = path.with_name(path.name + "-shm")
    found = [(pid, shm) for pid, _, at in linux.locks(shm) if at == WRITE_AT]
    found += [(pid, path) for pid, of, at in linux.locks(path) if of == "WRITE" and at in _ALL_AT]
    seen = {pid: linux.has_open(pid, file) for pid, file in found if pid != os.getpid()}
    return {pid: bool(is_open) for pid, is_open in seen.items() if is_open is not False}


def holder(found: Mapping[int, bool]) -> Holder:
    """Some `holders` in words, and what lets others write again."""
    end = linux.ending(found, seen=all(found.values()))
    return Holder(linux.named(found), f"let it end its transaction, or end the process: {end}")
