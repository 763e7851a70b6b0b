"""Events in quarantine, what projections report of themselves, and the pairs of a full scan."""

from typing import Any

import pytest
from conformance.engines import Outsider, Raw
from support.laws import COUNTED, append, change, later

from session_projector.projections.event import MAX_EVENT_BYTES, MAX_NAME_BYTES, LogRow
from session_projector.projections.fold import Rejected
from session_projector.projections.projection import Table
from session_projector.worker.storage.port import (
    ProjectionStatus,
    QuarantineCount,
    QuarantineEntry,
    QuarantineReason,
    Store,
)


def reject(store: Store, *seqs: int, position: int) -> None:
    """Put events into the quarantine of `counted`."""
    before = store.checkpoints.get("counted") or store.views.prepare(COUNTED)
    rejected = [Rejected(seq, f"bad {seq}") for seq in seqs]
    after = later(before, position=position)
    store.commit([change(COUNTED, before, after, quarantined=rejected)])


# Quarantine


def test_a_page_has_all_rows_of_so_many_events(store: Store) -> None:
    seqs = append(store, *(f"e{number}" for number in range(5)))
    reject(store, *seqs, position=seqs[-1])
    table = Table("another", COUNTED.table.columns, "key")
    other = type("Another", (type(COUNTED),), {"name": "another", "table": table})()
    before = store.views.prepare(other)
    rejected = [Rejected(seq, "bad\x01") for seq in seqs[:2]]
    after = later(before, position=seqs[-1])
    store.commit([change(other, before, after, quarantined=rejected)])
    store.quarantine.dismiss(seqs[1], "known")

    def page(after: int, limit: int, **given: str) -> list[tuple[int, str]]:
        found = store.quarantine.page(after=after, limit=limit, **given)
        return [(one.seq, one.projection) for one in found]

    first, second, third, fourth, fifth = seqs
    both = [(first, "another"), (first, "counted"), (second, "another"), (second, "counted")]
    assert page(0, 2) == both
    assert page(first, 2) == [*both[2:], (third, "counted")]
    assert page(0, 9) == [(one.seq, one.projection) for one in store.quarantine.entries()]
    assert page(0, 2, projection="counted") == [(first, "counted"), (second, "counted")]
    assert page(0, 9, reason=f"bad {fourth}") == [(fourth, "counted")]
    assert page(0, 9, reason="bad\x01") == [(first, "another"), (second, "another")]
    assert page(0, 9, projection="another", reason=f"bad {first}") == []
    assert page(fifth, 9) == []
    assert store.quarantine.page(after=first, limit=1)[0].dismissed == "known"

    assert store.quarantine.summary(2) == [
        QuarantineReason("another", "bad\x01", 2, 1, first, second),
        QuarantineReason("counted", f"bad {first}", 1, 0, first, first),
    ]
    assert len(store.quarantine.summary(9)) == 6


def test_reasons_are_given_for_the_events_that_were_asked_for(store: Store) -> None:
    first, second, third = append(store, "e1", "e2", "e3")
    reject(store, first, third, position=third)

    found = store.quarantine.reasons("counted", [first, second, third, third + 1])

    assert found == {first: f"bad {first}", third: f"bad {third}"}
    assert store.quarantine.reasons("counted", [second]) == {}
    assert store.quarantine.reasons("counted", []) == {}
    assert store.quarantine.reasons("other", [first]) == {}


@pytest.mark.parametrize("differing", [{"id": "another"}, {"key": "another"}])
def test_no_reason_is_given_where_the_row_is_of_another_event(
    store: Store, outside: Outsider, differing: dict[str, str]
) -> None:
    (first,) = append(store, "e1")
    row: dict[str, Any] = {"id": "e1", "key": "session:A", **differing}
    outside.insert("quarantine", projection="counted", seq=first, reason="bad", **row)

    assert store.quarantine.reasons("counted", [first]) == {first: None}


def test_the_projections_that_have_events_there_are_those_that_can_have_such_a_name(
    store: Store, outside: Outsider
) -> None:
    (first,) = append(store, "e1")
    assert store.quarantine.projections() == []
    reject(store, first, position=first)
    for name in ("another", "", "a; rm -rf ~"):
        for seq in (1, 2):
            outside.insert("quarantine", projection=name, seq=seq, id="x", key="y", reason="z")

    assert store.quarantine.projections() == ["another", "counted"]


