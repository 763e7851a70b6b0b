"""Which engine a database has: the one place that imports engines."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from session_projector.worker import linux
from session_projector.worker.errors import InterventionRequired, UsageError

if TYPE_CHECKING:  # the command line imports this module, and its help needs no engine
    from session_projector.projections.projection import Table
    from session_projector.worker.storage.limits import Limits
    from session_projector.worker.storage.port import Database


_MAX_LINKS: Final = 40
"""As many as the kernel follows."""


def database(url: str, limits: "Limits | None" = None) -> "Database":
    """The database of a path or `sqlite://PATH`, the path resolved; raises `UsageError`."""
    scheme, path = _split(url)
    if scheme != "sqlite":
        raise UsageError(f"there is no engine for {scheme}://", "give the path of a SQLite file")
    return _sqlite(path, limits)


def _split(url: str) -> tuple[str, str]:
    """The engine that a name asks for, and the rest of it; a name without a scheme is a path."""
    scheme, found, rest = url.partition("://")
    return (scheme, rest) if found else ("sqlite", url)


def _sqlite(path: str, limits: "Limits | None") -> "Database":
    if not path:
        raise UsageError("the name of the database is empty", "give the path of a SQLite file")
    try:
        resolved = Path(os.path.realpath(path))
    except OSError as error:  # the working folder is gone
        raise UsageError(f"{path}: {error.strerror}", "give an absolute path") from None
    with suppress(OSError):  # what cannot be looked at is told of where it is opened
        _refuse_planted_links(path)
    from session_projector.worker.storage.sqlite.database import SqliteDatabase

    given = Path(os.path.abspath(path))
    return SqliteDatabase(resolved, limits, given if given != resolved else None)


def act_as_owner(url: str) -> None:
    """As root, be the owner of the database's folder from here on.

    For a program that does nothing else: it cannot be undone. Where it cannot be done, such as for
    a user who cannot read this installation, opening the database is refused.
    """
    scheme, path = _split(url)
    if os.geteuid() != 0 or scheme != "sqlite":
        return
    try:
        name = Path(os.path.abspath(path))
        files = (name, Path(os.path.realpath(name)))  # where a link to it lies, and where it does
    except OSError:  # the working folder is gone, as is told of where the database is opened
        return
    for file in files:
        folder = next(one for one in (*file.parents, file) if os.path.isdir(one)).stat()
        if folder.st_uid:
            here = (Path(__file__), Path(os.__file__), Path(sys.executable))
            linux.become(folder.st_uid, folder.st_gid, here)
            return


def _refuse_planted_links(path: str) -> None:
    """Refuse a name that a link leads elsewhere which another user put there.

    What is in reach of this user and not of that one would be opened, or a database made there.
    """
    name = Path(os.path.abspath(path))
    for _ in range(_MAX_LINKS):
        links = (one for one in (*reversed(name.parents), name) if one.is_symlink())
        if (link := next(links, None)) is None:
            return
        users = {0, os.geteuid()}
        if os.geteuid() != 0:
            users.add(link.parent.stat().st_uid)
        if (owner := link.lstat().st_uid) not in users:
            raise InterventionRequired(
                f"{link} is a symbolic link of user {owner}, and leads to {os.readlink(link)!r}",
                "give the path of the database itself, if it is the one that is meant",
            )
        rest = name.relative_to(link)
        name = Path(os.path.abspath(link.parent / os.readlink(link) / rest))


def table_fault(table: "Table") -> str:
    """Why a projection cannot have a table, '' where it can; all engines take what SQLite takes."""
    from session_projector.worker.storage.sqlite import tables

    return tables.fault(table)
