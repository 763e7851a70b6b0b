"""`projector projection …`: begin one, list those of a database, or drop one."""

import os
import sys
from typing import Annotated

import typer
from msgspec.structs import asdict

from session_projector.projections import SEARCH
from session_projector.worker import linux
from session_projector.worker.cli.commands import HELP, SETTINGS
from session_projector.worker.cli.options import Database, Json, pasteable
from session_projector.worker.cli.output import one_line, table, to_json
from session_projector.worker.errors import CheckFailed, many, pip_install, quoted
from session_projector.worker.operations import projections
from session_projector.worker.storage import open as storage

projection = typer.Typer(help=HELP["projection"], **SETTINGS)


@projection.command("new")
def projection_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection's name.")],
) -> None:
    """Write a small package with a projection and its test into the folder NAME."""
    from session_projector.worker.cli import new_projection

    target = storage.database(os.environ.get("PROJECTOR_DATABASE") or "local.db")
    where = target.file.absolute() if target.file else target.name
    folder, spec = new_projection.write(name)
    python = quoted(sys.executable)
    print(f"wrote {folder}/: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    print(f"test it, with pytest: `(cd {folder} && {python} -m pytest)`")
    run = f"projector run --once --projection {spec} -d {quoted(where)}"
    print(f"fold with it: `(cd {folder} && {run})`")
    print(f"install it, beside projector: {pip_install(f'./{folder}')}")


@projection.command("list")
def projection_list(database: Database = "local.db", json: Json = False) -> None:
    """List the projections with version, position and rows."""
    with storage.database(database).open() as store:
        found = [asdict(listed) for listed in projections.listing(store)]
    if json:
        print(to_json(found))
        return
    headers = (
        "name",
        "version",
        "code_version",
        "position",
        "kept_in",
        "rows",
        "quarantined",
        "skipped",
    )
    print(table(headers, [["-" if row[h] is None else row[h] for h in headers] for row in found]))


@projection.command("drop")
def projection_drop(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection's name.")],
    database: Database = "local.db",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a projection's rows, quarantine and checkpoint, after asking."""
    target = storage.database(database)
    with target.open(writable=True) as store:
        listed = projections.find(store, name)
        leader = target.leadership().leader()
        if leader and (name in leader.running or (listed.code_version and leader.runs(name))):
            pid, hint = leader.local_pid, "stop the daemon first"
            raise CheckFailed(
                f"a daemon ({leader}) runs {name} and would rebuild it at once",
                f"{hint}: {linux.ending([pid], seen=leader.seen)}" if pid else hint,
            )
        if listed.version is None and listed.code_version:
            raise CheckFailed(f"{one_line(name)} never ran here: there is nothing to drop")
        kept_in = one_line(listed.kept_in, 200)
        rows = f"{many(listed.rows, 'row')} of {kept_in}, "
        if not store.views.owns(name):
            rows = ""
            if kept_in:
                print(f"{kept_in} is no table of this projection, and does not change")
        print(
            f"drops {rows}{listed.quarantined:,} of quarantine, and the checkpoint of"
            f" {one_line(name, 200)} at {listed.position:,}; the log does not change"
        )
        if not yes:
            typer.confirm("Drop it?", abort=True)
        store.views.drop(name)
    rebuilds = "; the next run rebuilds it" if listed.code_version else ""
    if name == SEARCH.name:
        rebuilds = "; search is off now, until `projector run --with search`"
    print(pasteable(f"dropped{rebuilds}"))
