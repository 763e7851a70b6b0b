"""Hypothesis strategies for whole logs: a few sessions, with valid and invalid events."""

import json
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from support import T0, Database

SESSION_IDS = ["A-1", "A-2", "session:A-1", "grün"]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
"""What any database can keep."""
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=5)},
        optional={"n": st.integers(-(2**63), 2**64 - 1), "f": st.floats(allow_nan=False)},
    ),
    max_size=3,
)
project = st.sampled_from(["A", "B", "", None, 5])
status = st.sampled_from(["ready", "in-progress", "review", "done", "", None, 1])


@st.composite
def events(draw: st.DrawFn) -> tuple[Any, Any, int]:
    """Draw an event: key, data and created_at."""
    session_id = draw(st.sampled_from(SESSION_IDS))
    key = draw(st.sampled_from([f"session:{session_id}"] * 4 + [session_id] * 3 + ["", None]))
    if draw(st.integers(0, 19)) == 0:
        return key, draw(st.binary(max_size=5) | texts | st.none()), T0
    kind, data = draw(
        st.one_of(
            st.tuples(
                st.just("session_created"),
                st.fixed_dictionaries(
                    {"project": project}, optional={"messages": messages, "status": status}
                ),
            ),
            st.tuples(
                st.sampled_from(["session_append", "session_append_messages"]),
                st.fixed_dictionaries({"messages": messages}),
            ),
            st.tuples(st.just("session_status_update"), st.fixed_dictionaries({"status": status})),
            st.tuples(
                st.just("session_updated"),
                st.fixed_dictionaries(
                    {}, optional={"messages": messages, "status": status, "project": project}
                ),
            ),
            st.tuples(st.just("task_created"), st.just({})),
        )
    )
    event: dict[str, Any] = {"type": kind, "data": data}
    stated = draw(st.sampled_from([..., ..., None, session_id, "A-1"]))
    if stated is not ...:
        event["sessionId"] = stated
    if draw(st.booleans()):
        event["timestamp"] = T0 + draw(st.integers(-5, 5))
    encode = draw(st.sampled_from([msgpack.packb, json.dumps]))
    return key, encode(event), draw(st.sampled_from([T0, T0 // 1000]))


logs = st.lists(events(), max_size=25)


def _lively(kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
    return kind, data


_SAID = [{"role": role, "content": text} for role in ("user", "assistant") for text in ("a", "b")]
_appends = st.builds(
    _lively,
    st.just("session_append"),
    messages=st.lists(st.sampled_from(_SAID), min_size=0, max_size=2),
)
_others = st.sampled_from(
    [
        _lively("session_created", project="again"),
        _lively("session_status_update", status="done"),
        _lively("session_updated", messages=_SAID[:1]),
        _lively("session_updated", project="moved"),
        _lively("task_created"),
    ]
)


@st.composite
def lively_logs(draw: st.DrawFn) -> list[tuple[Any, Any, int]]:
    """Draw a log with two sessions that exist from the start and get many appends."""
    log: list[tuple[Any, Any, int]] = []
    begun = [("A-1", _lively("session_created", project="P"))] * draw(st.integers(1, 2))
    begun.append(("A-2", _lively("session_created", project="P")))
    steps = st.tuples(st.sampled_from(["A-1", "A-2"]), _appends | _appends | _others)
    for session_id, (kind, data) in [*begun, *draw(st.lists(steps, max_size=20))]:
        event = {"type": kind, "data": data, "timestamp": T0 + len(log)}
        log.append((f"session:{session_id}", msgpack.packb(event), T0))
    return log


batchings = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def rows(log: list[tuple[Any, Any, int]]) -> list[tuple[Any, ...]]:
    """Return the log as rows of `event_log`."""
    return [(seq, f"e{seq}", *event) for seq, event in enumerate(log, 1)]


def batches(items: list[Any], sizes: list[int]) -> list[list[Any]]:
    """Cut the items into batches of these sizes, cycling through the sizes."""
    cut, turn = [], 0
    while items:
        size = sizes[turn % len(sizes)]
        cut.append(items[:size])
        items, turn = items[size:], turn + 1
    return cut


def examples(count: int, *, on_server: int, **strategies: st.SearchStrategy[Any]) -> Any:
    """Try a test with so many examples; on a server with fewer, as each takes longer there."""

    def decorate(test: Callable[..., None]) -> Callable[[Database], None]:
        def run(database: Database) -> None:
            most = settings(max_examples=count if database.engine == "sqlite" else on_server)
            most(given(**strategies)(test))(database=database)

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return run

    return decorate
