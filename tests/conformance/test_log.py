"""`event_log`: an order that only grows, events that nobody changes, reading by pages."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, groupby
from typing import Any

import msgspec
import pytest
from conformance.engines import Outsider, Raw
from support.laws import T0, append, elsewhere, event, said, tell

from session_projector.projections.event import MAX_EVENT_BYTES, LogRow
from session_projector.worker.errors import ProjectorError, UsageError
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.limits import Limits
from session_projector.worker.storage.port import Database, Store, digest


def everything(store: Store) -> list[LogRow]:
    """The whole log, by pages."""
    rows: list[LogRow] = []
    while page := store.log.page(start=rows[-1].seq + 1 if rows else 0):
        rows += page
    return rows


def seqs(rows: Sequence[LogRow]) -> list[int]:
    return [row.seq for row in rows]


@pytest.mark.needs("checks of indexes")
def test_events_are_checked_to_be_found_by_key_page_by_page(database: Database) -> None:
    with storage.database(database.name, Limits(page_events=2)).open(writable=True) as store:
        assert store.log.check_keys("counted", after=0) is None
        first, second, *_, last = append(store, "e1", "e2", "e3", "e4", "e5")

        assert store.log.check_keys("counted", after=0) == second
        assert store.log.check_keys("counted", after=first) is not None
        assert store.log.check_keys("counted", after=last - 1) is None


# Order


def test_positions_grow(store: Store, other: Store) -> None:
    positions = [append(one, f"e{n}")[0] for n, one in enumerate([store, other] * 3)]

    assert positions == sorted(set(positions))
    assert positions[0] > 0
    assert store.log.newest() == positions[-1]


WRITE = """
with database.open(writable=True) as store:
    say("ready"); input()
    for number in range(60):
        with store.transaction():
            for n in range(1 + number % 3):
                append(store, f"{sys.argv[2]}-{number}-{n}")
