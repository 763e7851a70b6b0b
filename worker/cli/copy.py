"""`projector copy`: a whole log into another database, and the views that are folded there."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated

import anyio
import typer
from msgspec.structs import asdict

from session_projector.projections.projection import Projection
from session_projector.worker import registry
from session_projector.worker.cli import output
from session_projector.worker.cli.options import JsonLines, heed, heed_other, hints_about
from session_projector.worker.cli.progress import Progress
from session_projector.worker.cli.replay import Report
from session_projector.worker.daemon.supervisor import run_once
from session_projector.worker.errors import CheckFailed, InterventionRequired, many, quoted
from session_projector.worker.operations import copy as copying
from session_projector.worker.operations import projections as catalog
from session_projector.worker.replay import side_by_side
from session_projector.worker.replay.verify import Tally
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Store


def copy(
    source: Annotated[
        str, typer.Argument(metavar="FROM", callback=heed, help="The file or URL to copy from.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TO", callback=heed_other, help="The file or URL to copy to.")
    ],
    projection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            envvar="PROJECTOR_PROJECTION",
            help="Fold and compare a projection that is not installed, too; may be repeated.",
        ),
    ] = None,
    json: JsonLines = False,
) -> None:
    """Copy a log into another database, on any engine, fold it there and compare the views."""
    one, other = storage.database(source), storage.database(target)
    if not one.exists():
        raise InterventionRequired(
            f"{one.name} has no log to copy",
            "name the database to copy from, and then that to copy to",
        )
    with ExitStack() as stack:
        reading = stack.enter_context(one.open())
        projections = registry.known(projection or (), reading)
        catalog.warn_of_unknown(reading, projections)
        copying.prepare(one, other)
        with hints_about(target):
            writing = stack.enter_context(other.open(writable=True))
            catalog.refuse_newer_views(writing, projections)
        copied = copying.copy(reading, writing, _Told())
        if not json:
            print(_said(copied, other.name))
        with hints_about(target):
            anyio.run(run_once, other, projections)
        report = Report(json, "differ", "views")
        differing = anyio.run(_compare, reading, writing, projections, copied.position, report)
        left = copying.left(reading, copied.position)
    if json:
        done = {"from": one.name, "to": other.name, "position": copied.position}
        counts = {"events": copied.events, "notes": copied.notes, "left": left.events}
        held = [asdict(holder) for holder in left.held_back_by]
        print(output.to_json({**done, **counts, "held_back_by": held}, indent=None))
    elif left.events:
        print(f"{many(left.events, 'event')} came since: stop the writers, and run it again")
        for holder in left.held_back_by:
            print(f"{holder.who} holds events back; end it where it was forgotten: {holder.cure}")
    if differing:
        verify = " and ".join(f"`projector verify -d {quoted(each.name)}`" for each in (one, other))
        raise CheckFailed(
            f"the views of {other.name} are not those of {one.name}",
            f"see which are right: {verify}",
        )


class _Told:
    """Prints how far each part is."""

    def __init__(self) -> None:
        self._what = ""
        self._progress = Progress()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what, self._progress = what, Progress()
        self._progress.tell(what, done, total)
        if done == total:
            self._progress.clear()


def _said(copied: copying.Copied, name: str) -> str:
    if not copied.events and not copied.notes:
        return f"nothing to copy: {name} has every event up to {copied.position}"
    notes = f", with notes of operators: {copied.notes:,}" if copied.notes else ""
    events = many(copied.events, "event")
    return f"copied {events}{notes}; {name} has every event up to {copied.position}"


async def _compare(
    source: Store,
    target: Store,
    projections: Sequence[Projection],
    position: int,
    report: Report,
) -> int:
    """Compare what each projection made; returns how much differs."""
    found = 0
    for projection in projections:
        tally = Tally(projection, position, target.views.count(projection.table))
        async for step in side_by_side.compare(source, target, projection, position):
            tally.add(step)
            report.step(tally, step)
        report.done(tally)
        found += tally.rows.total()
    return found
