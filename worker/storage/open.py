"""Which engine a database has: the one place that imports engines."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from session_projector.worker import linux
from session_projector.worker.errors import BadUsage

if TYPE_CHECKING:  # the command line imports this module, and its help needs no engine
    from session_projector.projections.projection import Table
    from session_projector.worker.storage.port import Database, Limits


def database(url: str, limits: "Limits | None" = None) -> "Database":
    """The database of a path or `sqlite:` URL, its path resolved; raises `BadUsage`."""
    scheme, colon, rest = url.partition("://")
    if colon and scheme != "sqlite":
        raise BadUsage(f"there is no engine for {scheme}://", "give the path of a SQLite file")
    if not (path := rest if colon else url):
        raise BadUsage("the name of the database is empty", "give the path of a SQLite file")
    try:
        resolved = Path(os.path.realpath(path))
    except OSError as error:  # the working folder is gone
        raise BadUsage(f"{path}: {error.strerror}", "give an absolute path") from None
    from session_projector.worker.storage.sqlite.database import SqliteDatabase

    given = Path(os.path.abspath(path))
    return SqliteDatabase(resolved, limits, given if given != resolved else None)


def act_as_owner(url: str) -> None:
    """As root, be the owner of the database's folder from here on.

    For a program that does nothing else: it cannot be undone. Where it cannot be done, such as for
    a user who cannot read this installation, opening the database is refused.
    """
    if os.geteuid() == 0 and (file := database(url).file):
        folder = next(one for one in (file, *file.parents) if os.path.isdir(one)).stat()
        if folder.st_uid:
            here = (Path(__file__), Path(os.__file__), Path(sys.executable))
            linux.become(folder.st_uid, folder.st_gid, here)


def table_fault(table: "Table") -> str:
    """Why a projection cannot have a table, '' where it can; all engines take what SQLite takes."""
    from session_projector.worker.storage.sqlite import tables

    return tables.fault(table)
