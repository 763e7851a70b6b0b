"""Checks of the daemon (alive, stuck, standing by or absent) and of its projections."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final

from session_projector.projections import SEARCH
from session_projector.worker import linux, registry
from session_projector.worker.doctor import host
from session_projector.worker.errors import Lack, ProjectorError, argument, many
from session_projector.worker.folding.checkpoints import fits_log, rewound
from session_projector.worker.folding.deferral import KEY_SHOWN, LONGEST_DELAY_S
from session_projector.worker.operations import event_types
from session_projector.worker.operations.health import restart_same
from session_projector.worker.operations.projections import (
    ProjectionInfo,
    listing,
    outdated,
    without_code,
)
from session_projector.worker.storage.port import (
    FOLD_AGAIN,
    Check,
    Checkpoint,
    Database,
    Deferred,
    Leader,
    Store,
    together,
)

START: Final = "`projector run`"
WATCH_S: Final = 2.0
WATCH_POLL_S: Final = 0.05
NEWEST: Final = 10_000
NEWEST_CHARACTERS: Final = 16 * 1024 * 1024
"""How many of the newest events are looked at for their types, and how much data."""
OVERDUE_S: Final = LONGEST_DELAY_S + 120
"""Since when a view has been deferred that the daemon should have written by now."""


def troubled(database: Database) -> list[tuple[Leader, Lack]]:
    """The daemons that say that they wait for something, and for what; none where that cannot be
    seen."""
    with suppress(ProjectorError, OSError, ValueError):  # `/` can have no file beside it
        leaders = database.leadership().leaders()
        return [(one, one.trouble.lacks) for one in leaders if one.trouble and not one.suspended]
    return []


def trouble(database: Database, leader: Leader) -> Iterator[Check]:
    """The finding of what a daemon says it waits for, and who or what keeps it back."""
    assert leader.trouble
    said, lacks = f"{leader} {leader.trouble}", leader.trouble.lacks
    if lacks == "lock":
        holders = database.locked_by(but=leader.local_pid)
        who = database.who_locks_it(but=leader.local_pid) if not holders else ""
        fix = f"see who: {who or '`projector doctor`'}, and let that end its transaction"
        if holders:
            said, fix = f"{said}: {holders[0].who} holds it", holders[0].cure
    elif lacks == "limit":
        look = f"`prlimit --pid {leader.pid}`, " if leader.local_pid else ""
        fix = f"see what is used up, and raise that limit: {look}`free -m`, `ps -eLf`"
    elif lacks == "space" and database.file:
        said, fix = f"{said}: {host.free(database.file)}", host.make_room(database.file)
    else:
        limits = f", its limits by `prlimit --pid {leader.pid}`" if leader.local_pid else ""
        fix = f"what it meets is in its log (journalctl -u projector, say){limits}"
    yield Check("daemon", "fail", said, f"{fix}. The daemon goes on by itself then")


def daemon(database: Database) -> Iterator[Check]:
    leadership = database.leadership()
    leaders = leadership.leaders()
    if not leaders:
        said = "none is alive: nothing is folded until one runs"
        first = "when what keeps it from starting is gone (see rights): "
        fix = f"{first if leadership.barred() else ''}{START}"
        yield Check("daemon", "warn", said, fix)
    waiting = leadership.standing_by() if leaders else []
    standing_by = f"; standing by: {', '.join(waiting)}" if waiting else ""
    found = [one for leader in leaders for one in _alive(database, leader, standing_by)]
    yield from found
    if all(one.level == "ok" for one in found):  # else it is the daemon's finding
        yield from _write_lock(database, leaders)


def _write_lock(database: Database, leaders: Sequence[Leader]) -> Iterator[Check]:
    """Check that writers can write."""
    holders = database.locked_by(but=max((one.local_pid for one in leaders), default=0))
    for holder in holders:
        said = f"{holder.who} has held the write lock for some time: nobody else can write"
        yield Check("write lock", "warn", said, holder.cure)
    if not holders:
        yield Check("write lock", "ok", "nobody keeps others from writing")


def _alive(database: Database, leader: Leader, standing_by: str) -> Iterator[Check]:
    names = ", ".join(leader.running) or "it does not say which projections"
    if leader.suspended:
        resume = linux.ending([leader.pid], "-CONT", seen=leader.seen)
        fix = f"resume it, as no other takes over from it: {resume}"
        yield Check("daemon", "fail", f"{leader} is suspended (SIGSTOP){standing_by}", fix)
    elif leader.trouble:
        yield from trouble(database, leader)
    elif (stuck := _stuck(database, leader)) and _holds_back(database):
        said = f"alive, {leader}: {names}{standing_by}; {stuck}: see held back"
        yield Check("daemon", "ok", said)
    elif stuck:
        yield _held_up(database, leader, f"{leader}, {stuck}{standing_by}")
    else:
        yield Check("daemon", "ok", f"alive, {leader}: {names}{standing_by}")


def _held_up(database: Database, leader: Leader, said: str) -> Check:
    """The finding for a daemon that is stuck, or kept from writing by another process."""
    if holders := database.locked_by(but=leader.local_pid):
        said = f"{said}: {holders[0].who} holds the write lock"
        fix = holders[0].cure
    elif who := database.who_locks_it(but=leader.local_pid):
        said = f"{said}: it waits for the write lock, which another process holds"
        fix = f"see which processes have it open, and end that transaction: {who}"
    elif full := _full(database):
        said = f"{said}: the disk has no room: {full.found}"
        fix = full.fix
    elif leader.host:
        said = f"{said}: it is stuck"
        fix = f"restart it where it runs, on {leader.host}; nothing is lost"
    elif leader.pid:
        said = f"{said}: it is stuck"
        end = linux.ending([leader.pid], seen=leader.seen)
        fix = (
            f"see the end of its log; then restart it, nothing is lost: {end} (with -KILL where it"
            " is still there after 30 s), then `projector run`"
        )
    else:
        said = f"{said}: it is stuck, or no daemon"
        fix = (
            "see who has its lock, there and in the containers that share the folder, and restart"
            f" that: {database.leadership().who_holds_it}"
        )
    return Check("daemon", "fail", said, fix)


def _holds_back(database: Database) -> bool:
    """Whether somebody keeps events from being read, which is a finding of its own."""
    with database.open() as store:
        return bool(store.log.held_back_by())


def _full(database: Database) -> Check | None:
    """The finding for a disk on which nothing more can be written."""
    found = host.space(database.file) if database.file else ()
    return next((one for one in found if one.level == "fail"), None)


def _stuck(database: Database, leader: Leader) -> str:
    """How many events wait while no position moves; '' where one moves or nothing waits."""
    with database.open() as store:
        before, newest = _tailing(store, leader.running)
        lowest = min((checkpoint.written for checkpoint in before.values()), default=newest)
        waiting = store.log.count(after=lowest) if newest > lowest else 0
        deadline = time.monotonic() + WATCH_S
        while waiting > 0 and time.monotonic() < deadline:
            time.sleep(WATCH_POLL_S)
            if _tailing(store, leader.running)[0] != before:
                return ""
    if waiting <= 0:
        return ""
    wait = "waits" if waiting == 1 else "wait"
    return f"{many(waiting, 'event')} {wait}, and none was folded in {WATCH_S:g} s"


def _tailing(store: Store, names: Collection[str]) -> tuple[dict[str, Checkpoint], int]:
    """The checkpoints of the projections that tail (of `names`, if any), and the newest event, all
    of one moment."""
    with store.snapshot():
        reports, stored = store.checkpoints.reports(), store.checkpoints.all()
        newest = store.log.newest()
    tailing = {
        name: one.checkpoint
        for name, one in stored.items()
        if name not in reports and (not names or name in names)
    }
    return tailing, newest if tailing else 0


def checkpoint(database: Database, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What an engine's `check` of the checkpoints finds, but what does not match the log in one."""
    with database.open() as store:
        unfit = [
            f"{name}@{stored.checkpoint.position}"
            for name, stored in store.checkpoints.all().items()
            if not fits_log(store, stored.checkpoint)
        ]
    if unfit:
        yield Check("checkpoint", "fail", rewound(unfit), FOLD_AGAIN)
    yield from (one for one in check() if one.fix != FOLD_AGAIN)


