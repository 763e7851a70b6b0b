"""`projector verify` and `projector replay`, and what they print."""

from collections import Counter
from functools import partial
from typing import Annotated, Any, Final, Literal

import anyio
import typer
from msgspec.structs import asdict

from session_projector.projections.projection import Projection
from session_projector.worker import registry
from session_projector.worker.cli import output
from session_projector.worker.cli.options import Database, JsonLines, pasteable
from session_projector.worker.cli.progress import Progress
from session_projector.worker.daemon.supervisor import run_once
from session_projector.worker.errors import UsageError, many, quoted
from session_projector.worker.operations import projections as catalog
from session_projector.worker.replay import verify as verification
from session_projector.worker.replay import walkers
from session_projector.worker.replay.difference import (
    ABSENT,
    MISSING,
    NONDETERMINISTIC,
    Difference,
)
from session_projector.worker.replay.verify import Tally
from session_projector.worker.replay.walk import WalkProgress
from session_projector.worker.sessions import read as readers
from session_projector.worker.storage import open as storage

SHOWN: Final = 20
"""Differences that are printed one by one; `--json` prints all."""

Session = Annotated[
    str | None, typer.Option("--session", metavar="ID", help="Only this session's views.")
]
Named = Annotated[
    str | None,
    typer.Option(
        "--projection", metavar="NAME", help="Only this one; MODULE:NAME if it is not installed."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        metavar="N",
        help="Processes that fold a large log, by default as many as there are processors; your own"
        " projections are folded by one.",
    ),
]


def verify(
    database: Database = "local.db",
    session: Session = None,
    name: Named = None,
    jobs: Jobs = None,
    json: JsonLines = False,
) -> None:
    """Fold the log again and report where views differ; changes nothing."""
    report = Report(json, "differ")
    if _compare(database, report, session, name, jobs, dry_run=False):
        if report.fixable and not json:
            print(pasteable(f"put them right: `projector replay{_as_given(session, name)}`"))
        raise typer.Exit(1)


def replay(
    database: Database = "local.db",
    session: Session = None,
    name: Named = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would change, and change nothing.")
    ] = False,
    jobs: Jobs = None,
    json: JsonLines = False,
) -> None:
    """Fold the log again and fix what differs, while everything else keeps running."""
    if dry_run:
        _compare(database, Report(json, "would change"), session, name, jobs, dry_run=True)
        return
    report = Report(json, "were fixed")
    chosen, worth = _chosen(database, name, session, jobs)
    target = storage.database(database)
    leadership = target.leadership()

    async def run() -> None:
        if session is None and leadership.acquire():  # or what is in the way is said at the end
            leadership.release()
        try:
            await verification.replay(
                target, chosen, report, session=session, leadership=leadership, jobs=worth
            )
            catch_up = session is None and leadership.acquire()
        finally:
            leadership.release()
        if catch_up:
            await run_once(target, chosen)

    anyio.run(run)


def _as_given(session: str | None, name: str | None) -> str:
    return "".join(
        f" {option} {quoted(value)}"
        for option, value in (("--session", session), ("--projection", name))
        if value is not None
    )


def _compare(
    database: str,
    report: "Report",
    session: str | None,
    name: str | None,
    jobs: int | None,
    *,
    dry_run: bool,
) -> int:
    chosen, worth = _chosen(database, name, session, jobs)
    compare = partial(verification.compare, session=session, dry_run=dry_run, jobs=worth)
    return anyio.run(compare, storage.database(database), chosen, report)


def _chosen(
    database: str, name: str | None, session: str | None, jobs: int | None
) -> tuple[list[Projection], int]:
    """The projections, and how many of some processes are worth their start."""
    target = storage.database(database)
    with target.open() as store:
        found = registry.chosen(name, store)
        catalog.warn_of_outdated(target, found)
        if name is None:
            catalog.warn_of_unknown(store, found)
        if session is not None:
            readers.require_known(store, session)
            found = [p for p in found if p.view_of("session:x") is not None]
            if not found:
                raise UsageError(f"{name} has no view for each session", "leave out --session")
        return found, walkers.worth(jobs or walkers.cores(), store.log.newest())


