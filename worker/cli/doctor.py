"""`projector doctor`: what is wrong, and the command that mends it."""

from pathlib import Path

import typer

from session_projector.worker.cli.options import Database, Json, pasteable
from session_projector.worker.storage import open as storage


def doctor(database: Database = "local.db", json: Json = False) -> None:
    """Check a database and all around it; exit 1 if something is wrong."""
    from msgspec.structs import asdict

    from session_projector.worker.cli import output
    from session_projector.worker.doctor.examine import examine

    found = [*examine(Path(storage.database(database).name))]
    if json:
        print(output.to_json([asdict(one) for one in found]))
    else:
        width = max(len(one.check) for one in found)
        for one in found:
            level = "FAIL" if one.level == "fail" else one.level
            print(f"{level:4}  {one.check:{width}}  {output.one_line(one.found)}")
            if one.mend:
                print(f"{'':{width + 8}}{output.one_line(pasteable(one.mend))}")
    if any(one.level == "fail" for one in found):
        raise typer.Exit(1)
