"""Which engine a database has: the one place that imports engines."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from session_projector.worker import linux
from session_projector.worker.errors import InterventionRequired, UsageError, pip_install

if TYPE_CHECKING:  # the command line imports this module, and its help needs no engine
    from session_projector.projections.projection import Table
    from session_projector.worker.storage.demo import Scratch
    from session_projector.worker.storage.limits import Limits
    from session_projector.worker.storage.port import Database


_MAX_LINKS: Final = 40
"""As many as the kernel follows."""


def database(url: str, limits: "Limits | None" = None) -> "Database":
    """The database of a path or `sqlite://PATH`, the path resolved, or of a `postgresql://` URL;
    raises `UsageError`."""
    scheme, path = _split(url)
    if scheme in ("postgresql", "postgres"):
        return _postgres(url, limits)
    if scheme != "sqlite":
        raise UsageError(
            f"there is no engine for {scheme}://",
            "give the path of a SQLite file, or a URL that begins with postgresql://",
        )
    return _sqlite(path, limits)


def _require_psycopg() -> None:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"a PostgreSQL database needs psycopg, which cannot be imported ({error})",
            f"install it: {pip_install('psycopg[binary]>=3.2.2')}",
        ) from None


def _postgres(url: str, limits: "Limits | None") -> "Database":
    _require_psycopg()
    from session_projector.worker.storage.postgres.database import PostgresDatabase

    return PostgresDatabase(url, limits)


def hide_passwords(url: str) -> None:
    """Let the list of processes not show the passwords of a URL."""
    if _split(url)[0] in ("postgresql", "postgres"):
        with suppress(ImportError, ValueError):
            from session_projector.worker.storage.postgres.target import passwords

            linux.hide(passwords(url))


@contextmanager
def scratch(url: str | None, engine: str) -> "Iterator[Scratch]":
    """A database for a demo: on the server of a URL, or of the engine's own; raises `UsageError`
    where there is none."""
    if engine == "sqlite":
        from session_projector.worker.storage.sqlite import demo as sqlite

        with sqlite.scratch(url) as made:
            yield made
        return
    _require_psycopg()
    from session_projector.worker.storage.postgres import demo as postgres

    with postgres.scratch(url) as made:
        yield made


def _split(url: str) -> tuple[str, str]:
    """The engine that a name asks for, and the rest of it; a name without a scheme is a path."""
    scheme, found, rest = url.partition("://")
    return (scheme, rest) if found and scheme != "file" else ("sqlite", url)


def _sqlite(path: str, limits: "Limits | None") -> "Database":
    if not path:
        raise UsageError("the name of the database is empty", "give the path of a SQLite file")
    if path == ":memory:":
        raise UsageError(
            "a database in memory is seen by one process alone, and writers and daemon are several",
            "give the path of a SQLite file",
        )
    if path.startswith("file:"):
        raise UsageError(
            f"{path} is a URI of SQLite's, and its parameters are not understood here",
            "give the path alone, or ./file:… for a file of that name",
        )
    try:
        resolved = Path(os.path.realpath(path))
    except OSError as error:  # the working folder is gone
        raise UsageError(f"{path}: {error.strerror}", "give an absolute path") from None
    with suppress(OSError):  # what cannot be looked at is told of where it is opened
        _refuse_planted_links(path)
    from session_projector.worker.storage.sqlite.database import SqliteDatabase

    given = Path(_absolute(path))
    return SqliteDatabase(resolved, limits, given if given != resolved else None)


def _absolute(path: str) -> str:
    """A path as the kernel takes it, each `..` as it is; the working folder may be gone."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def act_as_owner(url: str) -> None:
    """As root, be the owner of the database's folder from here on.

    For a program that does nothing else: it cannot be undone. Where it cannot be done, such as for
    a user who cannot read this installation, opening the database is refused. So is a link on the
    way that this user does not control: it would lead root with one user's path to another's files.
    """
    scheme, path = _split(url)
    if os.geteuid() != 0 or scheme != "sqlite":
        return
    folder = os.stat("/")
    links = []
    with suppress(OSError):  # what cannot be looked at is told of where it is opened
        for step in _way(path):
            if stat.S_ISDIR(step.found.st_mode):
                folder = step.found
            elif stat.S_ISLNK(step.found.st_mode):
                links.append(step)
    for link in links:
        _refuse_link(link, {0, folder.st_uid}, of_folder=False)
    if folder.st_uid:
        here = (Path(__file__), Path(os.__file__), Path(sys.executable))
        linux.become(folder.st_uid, folder.st_gid, here)


class _Step(NamedTuple):
    """A folder, link or file on the way to a path, and the owner of the folder that it is in."""

    name: Path
    found: os.stat_result
    folder_uid: int


def _way(path: str) -> Iterator[_Step]:
    """All that the kernel passes on the way to a path, as far as it is there."""
    here, found = Path("/"), os.stat("/")
    left = _absolute(path).split("/")[::-1]
    links = 0
    while left and links <= _MAX_LINKS:
        part = left.pop()
        if part in ("", "."):
            continue
        name, folder_uid = here.parent if part == ".." else here / part, found.st_uid
        try:
            found = name.lstat()
        except FileNotFoundError:
            return
        yield _Step(name, found, folder_uid)
        if not stat.S_ISLNK(found.st_mode):
            here = name
            continue
        links += 1
        target = os.readlink(name)
        left += target.split("/")[::-1]
        here = Path("/") if target.startswith("/") else here
        found = here.lstat()


def _refuse_planted_links(path: str) -> None:
    """Refuse a name that a link leads elsewhere which another user put there.

    What is in reach of this user and not of that one would be opened, or a database made there.
    """
    for step in _way(path):
        if stat.S_ISLNK(step.found.st_mode):
            _refuse_link(step, {0, os.geteuid()}, of_folder=os.geteuid() != 0)


def _refuse_link(link: _Step, users: set[int], *, of_folder: bool) -> None:
    """Refuse a link unless one of some users made it, or, with `of_folder`, its folder's owner; and
    without that one in a folder where somebody else could replace it."""
    owner = link.found.st_uid
    trusted = {*users, link.folder_uid} if of_folder else users
    if owner in trusted and (of_folder or link.folder_uid in users):
        return
    raise InterventionRequired(
        f"{link.name} is a symbolic link of user {owner}, and leads to {os.readlink(link.name)!r}",
        "give the path of the database itself, if it is the one that is meant",
    )


def table_fault(table: "Table") -> str:
    """Why a projection cannot have a table, '' where it can; all engines take what SQLite takes."""
    from session_projector.worker.storage.sqlite import tables

    return tables.fault(table)