def projections(database: Database) -> Iterator[Check]:
    """Check for projections that failed, are being rebuilt, lost their code or cannot be loaded,
    and for views that stay behind."""
    leaders = database.leadership().leaders()
    leader = together(leaders)
    alive, running = leader is not None, leader.running if leader else ()
    with database.open() as store:
        reports, checkpoints = store.checkpoints.reports(), store.checkpoints.all()
        infos, unusable = listing(store), registry.unusable(store)
        installed = registry.known(store=store)
        broken = {one.name for one in unusable}
        lost = [
            one for one in infos if one.code_version is None and one.name not in {*running, *broken}
        ]
        dropped = [
            one
            for one in infos
            if one.position and one.name in checkpoints
            if not store.views.exists(checkpoints[one.name].table)
        ]
        wrong = [*map(_unusable, unusable)]
        wrong += [
            _without_code(one, owns=store.views.owns(one.name), dropped=one in dropped)
            for one in lost
        ]
        wrong += [_dropped(one) for one in dropped if one not in lost]
    wrong += [
        _not_run(one, leader)
        for one in infos
        if leader and one.code_version is not None and not leader.runs(one.name)
        if one.name != SEARCH.name  # which is left out where an operator says so
    ]
    wrong += [Check("projections", "warn", *told) for told in outdated(leaders, installed)]
    wrong += [
        _behind(key, view, alive=alive)
        for stored in checkpoints.values()
        for key, view in stored.checkpoint.costly.items()
        if not alive or _is_overdue(view)
    ]
    for name, stored in checkpoints.items():
        late = [view for view in stored.checkpoint.deferred.values() if not view.is_costly]
        if late and (not alive or any(map(_is_overdue, late))):
            wrong.append(_cut_off(name, len(late), stored.checkpoint.written, alive=alive))
    for name, report in reports.items():
        if report.state == "failed":
            said = f"{name} failed: {report.why}"
            wrong.append(Check("projections", "fail", said, f"fix that; {_then(leader)}"))
            continue
        if alive:
            at = f"{report.events:,} of {many(report.total, 'event')}"
            said = f"{name} is being rebuilt as version {report.version}: {at}"
            fix = "wait; see how far it is: `projector status`"
        else:
            said = f"a rebuild of {name} as version {report.version} was cut off"
            fix = "`projector run` does it"
        wrong.append(Check("projections", "warn", said, fix))
    found = f"{len(checkpoints)} of them, none failed or rebuilding"
    yield from wrong or [Check("projections", "ok", found)]


