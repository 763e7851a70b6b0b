"""Each projection as given, when, then; and the kit that says it, on projections that are wrong."""

from math import inf, nan
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from support import Database
from support.extensions import CreatedPerDay
from support.folding import run_once

from session_projector.projections import BUILT_IN
from session_projector.projections import fold as folding
from session_projector.projections.event import (
    SESSION_EVENTS,
    Event,
    LogRow,
    Other,
    OutOfMemory,
    SessionCreated,
    Unfoldable,
)
from session_projector.projections.projection import FAULT, PerSession, Projection, Table
from session_projector.projections.rows import require_row
from session_projector.projections.session_index import SessionIndex
from session_projector.projections.sessions import Sessions
from session_projector.projections.testing import T0, appended, created, event, given, updated

USER = {"role": "user", "content": "Fix the\n  login   form"}
AGENT = {"role": "assistant", "content": [{"type": "text", "text": "Done."}]}


def test_a_session_is_created_and_appended_to() -> None:
    given(created("A-1", USER, project="web")).when(appended("A-1", AGENT)).expect(
        Sessions(),
        {
            "session:A-1": {
                "id": "session:A-1",
                "data": {
                    "id": "A-1",
                    "project": "web",
                    "messages": [USER, AGENT],
                    "status": "ready",
                    "createdAt": T0,
                    "updatedAt": T0 + 1000,
                },
                "last_offset_id": "e2",
                "created_at": T0,
                "updated_at": T0 + 1000,
            }
        },
        quarantined={},
    )


def test_an_index_entry_says_what_a_list_needs() -> None:
    given(created("A-1", USER, project="web")).when(
        appended("A-1", AGENT), updated("A-1", status="review")
    ).expect(
        SessionIndex(),
        {
            "A-1": {
                "session_id": "A-1",
                "project": "web",
                "status": "review",
                "title": "Fix the login form",
                "message_count": 2,
                "last_role": "assistant",
                "created_at": T0,
                "updated_at": T0 + 2000,
                "last_event_id": "e3",
                "last_seq": 3,
            }
        },
    )


@pytest.mark.parametrize(
    ("messages", "title"),
    [
        ([{"role": "user", "parts": [{"text": "Fix it"}]}], "Fix it"),  # Gemini's
        ([{"role": "user", "parts": [{"type": "text", "text": "Fix it"}]}], "Fix it"),
        ([], None),
        ([AGENT], None),
        ([AGENT, USER], "Fix the login form"),
        ([{"role": "user"}, USER], ""),
        ([{"role": "user", "content": 5}], ""),
        ([{"role": "user", "content": AGENT["content"]}], "Done."),
        ([{"role": "user", "content": [{"type": "image"}, 1, {"type": "text", "text": "x"}]}], "x"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "x"),
        ([{"role": "user", "content": "x" * 80}], "x" * 80),
        ([{"role": "user", "content": "x" * 81}], "x" * 79 + "…"),
        ([USER, AGENT], "Fix the login form"),
        ([USER, {"content": "no role"}], "Fix the login form"),
        ([{"role": "users", "content": "x"}], None),
    ],
)
def test_the_title_is_the_first_user_message_in_a_line(messages: Any, title: str | None) -> None:
    last_role = messages[-1].get("role") if messages else None
    for log in (
        given(created("A-1", *messages)),
        given(created("A-1")).when(*([appended("A-1", *messages)] if messages else [])),
        given(created("A-1", {"role": "user", "content": "old"})).when(
            updated("A-1", messages=messages)
        ),
    ):
        expected = {"title": title, "message_count": len(messages), "last_role": last_role}
        log.expect(SessionIndex(), {"A-1": expected})


def test_a_title_without_words_stays_when_more_messages_come() -> None:
    image = {"role": "user", "content": [{"type": "image"}]}
    given(created("A-1", image)).when(appended("A-1", USER)).expect(
        SessionIndex(), {"A-1": {"title": "", "message_count": 2}}
    )


def test_an_update_without_messages_leaves_none_of_what_was_said() -> None:
    given(created("A-1", USER, AGENT)).when(updated("A-1", messages=[])).expect(
        SessionIndex(), {"A-1": {"title": None, "message_count": 0, "last_role": None}}
    )


