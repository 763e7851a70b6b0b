"""`projector status`: how things stand, for people and as JSON."""

import time
from collections.abc import Iterator
from typing import Any

from session_projector.worker.cli.options import Database, Json
from session_projector.worker.storage.sqlite.connection import resolve


def status(database: Database = "local.db", json: Json = False) -> None:
    """Position, lag, views, quarantine, and whether a daemon is alive."""
    from session_projector.worker.cli import output
    from session_projector.worker.sessions import read as readers

    found = readers.status(resolve(database))
    if json:
        print(output.to_json(found))
        return
    lines = [*_lines(found)]
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label:{width}}  {output.one_line(value)}")
    for advice in _advice(found):
        print(f"\n{advice}")


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    daemon = found["daemon"]
    yield "database", found["database"]
    doing = "stopped by a signal" if daemon["stopped"] else "alive"
    yield "daemon", f"{doing}, process {daemon['pid']}" if daemon["alive"] else "none is alive"
    yield "schema", found["schema"]
    yield "newest event", found["newest"]
    yield "file", f"{found['file_bytes']:,} bytes"
    yield "write-ahead log", f"{found['wal_bytes']:,} bytes"
    for progress in found["projections"]:
        version = progress["version"]
        yield (
            "projection",
            f"{progress['name']}, version {'-' if version is None else abs(version)}",
        )
        if doing := _doing(progress, daemon):
            yield "  state", doing
        yield "  position", progress["position"]
        lag_s = progress["lag_seconds"]
        behind = "no time that can be" if lag_s is None else f"{lag_s:.1f} s"
        yield "  lag", f"{progress['lag_events']:,} events, {behind}"
        yield "  views", f"{progress['views']:,}"
        yield "  skipped", f"{progress['skipped']:,} events"
        yield (
            "  quarantined",
            f"{progress['quarantined']:,} events, {progress['dismissed']:,} of them dismissed",
        )


def _doing(progress: dict[str, Any], daemon: dict[str, Any]) -> str:
    """What a projection is doing that is not tailing."""
    if daemon["running"] and progress["name"] not in daemon["running"]:
        return "the daemon that is alive does not run it"
    state = progress["state"]
    since_s = time.time() - state.get("since", 0) / 1000
    match state["state"]:
        case "failed":
            return f"failed, for {since_s:,.0f} s: {state['why']}"
        case "rebuilding" if daemon["alive"]:
            share = min(100 * state["events"] // max(state["total"], 1), 100)
            return (
                f"being rebuilt as version {state['version']}: {share} %, {state['events']:,} of"
                f" about {state['total']:,} events, for {since_s:,.0f} s; its rows not reached yet"
                " stand as they were"
            )
        case "rebuilding":
            return f"a rebuild as version {state['version']} was cut off; the next run does it"
        case "old":
            return f"version {progress['code_version']} is here; a daemon that starts rebuilds it"
    return ""


def _advice(found: dict[str, Any]) -> Iterator[str]:
    from session_projector.worker.cli import output

    path = output.one_line(found["database"])
    unfit = [progress["name"] for progress in found["projections"] if not progress["fits_log"]]
    if unfit:
        yield (
            f"the log is not the one that was folded into {', '.join(unfit)}: it was rewound or\n"
            "replaced. Fold it from the first event: projector replay"
        )
    elif not found["daemon"]["alive"]:
        yield f"start one: projector run -d {path}"
    elif found["daemon"]["stopped"]:
        yield f"let it go on: kill -CONT {found['daemon']['pid']}"
    if found["wal_bytes"] > found["wal_warning_bytes"]:
        yield (
            "the write-ahead log is large: a process holds an old snapshot open, or never\n"
            f"closes a read. See who has it open: fuser {path}-wal"
        )
    if any(p["quarantined"] > p["dismissed"] for p in found["projections"]):
        yield "see why: projector quarantine list"