class Report:
    """Differences and sums on standard output, progress on standard error."""

    def __init__(
        self, as_json: bool, verb: str, counted: Literal["events", "views"] = "events"
    ) -> None:
        """`counted`: what a tally has the total of."""
        self._as_json = as_json
        self._verb = verb
        self._counted = counted
        self._progress = Progress()
        self.fixable = 0
        """How many of what differs a replay puts right."""
        self._shown: Counter[str] = Counter()
        self._going: dict[str, Tally] = {}

    def step(self, tally: Tally, step: WalkProgress) -> None:
        self._going[tally.projection] = tally
        for difference in step.differences:
            self._progress.clear()
            if self._as_json:
                fields = [  # "stands" and "log" are what scripts know
                    {"field": f.field, "stands": f.stored, "log": f.expected}
                    for f in difference.fields
                ]
                plain = asdict(difference) | {"fields": fields}
                print(output.to_json(plain, indent=None))
            elif not tally.is_first and self._shown[tally.projection] <= SHOWN:
                last = self._shown[tally.projection] == SHOWN
                self._shown[tally.projection] += 1
                print("… (--json prints all of them)" if last else _line(difference))
        slowest = min(self._going.values(), key=lambda tally: tally.events)
        done = getattr(slowest, self._counted)
        self._progress.tell(", ".join(self._going), done, slowest.total, self._counted)

    def done(self, tally: Tally) -> None:
        self._progress.clear()
        self._going.pop(tally.projection, None)
        self.fixable += tally.rows.total() - tally.rows["view", NONDETERMINISTIC]
        kinds = {f"{row} {kind}": count for (row, kind), count in sorted(tally.rows.items())}
        if self._as_json:
            summary = {
                "projection": tally.projection,
                "position": tally.position,
                "events": tally.events,
                "views": tally.views,
                "differences": kinds,
                "fields": dict(tally.fields),
            }
            if self._counted != "events":
                del summary["events"]
            print(output.to_json(summary, indent=None))
            return
        views = sum(count for (row, _), count in tally.rows.items() if row == "view")
        said = f"{tally.projection}: {views:,} of {tally.views:,} views {self._verb}"
        others = [f"{count:,} {what}" for what, count in kinds.items()]
        if tally.is_first and tally.rows:
            would = "would be " if self._verb == "would change" else ""
            said = f"{tally.projection}: {would}built from scratch: {many(views, 'row')}"
            quarantined = tally.rows["quarantine", MISSING]
            others = [f"{many(quarantined, 'event')} in quarantine"] if quarantined else []
        print(said + (f" ({', '.join(others)})" if others else ""))
        if tally.rows["view", NONDETERMINISTIC]:
            print(
                f"  {tally.projection} is not deterministic: folded twice, the same events gave two"
                " rows (chance, a clock,\n  a state of its own?). No replay fixes that: fix its"
                " code, test it with session_projector.testing"
            )
        elif tally.rows and tally.is_sound and not tally.built_in:
            print(
                "  if no other program changed these rows, its code is not deterministic (a clock,"
                " the order of a set?),\n  or was changed and its version not raised"
            )
        if tally.fields:
            most = ", ".join(f"{name} {n:,}" for name, n in tally.fields.most_common(10))
            print(f"  fields: {output.one_line(most, 200)}")


def _line(difference: Difference) -> str:
    where = difference.row if difference.key is None else f"{difference.row} {difference.key}"
    lines = [f"{difference.projection}: {difference.kind} {output.one_line(where)}"]
    lines += [
        f"    {output.one_line(field.field)}: found {_value(field.stored)},"
        f" expected {_value(field.expected)}"
        for field in difference.fields[:8]
    ]
    if len(difference.fields) > 8:
        lines.append(f"    … and {len(difference.fields) - 8} more fields")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if value == ABSENT:
        return ABSENT
    if isinstance(value, bytes) and len(value) > 30:
        return f"{len(value):,} bytes"
    return output.one_line(output.to_json(value, indent=None), 60)
