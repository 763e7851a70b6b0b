"""`projector doctor`: what is wrong, and the command that fixes it."""

import msgspec
import typer

from session_projector.worker.cli import output
from session_projector.worker.cli.color import painted
from session_projector.worker.cli.options import Database, Json, pasteable
from session_projector.worker.doctor.examine import examine
from session_projector.worker.storage import open as storage


def doctor(database: Database = "local.db", json: Json = False) -> None:
    """Check a database and its surroundings; exit 1 if a check fails."""
    found = [
        msgspec.structs.replace(one, found=pasteable(one.found), fix=pasteable(one.fix))
        for one in examine(storage.database(database))
    ]
    if json:
        print(output.to_json(msgspec.to_builtins(found)))
    else:
        width = max(len(one.check) for one in found)
        for one in found:
            level = "FAIL" if one.level == "fail" else one.level
            shown = painted(level) + " " * (4 - len(level))
            print(f"{shown}  {one.check:{width}}  {output.one_line(one.found)}")
            if one.fix:
                print(f"{'':{width + 8}}{output.one_line(one.fix)}")
    if any(one.level == "fail" for one in found):
        raise typer.Exit(1)