def test_strays_are_rows_without_an_event_or_beyond_the_checkpoint(
    store: Store, outside: Outsider
) -> None:
    first, second, third = append(store, "e1", "e2", "e3")
    reject(store, first, second, position=first)
    outside.insert("quarantine", projection="counted", seq=third + 7, id="x", key="y", reason="z")

    assert store.quarantine.strays("counted", ahead=None) == [second, third + 7]
    assert store.quarantine.strays("counted", ahead=second) == [third + 7]
    assert store.quarantine.strays("other", ahead=None) == []


def test_strays_come_by_the_page_until_all_are_cleared(store: Store) -> None:
    positions = append(store, *(f"e{n}" for n in range(7)))
    reject(store, *positions, position=0)
    pages = []

    while page := store.quarantine.strays("counted", ahead=None):
        pages.append(page)
        before = store.checkpoints.get("counted")
        assert before is not None
        store.commit([change(COUNTED, before, cleared=page)])

    assert pages == [positions[:3], positions[3:6], positions[6:]]


def test_entries_come_by_position_and_then_by_projection(store: Store, outside: Outsider) -> None:
    first, second = append(store, "e1", "e2")
    reject(store, second, first, position=second)
    outside.insert("quarantine", projection="a", seq=second, id="e2", key="session:A", reason="bad")

    found = store.quarantine.entries()

    assert [(entry.seq, entry.projection) for entry in found] == [
        (first, "counted"),
        (second, "a"),
        (second, "counted"),
    ]
    assert store.quarantine.entries(second) == found[1:]
    assert store.quarantine.entries(second + 1) == []
    assert found[0] == QuarantineEntry("counted", first, "e1", "session:A", f"bad {first}", None)


def test_a_dismissed_event_has_the_note_and_is_counted_as_dismissed(store: Store) -> None:
    first, second = append(store, "e1", "e2")
    reject(store, first, second, position=second)
    for note in ("looked at", "looked at again"):
        with store.transaction():
            store.quarantine.dismiss(first, note)

    assert [entry.dismissed for entry in store.quarantine.entries()] == ["looked at again", None]
    assert store.quarantine.count("counted") == QuarantineCount(quarantined=2, dismissed=1)
    assert store.quarantine.count("other") == QuarantineCount(quarantined=0, dismissed=0)


def test_a_note_is_not_taken_for_one_on_another_event_at_that_position(
    store: Store, outside: Outsider
) -> None:
    (first,) = append(store, "e1")
    reject(store, first, position=first)
    outside.insert("dismissed", seq=first, id="of another log", note="old", dismissed_at=1)

    assert [entry.dismissed for entry in store.quarantine.entries()] == [None]
    assert store.quarantine.count("counted").dismissed == 0


@pytest.mark.needs("odd values")
@pytest.mark.parametrize("odd", [None, b"\xff\x00", Raw(b"a\xff"), ""], ids=repr)
def test_an_odd_id_and_key_are_recorded_as_they_are(
    store: Store, outside: Outsider, odd: Any
) -> None:
    outside.insert("event_log", id=odd, key=odd, data=b"\xc1", created_at=1)
    (row,) = store.log.page(start=0)

    reject(store, row.seq, position=row.seq)
    with store.transaction():
        store.quarantine.dismiss(row.seq, "odd")

    assert store.quarantine.reasons("counted", [row.seq]) == {row.seq: f"bad {row.seq}"}
    (entry,) = store.quarantine.entries()
    assert (entry.id, entry.key, entry.dismissed) == (row.id, row.key, "odd")


@pytest.mark.needs("odd values")
@pytest.mark.parametrize("size", [MAX_NAME_BYTES, MAX_NAME_BYTES + 1, MAX_EVENT_BYTES + 2])
@pytest.mark.parametrize("one", ["x", "ä", Raw(b"\xff"), b"x"], ids=repr)
def test_of_an_id_or_key_that_is_too_long_the_beginning_is_kept(
    store: Store, outside: Outsider, one: Any, size: int
) -> None:
    """Whichever of them it is, and however the event came to be read."""
    of_text = one.encode() if isinstance(one, str) else bytes(one)
    name = (of_text * size)[:size]
    long: Any = name if type(one) is bytes else Raw(name)
    outside.insert("event_log", id=long, key="session:A", data=b"\xc1", created_at=1)
    outside.insert("event_log", id="e2", key=long, data=b"\xc1", created_at=1)
    second = store.log.newest()
    first = second - 1
    seqs = [first, second]

    reject(store, *seqs, position=second)

    assert store.quarantine.reasons("counted", seqs) == {seq: f"bad {seq}" for seq in seqs}
    entries = store.quarantine.entries()
    kept = size if size == MAX_NAME_BYTES else 1000
    assert [e.key for e in entries[:1]] == ["session:A"]
    assert [e.id for e in entries[1:]] == ["e2"]
    for shown in (entries[0].id, entries[1].key):
        stored = shown if isinstance(shown, bytes) else shown.encode("utf-8", "surrogateescape")
        assert stored == name[:kept]


