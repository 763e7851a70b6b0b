"""The quarantine and the way back: show, resubmit, dismiss."""

import json

import pytest
from support import Database, event, projector

CUT_SHORT = b"\x82\xa4type\xaesession_append\xa4data\x81\xa8messages\x92\x81\xa4role\xa4user\x81"


@pytest.fixture
def quarantined(database: Database) -> Database:
    """An event cut short (1), an append before its session is created (2), and that creation."""
    database.insert("session:A-1", CUT_SHORT)
    database.appended("A-1", "early")
    database.created("A-1")
    projector("run", "--once", "-d", database.url)
    return database


def alerts(database: Database) -> list[int]:
    found = json.loads(projector("status", "--json", "-d", database.url).stdout)
    return [p["quarantined"] - p["dismissed"] for p in found["projections"]]


@pytest.mark.once
def test_show_decodes_as_far_as_it_goes(quarantined: Database) -> None:
    said = projector("quarantine", "show", "1", "-d", quarantined.url).stdout

    assert '"type": "session_append"' in said
    assert '"role": "user"' in said
    assert f"decoding stopped: not MessagePack: cut short after {len(CUT_SHORT)} bytes" in said
    assert "000000  82 a4 74 79" in said
    assert "sessions: not MessagePack" in said


@pytest.mark.once
def test_show_says_how_much_is_left_over(database: Database) -> None:
    database.insert("A-1", b"\x80" * 4)
    projector("run", "--once", "-d", database.url)

    said = projector("quarantine", "show", "1", "-d", database.url).stdout

    assert "sessions: not MessagePack: 3 bytes are left over at its end" in said
    assert "decoding stopped: 3 bytes are left over at its end" in said


@pytest.mark.once
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(5, marks=pytest.mark.sqlite),
        *("{oops", "ä", None, b"", b"\xdd\xff\xff\xff\xff", b"\x91" * 300),
        *(b"\x81\x80\x01", b"\x81\x91\x80\x01"),
    ],
)
def test_show_takes_anything(database: Database, data: object) -> None:
    seq = database.insert(None, data, id=None)
    projector("run", "--once", "-d", database.url)

    said = projector("quarantine", "show", str(seq), "-d", database.url).stdout

    assert f"seq         {seq}" in said


def test_resubmit_appends_the_event_again_and_takes_the_old_one_off_the_count(
    quarantined: Database,
) -> None:
    seq = projector("quarantine", "resubmit", "2", "-d", quarantined.url).stdout.strip()
    projector("run", "--once", "-d", quarantined.url)

    assert quarantined.contents("A-1") == ["early"]
    assert alerts(quarantined) == [1, 1]
    assert quarantined.sql("SELECT id LIKE 'resubmit-2-%' FROM event_log WHERE seq = ?", seq) == [
        (1,)
    ]
    assert 2 in quarantined.quarantine()


def test_resubmit_takes_a_mended_event(quarantined: Database) -> None:
    mended = json.dumps(event("session_append", {"messages": [{"content": "mended"}]}))
    for options, stdin in ((["-m", mended], ""), (["-m", "-"], mended)):
        projector("quarantine", "resubmit", "1", *options, "-d", quarantined.url, stdin=stdin)
    projector("run", "--once", "-d", quarantined.url)

    assert quarantined.contents("A-1") == ["mended", "mended"]


def test_resubmit_refuses_what_would_not_fold_and_writes_nothing(quarantined: Database) -> None:
    before = quarantined.log()

    again = projector("quarantine", "resubmit", "1", "-d", quarantined.url, check=1)
    absent = projector("quarantine", "resubmit", "3", "-d", quarantined.url, check=1)
    other = projector(
        "quarantine", "resubmit", "1", "-m", '{"type": "x"}', "-d", quarantined.url, check=1
    )

    assert "would not fold" in again.stderr
    assert "not in quarantine" in absent.stderr
    assert "would be skipped" in other.stderr
    assert quarantined.log() == before


def test_a_dismissed_event_is_off_the_count_and_stays_so_across_replay(
    quarantined: Database,
) -> None:
    projector("quarantine", "dismiss", "1", "--note", "a bug of March", "-d", quarantined.url)
    quarantined.sql("DELETE FROM quarantine")
    projector("replay", "-d", quarantined.url)

    assert alerts(quarantined) == [1, 1]
    listed = json.loads(projector("quarantine", "list", "--json", "-d", quarantined.url).stdout)
    assert [row["dismissed"] for row in listed] == ["a bug of March"] * 2 + [None] * 2


def test_dismiss_refuses_an_event_that_is_not_there(quarantined: Database) -> None:
    refused = projector("quarantine", "dismiss", "9", "--note", "x", "-d", quarantined.url, check=1)

    assert "projector quarantine list" in refused.stderr