def quarantine(database: Database) -> Iterator[Check]:
    """Check for events that could not be folded, and that nobody has dismissed."""
    with database.open() as store:
        counts = {name: store.quarantine.count(name) for name in store.quarantine.projections()}
    left = {name: one.quarantined - one.dismissed for name, one in counts.items()}
    if told := ", ".join(f"{number:,} of {name}" for name, number in left.items() if number):
        said = f"events are in quarantine, and nobody has dismissed them: {told}"
        fix = (
            "see why: `projector quarantine list --summary`; then correct and resubmit them, or"
            " dismiss them"
        )
        yield Check("quarantine", "warn", said, fix)
    else:
        yield Check("quarantine", "ok", "nothing that nobody has dismissed")


def types(database: Database) -> Iterator[Check]:
    """Check the newest events for types that are nearly ones of ours: those are skipped."""
    with database.open() as store:
        found = event_types.types(store, positions=NEWEST, characters=NEWEST_CHARACTERS)
    for one in found.types:
        if one.did_you_mean:
            said = (
                f"{many(one.events, 'event')} of type {one.type} (the last is {one.last}): no"
                f" projection here folds that; did you mean {one.did_you_mean}?"
            )
            fix = "correct the writer; see all types: `projector event types`"
            yield Check("event types", "warn", said, fix)
    if not any(one.did_you_mean for one in found.types):
        said = (
            f"none of the newest {many(found.looked_at, 'event')} is of a type that is nearly ours"
        )
        yield Check("event types", "ok", said)