@pytest.mark.needs("odd values")
@pytest.mark.parametrize("seq", ["text", Raw(b"\xff"), b"\xff", 1.5], ids=repr)
def test_a_row_whose_position_is_no_number_is_a_stray_that_can_be_cleared(
    store: Store, outside: Outsider, seq: Any
) -> None:
    (first,) = append(store, "e1")
    reject(store, first, position=first)
    outside.insert("quarantine", projection="counted", seq=seq, id="e1", key="k", reason="bad")
    before = store.checkpoints.get("counted")
    assert before is not None

    assert store.quarantine.reasons("counted", [first]) == {first: f"bad {first}"}
    (stray,) = store.quarantine.strays("counted", ahead=None)
    store.commit([change(COUNTED, before, cleared=[stray])])

    assert [entry.seq for entry in store.quarantine.entries()] == [first]


# What projections say of themselves


def test_what_a_projection_reports_is_seen_by_all_until_it_has_nothing_to_say(
    store: Store, other: Store, outside: Outsider
) -> None:
    rebuilding = ProjectionStatus("rebuilding", 2, "", 10, 20, 1_000, 2_000)
    failed = ProjectionStatus("failed", 3, "it cannot fold", 11, 21, 1_001, 2_001)

    store.checkpoints.report("a", rebuilding)
    store.checkpoints.report("b", failed)
    both = other.checkpoints.reports()
    store.checkpoints.report("a", failed)
    store.checkpoints.report("b", None)

    assert both == {"a": rebuilding, "b": failed}
    assert other.checkpoints.reports() == {"a": failed}
    with outside.locking():
        store.checkpoints.report("b", None)  # which is nothing new, and so waits for nobody


def test_a_checkpoint_that_is_not_there_is_none(store: Store) -> None:
    store.views.prepare(COUNTED)

    assert store.checkpoints.get("other") is None
    assert "other" not in store.checkpoints.all()


# Scratch


def scratched(store: Store, name: str) -> list[tuple[str, LogRow]]:
    """All pairs, by pages."""
    found: list[tuple[str, LogRow]] = []
    store_page = store.scratch.page
    while page := store_page(name, after=(found[-1][0], found[-1][1].seq) if found else ("", 0)):
        assert len(page) <= 4
        found += page
    return found


def test_pairs_come_by_view_and_then_by_position_with_their_events(store: Store) -> None:
    positions = append(store, *(f"e{n}" for n in range(6)))
    rows = {row.seq: row for n in positions for row in store.log.page(start=n, until=n)}
    pairs = [(key, seq) for seq in positions for key in ("b", "", "a")]

    store.scratch.clear("p")
    store.scratch.add("p", pairs[9:])
    store.scratch.add("p", pairs[:12])  # some of them a second time

    assert scratched(store, "p") == [(key, rows[seq]) for key, seq in sorted(pairs)]
    assert store.scratch.present("p", ["a", "c", ""]) == {"a", ""}
    assert store.scratch.present("p", []) == set()


def test_pairs_are_of_one_projection_and_are_forgotten_when_told(store: Store) -> None:
    positions = append(store, "e1", "e2")
    for name, key in (("p", "a"), ("q", "b")):
        store.scratch.clear(name)
        store.scratch.add(name, [(key, seq) for seq in positions])

    store.scratch.clear("p")

    assert scratched(store, "p") == []
    assert [key for key, _ in scratched(store, "q")] == ["b", "b"]


def test_pairs_are_of_one_connection_and_lock_nobody_out(
    store: Store, other: Store, outside: Outsider
) -> None:
    (first,) = append(store, "e1")
    store.scratch.clear("p")
    other.scratch.clear("p")
    other.changed()

    with outside.locking():
        store.scratch.add("p", [("a", first)])

    assert scratched(other, "p") == []
    assert not other.changed()
    assert [key for key, _ in scratched(store, "p")] == ["a"]