"""


def test_no_event_ever_appears_at_or_below_a_position_that_was_returned(
    url: str, store: Store
) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(elsewhere(url, WRITE, str(n))) for n in range(3)]
        assert [said(writer) for writer in writers] == ["ready"] * 3
        for writer in writers:
            tell(writer)
        seen: list[int] = []
        ended = False
        while not ended:
            ended = all(writer.poll() is not None for writer in writers)
            while len(page := store.log.page(start=seen[-1] if seen else 0)) > bool(seen):
                seen += seqs(page[bool(seen) :])
        assert [writer.returncode for writer in writers] == [0] * 3

    assert len(seen) == 3 * 120
    assert seen == seqs(everything(store))


def test_an_append_that_did_not_land_leaves_room_for_those_after_it(store: Store) -> None:
    append(store, "e1")
    with pytest.raises(ZeroDivisionError), store.transaction():
        raise ZeroDivisionError(append(store, "e2"))

    append(store, "e3")

    assert [row.id for row in everything(store)] == ["e1", "e3"]


# Events stay as they are


def test_an_event_is_kept_as_it_was_written(store: Store) -> None:
    rows = [event("e1", "A", b"\x80\x00", T0), event("e2", "session:grün", '{"a": "ü"}', 1)]

    written = [store.log.append(row) for row in rows]

    assert everything(store) == [
        msgspec.structs.replace(row, seq=seq) for row, seq in zip(rows, written, strict=True)
    ]


def test_ids_that_events_have_are_known(store: Store) -> None:
    append(store, "e1", "e2", "ü' x")
    many = [f"n{number}" for number in range(2500)]

    assert store.log.known(["e1", "e3", "ü' x", *many, "e2"]) == {"e1", "e2", "ü' x"}
    assert store.log.known([]) == set()


def test_the_same_event_again_is_where_it_was(store: Store, outside: Outsider) -> None:
    first, second = append(store, "e1", "e2")

    assert store.log.append(event("e1")) == first
    assert store.log.append(event("e1", created_at=1)) == first
    outside.insert("event_log", id="e1", key="session:A", data=b"\x80", created_at=2)

    assert seqs(everything(store)) == [first, second]
    assert everything(store)[0].created_at == T0


@pytest.mark.parametrize(("key", "data"), [("session:B", b"\x80"), ("session:A", b"\x81\x01\x02")])
def test_another_event_under_a_known_id_is_refused(
    store: Store, outside: Outsider, key: str, data: bytes
) -> None:
    (first,) = append(store, "e1")
    before = everything(store)

    with pytest.raises(UsageError, match=f"position {first} "):
        store.log.append(event("e1", key, data))
    with pytest.raises(outside.error):
        outside.insert("event_log", id="e1", key=key, data=data, created_at=T0)

    assert everything(store) == before


@pytest.mark.parametrize("statement", ["UPDATE event_log SET key = 'x'", "DELETE FROM event_log"])
def test_nobody_changes_or_deletes_an_event(
    store: Store, outside: Outsider, statement: str
) -> None:
    append(store, "e1")
    before = everything(store)

    with pytest.raises(outside.error):
        outside.sql(statement)

    assert everything(store) == before


def test_a_store_that_is_not_writable_writes_nothing(database: Database) -> None:
    with database.open() as store:
        with pytest.raises(ProjectorError):
            append(store, "e1")
        assert everything(store) == []


# Reading


def test_a_page_has_the_event_at_its_start_and_as_many_after_it_as_asked_for(store: Store) -> None:
    positions = append(store, *(f"e{n}" for n in range(6)))

    assert seqs(store.log.page(start=0, events=2)) == positions[:2]
    assert seqs(store.log.page(start=positions[1], events=2)) == positions[1:4]
    assert seqs(store.log.page(start=positions[1], until=positions[2], events=4)) == positions[1:3]
    assert store.log.page(start=positions[-1] + 1, events=2) == []
    assert store.log.page(start=positions[2], until=positions[1], events=2) == []


def test_a_page_ends_at_the_limit_of_events(store: Store) -> None:
    positions = append(store, *(f"e{n}" for n in range(9)))

    assert seqs(store.log.page(start=0)) == positions[:4]
    assert seqs(store.log.page(start=positions[3])) == positions[3:8]


@pytest.mark.parametrize("data", [b"\x80" * 400, "x" * 400])
def test_a_page_ends_with_the_event_that_passes_the_limit_of_bytes(
    store: Store, data: bytes | str
) -> None:
    positions = append(store, *(f"e{n}" for n in range(6)), data=data)

    assert seqs(store.log.page(start=0, events=6)) == positions[:3]
    assert seqs(store.log.page(start=positions[0], events=6)) == positions[:4]
    assert seqs(store.log.of(["session:A"], after=0, until=positions[-1])) == positions[:3]
    assert seqs(store.log.by_session(after=None, until=positions[-1])) == positions[:3]
    latest = store.log.latest(["session:A"], until=positions[-1], events=6)
    assert seqs(latest) == positions[:2:-1]


def test_however_large_events_are_each_page_goes_on(store: Store) -> None:
    positions = append(store, *(f"e{n}" for n in range(3)), data=b"x" * 5000)

    assert seqs(store.log.page(start=0)) == positions[:1]
    assert seqs(store.log.page(start=positions[0])) == positions[:2]
    assert seqs(everything(store)) == positions


def test_a_position_is_found_by_the_id_of_its_event(store: Store) -> None:
    first, second = append(store, "e1", "e2")

    assert [store.log.position_of(name) for name in ("e1", "e2", "e")] == [first, second, None]


def test_one_event_is_found_by_its_position(store: Store) -> None:
    (first,) = append(store, "e1")

    found = store.log.event(first)

    assert found == LogRow(first, "e1", "session:A", b"\x80", T0)
    assert store.log.event(first + 1) is None
    assert store.log.event(0) is None


@pytest.mark.parametrize(
    ("data", "size"), [(b"\x80\x80", 2), ("äü", 4), ("", 0), (None, 0)], ids=repr
)
def test_the_size_of_an_event_is_that_of_its_data_in_bytes(
    store: Store, data: Any, size: int
) -> None:
    (first,) = append(store, "e1", data=data)

    assert store.log.size(first) == size
    assert store.log.size(first + 1) == 0


@pytest.mark.parametrize("one", [b"x", "x"])
def test_of_an_event_beyond_the_limit_no_more_is_read_than_shows_that_it_is(
    url: str, one: bytes | str
) -> None:
    sizes = [MAX_EVENT_BYTES, MAX_EVENT_BYTES + 1, MAX_EVENT_BYTES + 1000]
    database = storage.database(url, Limits(page_bytes=2**40))
    database.setup()
    with database.open(writable=True) as store:
        for size in sizes:
            append(store, f"e{size}", data=one * size)
        rows = everything(store)
        by_key = store.log.of(["session:A"], after=0, until=rows[-1].seq)
        back = store.log.latest(["session:A"], until=rows[-1].seq, events=len(rows))
        by_session = store.log.by_session(after=None, until=rows[-1].seq)
        whole = store.log.event(rows[-1].seq, whole=True)

        assert [len(row.data) for row in rows] == [*sizes[:2], MAX_EVENT_BYTES + 1]
        assert (
            rows == by_key == back[::-1] == by_session == [store.log.event(row.seq) for row in rows]
        )
        assert whole is not None
        assert len(whole.data) == sizes[-1]
        assert [store.log.size(row.seq) for row in rows] == sizes


def test_events_of_some_keys_come_in_the_order_of_the_log(store: Store) -> None:
    written = [(append(store, f"e{n}", key=key)[0], key) for n, key in enumerate("ABCABCAB")]
    wanted = [seq for seq, key in written if key in "AC"]
    newest = written[-1][0]

    assert seqs(store.log.of(["C", "A"], after=0, until=newest)) == wanted[:4]
    assert seqs(store.log.of(["C", "A"], after=wanted[3], until=newest)) == wanted[4:]
    assert seqs(store.log.of(["C", "A"], after=wanted[0], until=wanted[2])) == wanted[1:3]
    assert store.log.of(["D"], after=0, until=newest) == []
    assert store.log.of([], after=0, until=newest) == []


def test_the_last_events_of_some_keys_come_newest_first(store: Store) -> None:
    written = [(append(store, f"e{n}", key=key)[0], key) for n, key in enumerate("ABCABCAB")]
    wanted = [seq for seq, key in reversed(written) if key in "AC"]
    newest = written[-1][0]

    assert seqs(store.log.latest(["C", "A"], until=newest, events=2)) == wanted[:2]
    assert seqs(store.log.latest(["C", "A"], until=newest, events=99)) == wanted[:4]  # a page
    assert seqs(store.log.latest(["C", "A"], until=wanted[2] - 1, events=99)) == wanted[3:]
    assert store.log.latest(["A"], until=newest, events=1) == [store.log.event(wanted[0])]
    assert store.log.latest(["D"], until=newest, events=9) == []
    assert store.log.latest([], until=newest, events=9) == []


def by_session(store: Store, until: int) -> Iterator[LogRow]:
    after = None
    while page := store.log.by_session(after=after, until=until):
        yield from page
        after = page[-1]


def test_all_events_can_be_read_session_by_session(store: Store) -> None:
    for number, key in enumerate(["B", "A", "session:B", None, "A", "B", "B", None, "A", "A"]):
        append(store, f"e{number}", key=key)
    rows = everything(store)
    until = rows[-2].seq

    found = [*by_session(store, until)]

    assert sorted(found, key=lambda row: row.seq) == rows[:-1]
    by_key = {key: [*group] for key, group in groupby(found, key=lambda row: row.key)}
    assert [*by_key] == [None, "A", "B", "session:B"]
    assert sum(map(len, by_key.values())) == len(found)  # each key once
    assert all(seqs(group) == sorted(seqs(group)) for group in by_key.values())


def in_ranges(store: Store, until: int) -> Iterator[list[LogRow]]:
    end = None
    while True:
        after, end = end, store.log.range_end(after=end, until=until)
        rows: list[LogRow] = []
        while page := store.log.by_session(after=rows[-1] if rows else after, until=until, end=end):
            rows += page
        yield rows
        if end is None:
            return


def test_all_events_can_be_read_in_ranges_of_whole_keys(store: Store) -> None:
    keys = ["B", "A", "session:B", None, "A", "B", "C", None, "A", "D", "D", "E", "F", "A"]
    for number, key in enumerate(keys):
        append(store, f"e{number}", key=key)
    until = everything(store)[-2].seq

    found = [*in_ranges(store, until)]

    assert [*chain.from_iterable(found)] == [*by_session(store, until)]
    of = [[row.key for row in rows] for rows in found]
    assert of == [[None] * 2, ["A"] * 3, ["B"] * 2 + ["C"], ["D"] * 2 + ["E"], ["F", "session:B"]]


def test_which_keys_have_events_up_to_a_position(store: Store, outside: Outsider) -> None:
    (first,) = append(store, "e1", key="A")
    (second,) = append(store, "e2", key="B")
    outside.insert("quarantine", projection="p", seq=second, id="e2", key="B", reason="bad")

    assert store.log.present(["A", "B", "C"]) == {"A", "B"}
    assert store.log.present(["A", "B", "C"], until=first) == {"A"}
    assert store.log.present(["A", "B"], unless_quarantined="p") == {"A"}
    assert store.log.present(["A", "B"], unless_quarantined="q") == {"A", "B"}
    assert store.log.present([]) == set()


def test_how_many_events_there_are_and_how_many_follow_a_position(store: Store) -> None:
    counted_before = store.log.count(), store.log.newest()
    positions = append(store, "e1", "e2", "e3")

    assert counted_before == (0, 0)
    assert [store.log.count(after=seq) for seq in (0, *positions)] == [3, 2, 1, 0]
    assert store.log.count() == 3
    assert store.log.count(after=positions[-1] + 5) == 0


def test_the_newest_position_is_seen_also_by_a_connection_of_its_own(
    database: Database, store: Store, outside: Outsider
) -> None:
    assert database.newest(busy_timeout_s=0.1) == 0

    *_, last = append(store, "e1", "e2")

    with outside.locking():
        assert database.newest(busy_timeout_s=0.1) == last


def test_the_highest_number_of_a_project_is_found_under_either_spelling(store: Store) -> None:
    keys = ["web-2", "session:web-10", "web-x", "web-api-70", "webby-80", "other-90", "web-", None]
    for number, key in enumerate(keys):
        append(store, f"e{number}", key=key)

    assert store.log.highest_number("web-") == 10
    assert store.log.highest_number("web-api-") == 70
    assert store.log.highest_number("new-") == 0


def test_a_batch_reaches_as_far_as_its_views_fit_into_what_it_may_load(store: Store) -> None:
    for number in range(30):
        append(store, f"e{number}", key=f"K-{number % 15}", data=b"x" * 10)
    few = store.log.batch_reach(start=0, events=5)
    many = store.log.batch_reach(start=0, events=30)

    assert few is None
    assert many is not None
    assert 5 < many.events < 15
    assert many.database_bytes > 30 * 10


# Odd values


ODD: dict[str, dict[str, Any]] = {
    "no text at all": {"id": None, "key": None, "data": None, "created_at": None},
    "blobs": {"id": b"\xff\x00", "key": b"\xfe", "data": b"", "created_at": b"\x01"},
    "not UTF-8": {
        "id": Raw(b"a\xff"),
        "key": Raw(b"k\xfe"),
        "data": Raw(b"{\xff}"),
        "created_at": 1,
    },
    "other types": {"id": "", "key": "", "data": 5, "created_at": "soon"},
    "a fraction": {"id": "x", "key": "session:x", "data": "{}", "created_at": 1.5},
}


@pytest.mark.needs("odd values")
def test_odd_values_come_back_as_they_are(store: Store, outside: Outsider) -> None:
    for columns in ODD.values():
        outside.insert("event_log", **columns)
    expected = [
        tuple(
            value.decode("utf-8", "surrogateescape") if isinstance(value, Raw) else value
            for value in columns.values()
        )
        for columns in ODD.values()
    ]

    found = everything(store)

    assert [(row.id, row.key, row.data, row.created_at) for row in found] == expected
    assert [store.log.event(row.seq, whole=True) for row in found] == found
    assert len({digest(row) for row in found}) == len(ODD)


@pytest.mark.needs("odd values")
def test_events_under_odd_keys_are_found(store: Store, outside: Outsider) -> None:
    for columns in ODD.values():
        outside.insert("event_log", **columns)
    append(store, "e1", key="A")
    rows = everything(store)

    for row in rows:
        if row.key is not None:
            assert store.log.of([row.key], after=0, until=row.seq) == [row]
            assert store.log.present([row.key]) == {row.key}
    assert sorted(seqs([*by_session(store, rows[-1].seq)])) == seqs(rows)
