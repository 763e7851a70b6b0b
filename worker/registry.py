"""The projections that are available: built in, installed, or named on the command line."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

import msgspec
import structlog

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.projections.projection import PerSession, Projection, Table
from session_projector.worker.errors import UsageError, quoted
from session_projector.worker.storage.open import table_fault
from session_projector.worker.storage.port import Store

GROUP: Final = "projector.projections"
"""The entry point group under which packages offer projections."""
_NAME: Final = re.compile("[A-Za-z_][A-Za-z0-9_]{0,199}")
_INDEX: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*(, [A-Za-z_][A-Za-z0-9_]*)*")
_KINDS: Final = {"TEXT", "INTEGER", "REAL", "BLOB"}

_logged: Final = set["Unusable"]()

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Unusable(msgspec.Struct, frozen=True):
    """An installed projection that cannot be used; `name` is that of its entry point."""

    name: str
    package: str | None
    why: str
    hint: str


def known(
    named: Iterable[str] = (), store: Store | None = None, *, search: bool | None = None
) -> list[Projection]:
    """The built-in projections, the installed ones and those named as `module:Name`, in this order.

    Among the first is `search`, if that is asked for, or, where nothing is said of it, if it ran in
    the database of `store` before.
    An installed projection that cannot be used is logged, once, and left out, so that it does not
    stop the others. A named one raises `UsageError`.
    """
    found = _built_in(store, search)
    # Loaded first, so that an installed package of the same name does not shadow them.
    own = [_named(spec) for spec in named]
    for one in _add_installed(found):
        if one not in _logged:
            _logged.add(one)
            log.error("projection_not_loaded", package=one.package, why=one.why, hint=one.hint)
    for projection in own:
        _add(found, projection)
    return found


def unusable(store: Store) -> list[Unusable]:
    """The installed projections that cannot be used in a database."""
    return _add_installed(_built_in(store))


def require_usable(name: str, store: Store) -> None:
    """Raise `UsageError` for an installed projection that cannot be used."""
    for one in unusable(store):
        if one.name == name:
            raise UsageError(one.why, one.hint)


def searches(store: Store) -> bool:
    """Whether `search` ran in a database, and was not dropped since."""
    stored, table = store.checkpoints.all().get(SEARCH.name), SEARCH.table
    ours = (table.name, table.key)
    return stored is not None and (stored.table.name, stored.table.key) == ours


def chosen(name: str | None, store: Store) -> list[Projection]:
    """All of `known` in a database, or the one with a name, which may be `module:Name`."""
    if name is None:
        return known(store=store)
    if ":" in name:
        projection = _named(name)
        _add([*BUILT_IN], projection)
        return [projection]
    projections = known(store=store)
    for projection in projections:
        if projection.name == name:
            return [projection]
    require_usable(name, store)
    raise UsageError(
        f"there is no projection {name}",
        f"there are {', '.join(p.name for p in projections)}; give one that is not installed as"
        " module:Name",
    )


def _built_in(store: Store | None, search: bool | None = None) -> list[Projection]:
    is_searched = search or (search is None and store is not None and searches(store))
    return [*BUILT_IN, SEARCH] if is_searched else [*BUILT_IN]


def _add_installed(found: list[Projection]) -> list[Unusable]:
    """Add the installed projections; returns those that cannot be used."""
    unusable = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.value):
        try:
            module, _, name = point.value.partition(" ")[0].partition(":")
            _add(found, _load(module, name))
        except UsageError as error:
            package = point.dist.name if point.dist else None
            unusable.append(Unusable(point.name, package, str(error), error.hint))
    return unusable


def _named(spec: str) -> Any:
    module, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UsageError(
            f"{spec} does not name a projection",
            "give module:Name as Python imports it, such as projections.balance:Balance",
        )
    if "." not in sys.path:
        sys.path.insert(_behind_standard_library(), ".")
    return _load(module, name, path='import sys; sys.path.append("."); ')


def _behind_standard_library() -> int:
    """Where the working folder goes in `sys.path`: a project's own modules come before installed
    packages, and none of them hides a module of Python's own."""
    standard = os.path.dirname(os.__file__)
    of_python = (standard, os.path.join(standard, "lib-dynload"))
    found = [index for index, path in enumerate(sys.path, 1) if path in of_python]
    return max(found, default=len(sys.path))


def _load(module: str, name: str, *, path: str = "") -> Any:
    """Import a projection; the hint of the `UsageError` imports it as here, after `path`."""
    try:
        value: Any = import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        return value() if isinstance(value, type) else value
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        code = f"{path}from {module} import {name.partition('.')[0]}"
        raise UsageError(
            f"the projection {module}:{name} cannot be loaded: {type(error).__name__}: {error}",
            f"see what is wrong: `{quoted(sys.executable)} -P -c {quoted(code)}`",
        ) from None


def _add(found: list[Projection], projection: Any) -> None:
    """Add a projection unless it is there already; raises `UsageError` if it cannot be used."""
    name = getattr(projection, "name", None)
    same = [p for p in found if type(p) is type(projection) and p.name == name]
    if not same:
        try:
            wrong = next(_faults(projection, found), None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            of = f"{type(projection).__module__}:{type(projection).__qualname__}"
            raise UsageError(f"the projection {of} cannot be used: {wrong}", "fix its code")
        found.append(projection)


def _faults(projection: Any, others: Sequence[Projection]) -> Iterator[str]:
    """What is wrong with a projection of another package."""
    if not isinstance(projection, Projection):
        yield f"it is a {type(projection).__name__}, not a Projection"
    missing = [a for a in ("name", "version", "table") if not hasattr(projection, a)]
    base = PerSession if isinstance(projection, PerSession) else Projection
    required = ("created", "changed") if base is PerSession else ("key_of", "fold")
    missing += [m for m in required if getattr(type(projection), m) is getattr(base, m)]
    if missing:
        yield f"it lacks {', '.join(missing)}"
    name, version, events = projection.name, projection.version, projection.events
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"its name is {name!r}, not a word of at most 200 letters, digits and _"
    if type(version) is not int or not 1 <= version < 2**31:
        yield f"its version is {version!r}, not an integer of 1 or more"
    sets = (list, tuple, set, frozenset)
    if not isinstance(events, sets) or not all(isinstance(kind, str) for kind in events):
        yield "its events are not a set, list or tuple of strings"
    if name in {other.name for other in others}:
        yield f"another projection is called {name}, too"
    yield from _table_faults(projection.table, {p.table.name.lower() for p in others})


def _table_faults(table: Any, taken: set[str]) -> Iterator[str]:
    if not isinstance(table, Table):
        yield "its table is not a Table"
    names = [table.name, *table.columns]
    if odd := [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]:
        yield f"{odd[0]!r} is not a name of at most 200 letters, digits and _"
    if kinds := set(table.columns.values()) - _KINDS:
        yield f"a column is {kinds.pop()!r}, not TEXT, INTEGER, REAL or BLOB"
    if table.columns.get(table.key) != "TEXT":
        yield f"its key {table.key!r} is not a column of type TEXT"
    if table.prefix:
        yield "only projector's own tables have a prefix"
    if table.words:
        yield "only projector's own tables have an index by words"
    if odd := [index for index in table.indexes if not _INDEX.fullmatch(index)]:
        yield f"the index {odd[0]!r} is not a list of columns such as 'day, project'"
    name = table.name.lower()
    if name in taken:
        yield f"the table {table.name} belongs to another projection"
    if fault := table_fault(table):
        yield fault
