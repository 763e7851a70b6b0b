"""`view_json`: what SQL sees of a view is what `session view --json` prints."""

import json
from collections.abc import Iterator
from typing import Any

import anyio
import msgpack
import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import event, projector
from support.postgres import Server

from session_projector.projections import BUILT_IN
from session_projector.projections.messagepack import decode_exact
from session_projector.worker.cli.output import to_json
from session_projector.worker.daemon import supervisor
from session_projector.worker.storage import open as storage

Plain = psycopg.Connection[Any]
EXTENSIONS = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
TIMES = st.builds(msgpack.Timestamp, st.integers(-(2**40), 2**40), st.integers(0, 999_999_999))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats()
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.text() | st.binary(max_size=80) | EXTENSIONS | TIMES
)
# A text of ours begins with a letter, as another key is not to have the same text.
KEYS = (
    st.text().map(lambda text: f"k{text}")
    | st.binary(max_size=20)
    | st.integers(2, 2**64 - 1)
    | st.sampled_from([None, True, -0.25, 1e300, msgpack.ExtType(1, b"x")])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(KEYS, inner, max_size=20),
    max_leaves=60,
)


@pytest.fixture(scope="module")
def url(postgres: Server) -> Iterator[str]:
    with postgres.database(template=postgres.template) as url:
        yield url


@pytest.fixture(scope="module")
def connection(url: str) -> Iterator[Plain]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET extra_float_digits = 0")
        yield connection


def view_json(connection: Plain, data: bytes) -> str:
    ((found,),) = connection.execute("SELECT view_json(%s)::text", (data,)).fetchall()
    return str(found)


def same(text: str) -> str:
    """JSON in one way of writing it, which tells 1 from 1.0."""
    return json.dumps(json.loads(text), sort_keys=True)


@given(value=VALUES, single=st.booleans())
@example(value=[2**64 - 1, -(2**63), 2**63, -1, -33, -129, -32769, 65536], single=False)
@example(value=[5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, -0.0], single=False)
@example(value=[1e-45, 1.1754943508222875e-38, 3.4028234663852886e38, 0.1, -0.0], single=True)
@example(value=["\x00", "\x01", "\x000\x011\\", '"\x00"', "a" * 70_000, "\U0010ffff"], single=False)
@example(value=[[[]], {}, [{}] * 20, {"k": [[], None] * 33_000}], single=False)
@example(value=[b"", b"x" * 300, b"x" * 70_000], single=False)
def test_any_value_is_written_as_the_command_writes_it(
    connection: Plain, value: Any, single: bool
) -> None:
    data = msgpack.packb(value, use_single_float=single and fits(value))

    assert same(view_json(connection, data)) == same(to_json(decode_exact(data)))


def fits(value: Any) -> bool:
    """Whether there is no float that 32 bits have no room for."""
    try:
        msgpack.packb(value, use_single_float=True)
    except OverflowError:
        return False
    return True


def test_an_extension_type_below_zero_and_the_deepest_value_too(connection: Plain) -> None:
    for data in (
        b"\xc7\x02\xfbxy",
        b"\xd4\x80x",
        b"\x91" * 255 + b"\x80",
        b"\x81\xa0" * 256 + b"\x01",
    ):
        assert same(view_json(connection, data)) == same(to_json(decode_exact(data)))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xc1", b"\xa2a", b"\xd9", b"\xda\x00", b"\xdb\xff\xff\xff\xffa", b"\xa1\xff"),
        *(
            b"\x92\x01",
            b"\x81\x01",
            b"\xdd\xff\xff\xff\xff\x01",
            b"\xc4\x05a",
            b"\xc7\x01",
            b"\xd8",
        ),
        *(
            b"\xcb\x00",
            b"\x01\x02",
            b"\x81\x90\x01",
            b"\x81\x80\x01",
            b"\xc0\xc0",
            b"\xa3\xed\xa0\x80",
        ),
    ],
)
def test_what_is_no_value_is_refused(connection: Plain, data: bytes) -> None:
    with pytest.raises(psycopg.errors.DataError):
        view_json(connection, data)


def test_a_view_is_read_in_sql_as_the_command_prints_it(url: str, connection: Plain) -> None:
    messages = [
        {"role": "user", "content": "NUL \x00, ü, \u2028 and 🎉", "n": 2**64 - 1, "f": 0.1},
        {"role": "tool", "content": b"\x00\xff", "at": msgpack.ExtType(7, b"x"), 3: [None, True]},
    ]
    created = event("session_created", {"project": "P\x00", "messages": messages})
    insert = "INSERT INTO event_log (id, key, packed) VALUES ('a', 'session:s', %s)"
    connection.execute(insert, (msgpack.packb(created),))
    anyio.run(supervisor.run_once, storage.database(url), BUILT_IN)

    printed = projector("session", "view", "s", "--json", "-d", url).stdout
    ((found,),) = connection.execute(
        "SELECT view_json(data)::text FROM view WHERE key = 'session:s'"
    ).fetchall()

    assert same(found) == same(printed)
    part = "SELECT view_json(%s) #>> '{messages,0,content}'"
    ((content,),) = connection.execute(part, (msgpack.packb({"messages": [{"content": b"\0"}]}),))
    assert content == "AA=="
