"""Code shared by the peers' scripts: their input events, their view, and what they print.

It runs in the peers' venv: peer_*.py fill DATABASE LOG | run -d DATABASE | write DATABASE NAME
COUNT EVERY_S SESSIONS BYTES. The last one works like `writer.py`.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec
from workload import T0
from writer import keep_pace

POLL_S = 0.01
"""How often a peer polls for new events: neither can be woken by another process's commit."""
CREATE_VIEW = (
    "CREATE TABLE IF NOT EXISTS view (key TEXT PRIMARY KEY, data BLOB NOT NULL,"
    " last_offset_id TEXT NOT NULL)"
)


class Given(msgspec.Struct):
    """An event of the benchmarks; either `project` or `message` is set."""

    session: str
    id: str
    time: int
    project: str | None = None
    message: dict[str, Any] | None = None


class Peer(Protocol):
    """A library that works on one database."""

    def fill(self, events: Iterable[Given]) -> None:
        """Store the events, in one transaction if possible."""

    def append(self, event: Given) -> None:
        """Store one event and commit."""

    def run(self) -> None:
        """Keep the views up to date until killed, and print each position reached."""


def fold(data: bytes | None, events: Iterable[Given]) -> bytes:
    """Return the view after some more events, in the form that the contract requires."""
    view: dict[str, Any] = {} if data is None else msgspec.msgpack.decode(data)
    for event in events:
        if event.message is None:
            view = {
                "id": event.session,
                "project": event.project,
                "messages": [],
                "status": "ready",
                "createdAt": event.time,
            }
        else:
            view["messages"].append(event.message)
        view["updatedAt"] = event.time
    return msgspec.msgpack.encode(view)


def tell_started() -> None:
    _tell(event="started", projections=["peer"])


def tell_position(position: int) -> None:
    """Print the position, after everything up to it has been committed."""
    _tell(event="batch_committed", views={"peer": 0}, position=position)


def _tell(**fields: Any) -> None:
    print(json.dumps({"level": "info", **fields}), file=sys.stderr, flush=True)


def main(open_peer: Callable[[str], Peer]) -> None:
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "run":
        open_peer(arguments[1]).run()
    elif what == "fill":
        with open(arguments[1], "rb") as lines:
            decode = msgspec.json.Decoder(Given).decode
            open_peer(arguments[0]).fill(map(decode, lines))
    else:
        write(open_peer(arguments[0]), arguments[1:])


def write(peer: Peer, arguments: Sequence[str]) -> None:
    name, sessions, size = arguments[0], int(arguments[3]), int(arguments[4])

    def append(number: int) -> None:
        message = {"role": "assistant", "content": "x" * size, "timestamp": T0 + number}
        given = Given(f"S-{number % sessions}", f"{name}-{number}", T0 + number, message=message)
        peer.append(given)

    keep_pace(append, int(arguments[1]), float(arguments[2]))
