"""The scanner and the reader, two definitions of one thing, and the limits at their edges."""

import json
import random
from math import inf
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_projector.projections import messagepack, scanner
from session_projector.projections.decode import decode
from session_projector.projections.event import MAX_NAME_BYTES, LogRow, Unfoldable
from session_projector.projections.scanner import MAX_CONTAINERS, Malformed

SHORT = [bytes([head]) for head in (*range(0x00, 0x100, 5), 0xC1, *range(0xC0, 0xE0))]
VALUES = (
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
KEYS = st.text(max_size=3) | st.integers(-40, 300) | st.binary(max_size=3)
NESTED = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=40) | st.dictionaries(KEYS, inner, max_size=5)
)
PIECES = st.lists(
    st.sampled_from(SHORT) | st.binary(max_size=3) | NESTED.map(msgpack.packb), max_size=12
).map(b"".join)


def verdict(read: Any, data: bytes) -> str:
    try:
        read(data)
    except Malformed as error:
        return str(error)
    return "whole"


@given(data=NESTED.map(msgpack.packb) | PIECES | PIECES.map(lambda data: b"\xdc\x00\x20" + data))
def test_the_scanner_says_of_any_bytes_what_the_reader_says(data: bytes) -> None:
    assert verdict(scanner.check, data) == verdict(messagepack.decode_exact, data)


@pytest.mark.parametrize("seed", range(20))
def test_runs_of_any_length_are_counted(seed: int) -> None:
    chance = random.Random(seed)
    values = [b"\xc0", b"\xa2\xc3\xa9", b"\xd9\x03abc", b"\xc7\x01\x05x", b"\xcd\x01\x02", b"\xa1a"]
    count = chance.choice([*range(70), 255, 4095, 4096, 65_535, 65_536, 140_000])
    body = b"".join(chance.choice(values) for _ in range(count))
    data = b"\x93\xdd" + count.to_bytes(4, "big") + body + b"\x81\xa1k\x90\xc0"

    assert verdict(scanner.check, data) == "whole"
    assert scanner.end_of(body + b"\xc0\xc0", 0, count) == len(body)
    assert "cut short" in verdict(scanner.check, data[:-1])
    assert "1 bytes are left over" in verdict(scanner.check, data + b"\x01")


def test_texts_are_checked_wherever_they_stand_beside_times_that_are_out_of_range() -> None:
    late = b"\xd7\xff" + b"\xff" * 8
    data = b"\xdd\x00\x03\x00\x00" + (late + b"\xa2\xc3\xa9") * (3 * 2**15 - 1) + late

    assert verdict(scanner.check, data + b"\xa2\xc3\xa9") == "whole"
    assert f"byte {len(data) + 1} is not UTF-8" in verdict(scanner.check, data + b"\xa2\xc3\x28")


@pytest.mark.parametrize("inner", [b"\x90", b"\x80", b"\x91\xc0", b"\x81\xa1k\xc0"])
def test_a_list_after_a_map_or_list_in_a_map_is_a_key_like_the_first(inner: bytes) -> None:
    data = b"\x82\xa1a" + inner + b"\x90\xa1b"

    assert verdict(scanner.check, data) == f"a list is used as a map key (at byte {len(data) - 3})"


def test_no_name_is_found_within_a_value() -> None:
    data = b"\x83\x01\xa2xy\xa4role\x07\xc4\x07\xa4roleab\x05"

    assert messagepack.fields(data, ("role",)) == [b"\x07"]


def in_json(value: str) -> str:
    return f'{{"type":"session_append","data":{{"messages":[{{"a":{value}}}]}}}}'


def json_reason(value: str) -> str | None:
    return reason(in_json(value))


def test_brackets_within_json_texts_do_not_count_and_no_text_has_to_end() -> None:
    text = '"' + "[{" * MAX_CONTAINERS + '\\"["'

    assert json_reason(f'{text},"b":"]"') is None
    assert json_reason("[" + '"[",' * MAX_CONTAINERS + '"{"]') is None
    assert "nested deeper" in str(json_reason("[" * 300))
    assert "not JSON" in str(json_reason('"' + "[" * 300))
    assert "not JSON" in str(json_reason("]" * 3 * MAX_CONTAINERS + "[" * 300))


@pytest.mark.parametrize("one", ["1e23", "5e-324", "-1.7976931348623157E308", "1e-400", "2.5E+05"])
def test_json_numbers_with_exponents_are_those_that_python_reads(one: str) -> None:
    folded = decode(LogRow(1, "e1", "A-1", in_json(f"[{one},0.1,-1]"), 0)).body

    assert folded.messages.values == [{"a": [float(one), 0.1, -1]}]
    assert "beyond float64" in str(json_reason(f"[{one},1e400]"))
    assert "beyond float64" in str(json_reason("9" * 400 + ".5"))


def reason(data: Any, *, key: Any = "A-1", event_id: Any = "e1") -> str | None:
    try:
        decode(LogRow(1, event_id, key, data, 0))
    except Unfoldable as error:
        return str(error)
    return None