def search(database: Database) -> Iterator[Check]:
    """Check that what is searched is found, where it is."""
    with database.open() as store:
        if registry.searches(store):
            store.words.check()
            yield Check("search", "ok", "the index has the rows of its table")


def _without_code(one: ProjectionInfo, *, owns: bool, dropped: bool) -> Check:
    """The finding for what is left of a projection whose package was uninstalled, say."""
    if dropped:
        said = (
            f"{one.name} has no code here, and its table {one.kept_in} is gone; its checkpoint is"
            f" still at {one.position:,}"
        )
        drop = f"`projector projection drop {argument(one.name)}`"
        fix = f"drop the rest of it: {drop}. If you need it, install its package again after that"
        return Check("projections", "warn", said, fix)
    rows = f", {many(one.rows, 'row')} of {one.kept_in}" if owns else ""
    said = (
        f"{one.name} has no code here, and what it left stays as it is: its checkpoint at"
        f" {one.position:,}{rows} and {many(one.quarantined, 'event')} in quarantine"
    )
    return Check("projections", "warn", said, without_code(one.name))


def _unusable(one: registry.Unusable) -> Check:
    """The finding for an installed projection that cannot be loaded, or not be used."""
    said = f"{one.why}: no daemon that starts runs it (package {one.package or 'unknown'})"
    fix = f"{one.hint}; mend it or uninstall the package, then restart the daemon"
    return Check("projections", "warn", said, fix)


def _dropped(one: ProjectionInfo) -> Check:
    """The finding for a table that is gone, though its checkpoint says that it was filled."""
    said = (
        f"the table {one.kept_in} of {one.name} is gone, though its checkpoint is at"
        f" {one.position:,}: somebody dropped it"
    )
    name = argument(one.name) if one.code_version is not None else "MODULE:NAME"
    fix = f"build it again: `projector replay --projection {name}`"
    return Check("projections", "fail", said, fix)


def _not_run(one: ProjectionInfo, leader: Leader) -> Check:
    """The finding for a projection that was installed after the daemon started, say."""
    said = f"{one.name} is installed here, and the daemon ({leader}) does not run it"
    return Check("projections", "warn", said, restart_same(leader))


def _then(leader: Leader | None) -> str:
    """What is to be done after what makes a projection fail was fixed."""
    if leader is None:
        return "then `projector run`"
    return (
        "the daemon tries again by itself, with the code that it began with. If you changed the"
        f" code, {restart_same(leader)}"
    )


def _is_overdue(view: Deferred) -> bool:
    return time.time() - view.since / 1000 > OVERDUE_S


def _cut_off(name: str, views: int, position: int, *, alive: bool) -> Check:
    """The finding for a batch of which only some views were written, and nobody has written the
    others since."""
    said = f"{name}: {views:,} views of its last batch are not written yet, and as of {position}"
    if not alive:
        fix = "the next daemon writes them as soon as it starts: `projector run`"
        return Check("projections", "ok", f"{said}; no daemon is alive to do so", fix)
    return Check("projections", "warn", said, "restart the daemon, and it writes them first")


def _behind(key: str, view: Deferred, *, alive: bool) -> Check:
    """The finding for a view that was deferred, and that nobody has written since."""
    said = f"{key[:KEY_SHOWN]} costs much to write, and is behind: as of event {view.position}"
    if not alive:
        fix = "the next daemon writes it as soon as it starts: `projector run`"
        return Check("projections", "ok", f"{said}; no daemon is alive to write it", fix)
    said += f", for {time.time() - view.since / 1000:,.0f} s, though a daemon is alive"
    return Check("projections", "warn", said, "restart the daemon, and it writes it first")