@pytest.mark.parametrize("projection", BUILT_IN, ids=lambda p: p.name)
def test_what_no_session_can_be_is_quarantined(projection: Projection) -> None:
    key = f"{projection.table.prefix}A-1"
    given(appended("A-1", AGENT), created("A-1")).when(
        created("A-1"), event("task_created", "A-1", {}), appended("A-1")
    ).expect(
        projection,
        {key: {"created_at": T0 + 1000}},
        quarantined={1: "never created", 3: "came twice", 5: "messages is empty"},
        skipped=1,
    )


class Ratios(Projection[tuple[str, float]]):
    """Keeps a number as it was written."""

    name = "ratios"
    version = 1
    events = frozenset({"ratio"})
    table = Table(name="ratios", columns={"id": "TEXT", "ratio": "REAL"}, key="id")

    def key_of(self, event: Event) -> str:
        return event.session_id

    def fold(self, view: tuple[str, float] | None, event: Event) -> tuple[str, float]:
        assert isinstance(event.body, Other)
        return event.session_id, event.body.data["ratio"]


def test_what_is_no_number_is_quarantined_as_sqlite_would_keep_null() -> None:
    log = given(*(event("ratio", f"A-{x}", {"ratio": x}) for x in (0.5, inf, nan)))

    folded = folding.fold(Ratios(), {}, folding.read(log.rows(), [Ratios()]))

    assert folded.views == {"A-0.5": ("A-0.5", 0.5), "A-inf": ("A-inf", inf)}
    assert [(one.seq, one.reason) for one in folded.quarantined] == [
        (3, f"{FAULT}the column ratio is REAL and cannot keep this float")
    ]


DAY = T0 // 86_400_000


def test_a_projection_may_gather_over_sessions() -> None:
    given(created("A-1", project="A"), created("B-1", project="B")).when(
        created("A-2", project="A"), appended("A-2", AGENT)
    ).expect(
        CreatedPerDay(),
        {
            f"A/{DAY}": {"project": "A", "day": DAY, "count": 2},
            f"B/{DAY}": {"project": "B", "day": DAY, "count": 1},
        },
        skipped=1,
    )


def test_a_gathering_projection_runs_beside_the_built_in_ones(database: Database) -> None:
    projections = (*BUILT_IN, CreatedPerDay())

    def fold() -> list[tuple[Any, ...]]:
        anyio.run(run_once, database.path, projections)
        return database.sql("SELECT project, count FROM created_per_day ORDER BY project")

    database.created("A-1", project="A")
    anyio.run(run_once, database.path, BUILT_IN)
    database.created("A-2", project="A")
    database.created("B-1", project="B")
    caught_up = fold()
    database.created("B-2", project="B")
    live = fold()
    database.sql("UPDATE created_per_day SET count = 70")
    database.sql("INSERT INTO created_per_day VALUES ('ghost', 'G', 1, 1)")
    database.sql("UPDATE checkpoint SET position = 0, digest = '', skipped = 0 WHERE version = 1")
    rebuilt = fold()

    assert caught_up == [("A", 2), ("B", 1)]
    assert live == rebuilt == [("A", 2), ("B", 2)]
    assert database.sql("SELECT count(*), min(position) FROM checkpoint") == [(3, 4)]


def test_a_projection_that_raises_quarantines_the_event_for_itself_alone(
    database: Database,
) -> None:
    class Faulty(CreatedPerDay):
        def key_of(self, event: Event) -> str | None:
            if event.seq == 2:
                raise KeyError("in key_of")
            return super().key_of(event)

        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            if event.seq == 3:
                raise ZeroDivisionError
            return super().fold(view, event)

    for number in range(4):
        database.created(f"A-{number}", project="A")

    with capture_logs() as logged:
        anyio.run(run_once, database.path, (*BUILT_IN, Faulty()))

    here, line = Path(__file__).name, Faulty.key_of.__code__.co_firstlineno
    assert database.sql("SELECT projection, seq, reason FROM quarantine ORDER BY seq") == [
        ("created_per_day", 2, f"{FAULT}KeyError in {here}, line {line + 2}, key_of()"),
        ("created_per_day", 3, f"{FAULT}ZeroDivisionError in {here}, line {line + 7}, fold()"),
    ]
    first, second = [said for said in logged if said["event"] == "projection_raised"]
    assert (first["seq"], first["why"]) == (2, "KeyError: 'in key_of'")
    assert first["traceback"] == [
        f'{__file__}, line {line + 2}, key_of(): raise KeyError("in key_of")'
    ]
    assert (second["seq"], len(second["traceback"])) == (3, 1)
    assert database.sql("SELECT count FROM created_per_day") == [(2,)]
    assert len(database.views()) == 4


