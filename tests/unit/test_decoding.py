"""A row of the log is folded, skipped or quarantined as the contract says, and the oracle."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import T0, event, oracle

from session_projector.projections import fold as folding
from session_projector.projections import messagepack
from session_projector.projections.event import MAX_EVENT_BYTES, LogRow, keys_of, session_of
from session_projector.projections.sessions import Sessions

SESSIONS = Sessions()
CREATED = (1, "e1", "A-1", msgpack.packb(event("session_created", {"project": "A"})), T0)


def fold(rows: list[tuple[Any, ...]]) -> folding.Folded:
    return folding.fold(SESSIONS, {}, folding.read(LogRow(*row) for row in rows))


def agree(rows: list[tuple[Any, ...]]) -> folding.Folded:
    """Fold, and hold it against the oracle."""
    folded, expected = fold(rows), oracle.fold(rows)
    assert {key: SESSIONS.to_row(view) for key, view in folded.views.items()} == expected.views
    assert {rejected.seq for rejected in folded.quarantined} == expected.quarantine.keys()
    assert folded.skipped == expected.skipped
    return folded


def after_creation(data: Any, **columns: Any) -> folding.Folded:
    """What a second event does to a session that is there."""
    if isinstance(data, dict):
        data = msgpack.packb(data)
    row = {"id": "e2", "key": "A-1", "data": data, "created_at": T0 + 1, **columns}
    return agree([CREATED, (2, row["id"], row["key"], row["data"], row["created_at"])])


def reason(data: Any, **columns: Any) -> str:
    (rejected,) = after_creation(data, **columns).quarantined
    return rejected.reason


def message_event(encoded: bytes, kind: bytes = b"session_append") -> bytes:
    """A MessagePack event around one message whose bytes are given."""
    return (
        b"\x82\xa4type" + msgpack.packb(kind.decode()) + b"\xa4data\x81\xa8messages\x91" + encoded
    )


APPEND = event("session_append", {"messages": [{"role": "user", "content": "x"}]})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not MessagePack"),
        (b"\x81", "not MessagePack"),
        (b"\xc1", "not MessagePack"),
        (msgpack.packb(APPEND) + b"\x00", "left over"),
        (message_event(b"\x81\xa1a\xa1\xff"), "UTF-8"),
        (message_event(b"\x81\x81\x01\x01\x02"), "a map is used as a map key (at byte 38)"),
        (message_event(b"\x81\x91\x01\x02"), "a list is used as a map key (at byte 38)"),
        (message_event(b"\x81\xdc\x00\x00\x02"), "a list is used as a map key"),
        (b"\x82\xa4type\xa1x\x90\xc0", "a list is used as a map key"),
        (b"\x93\x01\x02\x03", "not a map"),
        ("", "not JSON"),
        ("[]", "not a map"),
        ('{"type": NaN}', "not JSON"),
        ('{"type": "x", "n": 1e999}', "not JSON"),
        ('{"type": "x", "n": "\\ud800"}', "not JSON"),
        ('{"type": "x", "n": "\udcff"}', "not UTF-8"),
        ("\ufeff{}", "not JSON"),
        ('{"type": "x"} {}', "not JSON"),
        ('{"type": "x", "n": 18446744073709551616}', "64 bits"),
        ('{"type": "x", "n": -9223372036854775809}', "64 bits"),
        (None, "data is missing"),
        (5, "data is a number"),
        ({}, "type is missing"),
        ({"type": 1}, "type is a number"),
        ({"type": "session_append"}, "data is missing"),
        (event("session_append", []), "data is a list"),
        (event("session_append", {}), "messages is missing"),
        (event("session_append", {"messages": []}), "messages is empty"),
        (event("session_append", {"messages": {}}), "messages is a map"),
        (event("session_append", {"messages": [{}, 1]}), "message 1 is a number"),
        (event("session_append_messages", {"messages": None}), "messages is missing"),
        (event("session_status_update", {}), "status is missing"),
        (event("session_status_update", {"status": ""}), "status is empty"),
        (event("session_status_update", {"status": 1}), "status is a number"),
        (event("session_updated", {"project": True}), "project is a boolean"),
        (event("session_updated", {"messages": "x"}), "messages is text"),
        (event("session_created", {"project": "A"}), "came twice"),
        ({**APPEND, "timestamp": True}, "timestamp is a boolean"),
        ({**APPEND, "timestamp": "1"}, "timestamp is text"),
        ({**APPEND, "timestamp": 1.5}, "timestamp is a number"),
        ({**APPEND, "timestamp": 2**53 + 1}, "2^53"),
        ({**APPEND, "timestamp": float("nan")}, "timestamp is a number"),
        ({**APPEND, "sessionId": "A-2"}, "another session"),
        ({**APPEND, "sessionId": "session:A-1"}, "another session"),
        ({**APPEND, "sessionId": ""}, "empty"),
        ({**APPEND, "sessionId": 7}, "sessionId is a number"),
    ],
)
def test_what_cannot_be_folded_is_quarantined_with_a_reason(data: Any, words: str) -> None:
    assert words in reason(data)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"key": None}, "key is missing"),
        ({"key": b"A-1"}, "key is binary"),
        ({"key": "A-1\udcff"}, "key is not UTF-8"),
        ({"key": ""}, "empty"),
        ({"key": "session:"}, "empty"),
        ({"key": "session:session:A-1"}, "never created"),
        ({"key": "A-2"}, "never created"),
        ({"id": None}, "id is missing"),
        ({"id": b"e"}, "id is binary"),
        ({"id": "\udcff"}, "id is not UTF-8"),
    ],
)
def test_a_row_that_names_no_session_is_quarantined(columns: Any, words: str) -> None:
    assert words in reason(APPEND, **columns)


@pytest.mark.parametrize("created_at", [None, "soon", 1.5, b"\x01", 2**53 + 1, -(2**60)])
def test_created_at_counts_only_where_there_is_no_timestamp(created_at: Any) -> None:
    untimed = {key: value for key, value in APPEND.items() if key != "timestamp"}

    assert "created_at" in reason(untimed, created_at=created_at)
    assert not after_creation(APPEND, created_at=created_at).quarantined


@pytest.mark.parametrize(
    ("created_at", "milliseconds"),
    [
        (1_700_000_000, 1_700_000_000_000),
        (1_700_000_000_000, 1_700_000_000_000),
        (99_999_999_999, 99_999_999_999_000),
        (100_000_000_000, 100_000_000_000),
        (-5, -5000),
        (5.0, 5000),
    ],
)
def test_created_at_is_seconds_or_milliseconds_by_its_size(
    created_at: Any, milliseconds: int
) -> None:
    folded = after_creation({**APPEND, "timestamp": None}, created_at=created_at)

    assert folded.views["session:A-1"].updated_at == milliseconds


@pytest.mark.parametrize("more", [{}, {"unknown": 1}], ids=["plain", "exact"])
@pytest.mark.parametrize(("created_at", "updated_at"), [(0, T0), (T0, 0)])
def test_a_time_of_0_is_a_time(more: Any, created_at: int, updated_at: int) -> None:
    """Both ways of decoding: one takes events with nothing unknown in them, the other any."""
    data = {"project": "A", "createdAt": created_at, **more}
    created = {"type": "session_created", "data": data, "timestamp": updated_at}

    (view,) = agree([(1, "e1", "A-1", msgpack.packb(created), 5)]).views.values()

    assert (view.created_at, view.updated_at) == (created_at, updated_at)


@pytest.mark.parametrize(
    ("session_id", "keys"),
    [
        ("A-1", ("A-1", "session:A-1")),
        ("session:A-1", ("session:session:A-1",)),
        ("sessions", ("sessions", "session:sessions")),
    ],
)
def test_a_session_has_the_keys_that_name_it_and_no_other(
    session_id: str, keys: tuple[str, ...]
) -> None:
    assert keys_of(session_id) == keys
    assert {session_of(key) for key in keys} == {session_id}


@pytest.mark.parametrize("kind", ["task_created", "project_created", "", "session_deleted"])
def test_other_types_are_skipped_and_counted_whatever_else_they_say(kind: str) -> None:
    folded = after_creation({"type": kind, "sessionId": 5, "timestamp": "x"}, key=None, id=None)

    assert (folded.skipped, folded.quarantined) == (1, [])


@pytest.mark.parametrize(
    "data",
    [
        event("session_append", {"messages": [{"role": "user"}]}, more=1),
        event("session_append", {"messages": [{}], "unknown": [1]}),
        event("session_append_messages", {"messages": [{"a": None}]}, sessionId=None),
        event("session_append", {"messages": [{}]}, sessionId="A-1", timestamp=5.0),
        event("session_status_update", {"status": "anything"}),
        event("session_updated", {}),
        event("session_updated", {"messages": None, "status": None, "project": None}),
        event("session_updated", {"messages": [], "status": "done", "project": ""}),
        json.dumps(APPEND),
        ' {"type":"session_append","type":"session_updated","data":{"status":"a","status":"b"}}\n',
        b"\x83\xa4type\x01\xa4type\xafsession_updated\xa4data\x80",
        b"\x84\xa4type\xafsession_updated\xa4data\x80\xd4\x05a\x02\xcd\x01\x02\x03",
        b"\x82\xa4type\xaesession_append\xa4data\x83\xa8messages\x91\x80"
        b"\xd4\x05a\xc0\xd4\xff\x01\xc0",  # odd keys beside the messages
    ],
)
def test_what_is_valid_folds(data: Any) -> None:
    assert not after_creation(data).quarantined


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x81\xa1n\xcf\xff\xff\xff\xff\xff\xff\xff\xff",  # 2^64 - 1
        b"\x81\xa1n\xd3\x80\x00\x00\x00\x00\x00\x00\x00",  # -2^63
        b"\x81\xa1n\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a",
        b"\x81\xa1n\xca\x3d\xcc\xcc\xcd",  # float32
        b"\x81\xa1n\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
        b"\x81\xa1n\xc4\x02\x00\xff",
        b"\x81\xa1n\xd4\x05a",
        b"\x81\xa1n\xd6\xff\x00\x00\x00\x00",  # a time
        b"\x81\xa1n\xd5\xff\x00\x00",  # a time of a length that none has
        b"\x81\xa1n\xc7\x0c\xff" + b"\xff" * 12,  # a time out of range
        b"\x82\x01\xa1a\xc0\xa1b",  # keys that are not text
        b"\x81\xd4\x05a\xa1a",
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\xde\x00\x01\xda\x00\x01a\xd2\x00\x00\x00\x01",  # longer forms than needed
        b"\x81\xa1t" + msgpack.packb("grüße, 頑張って 🤖"),
    ],
)
def test_a_message_is_kept_as_its_writer_encoded_it(encoded: bytes) -> None:
    folded = after_creation(message_event(encoded))

    data = SESSIONS.to_row(folded.views["session:A-1"])[2]
    assert encoded in data


def nested(levels: int, *, text: bool) -> Any:
    """An event of so many levels in all, ours or somebody else's by turns."""
    inner = levels - 1
    if text:
        return '{"type":"t","x":' + "[" * inner + "]" * inner + ',"y":"[[{{"}'
    return b"\x82\xa4type\xa1t\xa1x" + b"\x91" * (inner - 1) + b"\x90"


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("levels", [2, 255, 256, 257, 998, 5_000, 200_000])
def test_256_levels_are_the_most(text: bool, levels: int) -> None:
    data = nested(levels, text=text)

    if levels <= 256:
        assert after_creation(data).skipped == 1
    else:
        assert "nested deeper than 256" in reason(data)