def event(containers: int, kind: str, *, text: bool) -> Any:
    """An event with so many maps and lists: its own map, `data`, `messages`, a message, a list."""
    inner = containers - 5
    if text:
        maps = "[" + "{}," * (inner - 1) + '"[\\"{"]' if inner else "[]"
        maps = maps.replace('"[', '{},"[', 1)
        return f'{{"type":"{kind}","data":{{"messages":[{{"a":{maps}}}]}}}}'
    head = b"\x82\xa4type" + msgpack.packb(kind) + b"\xa4data\x81\xa8messages\x91\x81\xa1a"
    return head + b"\xdd" + inner.to_bytes(4, "big") + b"\x80" * inner


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("kind", ["session_append", "task_created"])
def test_100000_maps_and_lists_are_the_most(kind: str, text: bool) -> None:
    many = "more than 100000 maps and lists, the most an event may have"

    assert reason(event(MAX_CONTAINERS, kind, text=text)) is None
    assert reason(event(MAX_CONTAINERS + 1, kind, text=text)) == many


@pytest.mark.parametrize("kind", ["session_append", "task_created"])
@pytest.mark.parametrize("one", ["x", "é", "頁"])
def test_64_kib_are_the_most_that_an_id_or_key_may_have(kind: str, one: str) -> None:
    data = msgpack.packb({"type": kind, "data": {"messages": [{}]}})
    longest = (one * MAX_NAME_BYTES).encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    longest += "x" * (MAX_NAME_BYTES - len(longest.encode()))

    for written in (data, json.dumps(msgpack.unpackb(data))):
        assert reason(written, key=longest, event_id=longest) is None
        too_long = "is longer than 65536 bytes, the most it may have"
        assert reason(written, key=longest + "x") == f"key {too_long}"
        assert reason(written, event_id=longest + "x") == f"id {too_long}"


def test_fields_are_found_among_any_keys_and_the_last_of_equal_ones_counts() -> None:
    chance = random.Random(1)
    names = ("role", "content")
    keys = [1, -5, 2.5, None, b"role", "", "x" * 200, "role", "role", "content"]
    values = [1, None, "é" * 9, "y" * 300, [], [[]] * 3, {1: {"role": 2}}, b"\xa4role"]
    for size in (*range(1, 40), 5000, 20_000):
        pairs = [(chance.choice(keys), chance.choice(values)) for _ in range(size)]
        packed = [(key, msgpack.packb(value)) for key, value in pairs]
        body = b"".join(msgpack.packb(key) + value for key, value in packed)
        last = dict(packed)
        wanted = [None if last.get(name) == b"\xc0" else last.get(name) for name in names]

        assert messagepack.fields(b"\xdf" + size.to_bytes(4, "big") + body, names) == wanted


def test_a_name_may_be_spelled_with_a_longer_length() -> None:
    data = b"\x84\x01\x02\xa4role\xa1a\xd9\x04role\xa1b\xda\x00\x04role\xa1c"

    assert messagepack.fields(data, ("role",)) == [b"\xa1c"]


@pytest.mark.parametrize("nothings", [3, 3 * MAX_CONTAINERS])
def test_the_maps_in_a_list_are_found_whatever_else_is_in_it(nothings: int) -> None:
    odd = [msgpack.packb(value) for value in ({1: [2]}, [{"a": 1}], "x" * 500, {}, [], {"b": {}})]
    body = b"\xc0" * nothings + b"".join(odd) + b"\xc0"
    data = b"\xdd" + (nothings + 7).to_bytes(4, "big") + body

    assert [*messagepack.maps(data)] == [odd[0], odd[3], odd[5]]


def test_numbers_as_keys_cost_no_more_than_others() -> None:
    """The suite's deadline holds this: in a dict these would take hours."""
    keys = b"".join(b"\xcf" + (n << 40).to_bytes(8, "big") + b"\xc0" for n in range(1 << 18))
    odd = b"\xdf\x00\x04\x00\x00" + keys
    data = b"\x82\xa4type\xaesession_append\xa4data\x81\xa8messages\x91" + odd
    folded = decode(LogRow(1, "e1", "A-1", data, 0)).body
    fields = b"\xdf\x00\x04\x00\x02" + keys + data[1:]
    kinds = decode(LogRow(1, "e1", "A-1", fields, 0)).type

    assert folded.messages.body == odd
    assert kinds == "session_append"


def test_what_a_projection_of_others_gets_has_few_numbers_as_keys() -> None:
    def row(count: int) -> LogRow:
        numbers = dict.fromkeys(range(count), "x" * 100)
        data = msgpack.packb({"type": "mine", "data": numbers})
        return LogRow(1, "e1", "A-1", data, 0)

    assert len(decode(row(1000), ["mine"]).body.data) == 1000
    with pytest.raises(Unfoldable, match="more than 1000 numbers as keys"):
        decode(row(1001), ["mine"])
    assert decode(row(1001)).body is None


@pytest.mark.parametrize(
    ("data", "event", "view"),
    [
        (b"\xc0" * 2**20, True, True),
        (b"\x80" * 2**20, False, True),
        (b"\xc0" * 2**21, False, True),
        (b"\x80" * 2**21, False, False),
        (b"\xc0" * (2**23 + 1), False, False),
    ],
    ids=["small", "small, all maps", "larger", "larger, all maps", "large"],
)
def test_what_may_be_built_is_bounded_by_bytes_and_by_maps(
    data: bytes, event: bool, view: bool
) -> None:
    assert (scanner.may_be_built(data), scanner.may_be_built(data, inf)) == (event, view)