def test_the_kit_raises_what_the_code_raised() -> None:
    class Faulty(CreatedPerDay):
        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            raise KeyError("project")

    with pytest.raises(KeyError, match="project") as raised:
        given(created("A-1")).expect(Faulty(), {})
    assert raised.traceback[-1].path == Path(__file__)


def test_the_kit_catches_a_projection_that_is_not_deterministic() -> None:
    class Counting(CreatedPerDay):
        folds = 0

        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            Counting.folds += 1
            return (*super().fold(view, event)[:3], Counting.folds)

    with pytest.raises(AssertionError, match=r"folded again .* not deterministic"):
        given(created("A-1")).expect(Counting(), {f"P/{DAY}": {}})


def test_the_kit_says_in_which_batches_a_projection_folds_to_something_else() -> None:
    class Restored(tuple[Any, ...]):
        pass

    class Batched(CreatedPerDay):
        def from_row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
            return Restored(row)

        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            made = super().fold(view, event)
            return (*made[:3], made[3] + isinstance(view, Restored))

    with pytest.raises(AssertionError, match=r"folded in batches of \[1\] the same events"):
        given(created("A-1"), created("A-2")).expect(Batched(), {f"P/{DAY}": {}})


def test_the_kit_catches_a_projection_whose_row_is_not_its_view() -> None:
    class Forgetful(CreatedPerDay):
        def from_row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
            return (*row[:3], 0)

    with pytest.raises(AssertionError):
        given(created("A-1"), created("A-2")).expect(Forgetful(), {f"P/{DAY}": {"count": 2}})


def test_the_kit_says_what_differs() -> None:
    with pytest.raises(AssertionError, match="session_index made"):
        given(created("A-1")).expect(SessionIndex(), {"A-1": {"project": "Q"}})
    with pytest.raises(AssertionError, match="session_index made"):
        given(created("A-1")).expect(SessionIndex(), {})
    with pytest.raises(AssertionError, match="quarantined"):
        given(created("A-1")).expect(SessionIndex(), {"A-1": {}}, quarantined={1: "x"})


@pytest.mark.parametrize(
    "row",
    [
        ("P/0", "P", 0),
        ["P/0", "P", 0, 1],
        ("other", "P", 0, 1),
        ("P/0", 5, 0, 1),
        ("P/0", "P", True, 1),
        ("P/0", "P", "0", 1),
        ("P/0", "P", 0, 2**63),
        ("P/0", "P", 0, {}),
    ],
)
def test_the_kit_catches_a_row_that_its_table_cannot_keep(row: Any) -> None:
    class Odd(CreatedPerDay):
        def key_of(self, event: Event) -> str | None:
            return "P/0"

        def fold(self, view: Any, event: Event) -> Any:
            return row

    with pytest.raises(AssertionError):
        given(created("A-1")).expect(Odd(), {"P/0": {}})
    with pytest.raises(AssertionError, match="a row that cannot be kept"):
        given(created("A-1")).expect(Odd(), {})


@pytest.mark.parametrize("place", ["key_of", "fold", "to_row"])
def test_a_lack_of_memory_is_no_fault_of_an_event(place: str) -> None:
    class Greedy(CreatedPerDay):
        pass

    def fail(*_: Any) -> Any:
        raise MemoryError

    setattr(Greedy, place, fail)
    events = folding.read(given(created("A-1")).rows())

    with pytest.raises(OutOfMemory, match="event 1"):
        folding.fold(Greedy(), {}, events)
    if place == "key_of":
        with pytest.raises(OutOfMemory, match="event 1"):
            folding.key_of(Greedy(), events[0])


def test_a_lack_of_memory_is_no_fault_of_a_row() -> None:
    class Large(str):
        def encode(self, *_: Any) -> bytes:
            raise MemoryError

    with pytest.raises(OutOfMemory, match="event 7"):
        folding.read([LogRow(7, "e7", "A-1", Large("{}"), T0)])


class TokensPerSession(PerSession):
    """Folds a type that is not ours, beside those of sessions."""

    name = "tokens"
    version = 1
    events = SESSION_EVENTS | {"tokens_used"}
    table = Table(
        name="tokens", columns={"id": "TEXT", "project": "TEXT", "tokens": "INTEGER"}, key="id"
    )

    def created(self, event: Event, body: SessionCreated) -> tuple[Any, ...]:
        return (event.session_id, body.project, 0)

    def changed(self, view: tuple[Any, ...], event: Event) -> tuple[Any, ...]:
        if not isinstance(event.body, Other):
            return view
        return (*view[:2], view[2] + event.body.data["tokens"])