def test_brackets_in_text_and_wide_data_are_no_nesting() -> None:
    wide = {"type": "t", "x": [[], {}] * 5000, "y": "[{" * 5000, "z": "é" * 5000}

    assert after_creation(wide).skipped == 1
    assert after_creation(json.dumps(wide, ensure_ascii=False)).skipped == 1


@pytest.mark.parametrize("end", ["", '"', "\\", '\\"'])
def test_a_large_text_that_is_cut_short_is_refused_in_no_time(end: str) -> None:
    """The suite's deadline holds this: a quadratic scan would take days."""
    content = json.dumps(json.dumps([{"a": 'x"y\\'}] * 200_000))

    assert "not JSON" in reason('{"type":"session_append","data":' + content[:-3] + end)


@pytest.mark.parametrize("text", [False, True])
def test_16_mib_are_the_most(text: bool) -> None:
    def sized(size: int) -> Any:
        if text:
            head = '{"type":"session_append","data":{"messages":[{"c":"'
            return head + "x" * (size - len(head) - 5) + '"}]}}'
        fill = b"x" * (size - len(message_event(b"\x81\xa1c\xdb\x00\x00\x00\x00")))
        return message_event(b"\x81\xa1c\xdb" + len(fill).to_bytes(4, "big") + fill)

    assert len(sized(MAX_EVENT_BYTES)) == MAX_EVENT_BYTES
    assert not after_creation(sized(MAX_EVENT_BYTES)).quarantined
    assert "larger than" in reason(sized(MAX_EVENT_BYTES + 1))


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_a_list_of_any_length_begins_as_another_library_says(count: int) -> None:
    header = messagepack.list_header(count)

    assert header == msgpack.Packer().pack_array_header(count)
    assert messagepack.split_list(header + b"\xc0" * count) == (count, b"\xc0" * count)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(-5, 5), inner, max_size=3)
    ),
    max_leaves=8,
)
packed = values.map(msgpack.packb)
mutated = st.builds(
    lambda data, at, byte: data[: at % (len(data) + 1)] + byte + data[at % (len(data) + 1) + 1 :],
    st.builds(
        lambda value: msgpack.packb({**APPEND, "data": {"messages": [{"v": value}]}}), values
    ),
    st.integers(0, 200),
    st.binary(max_size=2),
)


@given(data=packed | mutated | st.binary(max_size=40))
def test_any_bytes_mean_what_the_oracle_says(data: bytes) -> None:
    after_creation(data)


@given(data=st.text(max_size=30) | st.builds(json.dumps, values.filter(lambda v: v is None)))
def test_any_text_means_what_the_oracle_says(data: str) -> None:
    after_creation(data)


@given(data=packed | mutated)
def test_the_exact_reader_agrees_with_msgspec(data: bytes) -> None:
    def outcome(read: Any) -> str:
        try:
            return repr(read(data))
        except messagepack.Malformed:
            return "malformed"

    exact, fast = outcome(messagepack.decode_exact), outcome(messagepack.decode)
    assert (exact == "malformed") == (fast == "malformed")