def test_a_projection_may_fold_types_that_are_not_ours() -> None:
    log = given(
        created("A-1"),
        event("tokens_used", "A-1", {"tokens": 3}),
        event("tokens_used", "A-2", {"tokens": 3}),
        event("tokens_used", "A-1", 5),
        event("task_created", "A-1", {}),
        event("session_append", "A-1", {}),
    )

    log.expect(
        TokensPerSession(),
        {"A-1": {"tokens": 3}},
        quarantined={3: "never created", 4: "data is a number", 6: "messages is missing"},
        skipped=1,
    )
    log.expect(Sessions(), {"session:A-1": {}}, quarantined={6: "messages is missing"}, skipped=4)


def test_an_event_that_is_not_a_projections_type_is_no_concern_of_it() -> None:
    class OnlyTokens(TokensPerSession):
        events = frozenset({"tokens_used"})

    given(event("session_append", "A-1", {}), event(5, "A-1", {})).expect(  # type: ignore[arg-type]
        OnlyTokens(), {}, quarantined={2: "type is a number"}, skipped=1
    )


@pytest.mark.parametrize(
    "row",
    [
        None,
        ("A-1", "P"),
        ["A-1", "P", 1],
        ("A-2", "P", 1),
        ("A-1", b"P", 1),
        ("A-1", "\ud800", 1),
        ("A-1", "P", True),
        ("A-1", "P", "1"),
        ("A-1", "P", 2**63),
        ("A-1", "P", 1.5),
    ],
)
def test_a_row_that_cannot_be_kept_quarantines_its_event_for_that_projection_alone(
    database: Database, row: Any
) -> None:
    class Odd(TokensPerSession):
        def changed(self, view: Any, event: Event) -> Any:
            return row if event.seq == 2 else super().changed(view, event)

    database.created("A-1")
    for _ in range(2):
        database.insert("A-1", {"type": "tokens_used", "data": {"tokens": 4}})

    anyio.run(run_once, database.path, (*BUILT_IN, Odd()))

    ((name, seq, reason),) = database.sql("SELECT projection, seq, reason FROM quarantine")
    assert (name, seq) == ("tokens", 2)
    assert reason.startswith("a fault in the code of the projection: ")
    assert database.sql("SELECT * FROM tokens") == [("A-1", "P", 4)]
    assert len(database.views()) == 1


def test_a_view_may_have_an_empty_key(database: Database) -> None:
    class One(CreatedPerDay):
        def key_of(self, event: Event) -> str:
            return ""

        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            return ("", None, 0, view[3] + 1 if view else 1)

    for number in range(3):
        database.created(f"A-{number}")
        anyio.run(run_once, database.path, (*BUILT_IN, One()))

    assert database.sql("SELECT count FROM created_per_day") == [(3,)]


def test_a_reason_that_is_no_utf8_is_kept_all_the_same(database: Database) -> None:
    class Odd(CreatedPerDay):
        def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
            raise Unfoldable("\udc80" + "x" * 2000)

    database.created("A-1")
    anyio.run(run_once, database.path, (*BUILT_IN, Odd()))

    assert database.quarantine() == {1: "\\udc80" + "x" * 994}


@pytest.mark.parametrize("key", [5, b"A-1", "\ud800"])
def test_a_key_that_is_no_text_quarantines_its_event(database: Database, key: Any) -> None:
    class Odd(CreatedPerDay):
        def key_of(self, event: Event) -> Any:
            return key if event.seq == 1 else super().key_of(event)

    database.created("A-1")
    database.created("A-2")

    anyio.run(run_once, database.path, (*BUILT_IN, Odd()))

    assert [*database.quarantine()] == [1]
    assert database.sql("SELECT count FROM created_per_day") == [(1,)]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (("P", 1, 2), "tuple of 3"),
        (["P", 1], "list of 2"),
        ({"project": "P"}, "dict"),
        (None, "NoneType"),
    ],
)
def test_a_row_of_another_shape_is_told_as_it_is(row: Any, found: str) -> None:
    with pytest.raises(Unfoldable, match=f"a row is a tuple of 2 columns, and not a {found}$"):
        require_row(Ratios(), "P", row)
