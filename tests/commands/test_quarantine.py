"""The quarantine and the way back: show, resubmit, dismiss."""

import json
from typing import Any

import pytest
from support import T0, Database, daemon, event, projector

CUT_SHORT = b"\x82\xa4type\xaesession_append\xa4data\x81\xa8messages\x92\x81\xa4role\xa4user\x81"


@pytest.fixture
def quarantined(database: Database) -> Database:
    """An event cut short (1), an append before its session is created (2), and that creation."""
    database.insert("session:A-1", CUT_SHORT)
    database.appended("A-1", "early")
    database.created("A-1")
    projector("run", "--once", "-d", database.url, check=1)
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
    projector("run", "--once", "-d", database.url, check=1)

    said = projector("quarantine", "show", "1", "-d", database.url).stdout

    assert "sessions: not MessagePack: 3 bytes are left over at its end" in said
    assert "decoding stopped: 3 bytes are left over at its end" in said


@pytest.mark.once
def test_show_says_more_closely_what_is_wrong_with_the_encoding(database: Database) -> None:
    text = '{"type": "session_append",\n "data": {},}'
    database.insert("A-1", text.replace(",}", "}").encode())
    database.insert("A-1", text)
    projector("run", "--once", "-d", database.url, check=1)

    shown = [projector("quarantine", "show", seq, "-d", database.url).stdout for seq in "12"]
    refused = projector("quarantine", "resubmit", "2", "-d", database.url, check=1).stderr

    assert "in detail: these bytes are JSON: bind it as TEXT" in shown[0]
    assert "in detail: line 2, column 13: trailing comma in object, near: " in shown[1]
    assert "line 2, column 13: trailing comma" in refused


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
    projector("run", "--once", "-d", database.url, check=1)

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
    for seq, option, stdin in (("1", mended, ""), ("2", "-", mended)):
        command = ["quarantine", "resubmit", seq, "-m", option, "-d", quarantined.url]
        projector(*command, stdin=stdin)
        assert "was resubmitted as seq" in projector(*command, stdin=stdin, check=1).stderr
    projector("run", "--once", "-d", quarantined.url)

    assert quarantined.contents("A-1") == ["mended", "mended"]


def test_an_event_of_a_session_that_was_never_created_says_how_to_create_it(
    database: Database,
) -> None:
    database.appended("mine", "early")
    projector("run", "--once", "-d", database.url, check=1)
    command = ["quarantine", "resubmit", "1", "-d", database.url]

    advised = projector(*command, check=1).stderr
    projector("session", "queue", "--session", "mine", "-p", "P", "first", "-d", database.url)
    projector(*command)

    assert "`projector session queue --session mine -p PROJECT MESSAGE -d" in advised
    assert "then `projector quarantine resubmit 1 -d" in advised
    projector("run", "--once", "-d", database.url)
    assert database.contents("mine") == ["first", "early"]


def test_the_session_id_of_the_fixed_event_moves_it_to_another_session(database: Database) -> None:
    database.created("right")
    database.appended("wrong", "x")
    projector("run", "--once", "-d", database.url)
    fixed = event("session_append", {"messages": [{"content": "x"}]}, sessionId="right")

    projector("quarantine", "resubmit", "2", "-m", json.dumps(fixed), "-d", database.url)

    projector("run", "--once", "-d", database.url)
    assert database.contents("right") == ["x"]


def test_a_mended_event_of_nearly_our_type_says_what_was_meant(quarantined: Database) -> None:
    typo = json.dumps(event("session_apend", {"messages": [{"content": "x"}]}))

    refused = projector(
        "quarantine", "resubmit", "1", "-m", typo, "-d", quarantined.url, check=1
    ).stderr

    assert "did you mean session_append?" in refused


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


@pytest.fixture
def many(database: Database) -> Database:
    """Two sessions with appends before their creation (1-4), unreadable events (5-6), and a good
    one (7)."""
    for session in ("A-1", "A-1", "B-1", "B-1"):
        database.appended(session, "early")
    database.insert("A-1", CUT_SHORT)
    database.insert("C-1", b"\xc1", created_at=2 * T0)
    database.created("A-1")
    projector("run", "--once", "-d", database.url, check=1)
    return database


def listed(database: Database, *options: str) -> list[int]:
    said = projector("quarantine", "list", "--json", *options, "-d", database.url).stdout
    return sorted({row["seq"] for row in json.loads(said)})


def test_the_list_is_of_what_is_asked_for(many: Database) -> None:
    assert listed(many) == [1, 2, 3, 4, 5, 6]
    assert listed(many, "--session", "B-1") == [3, 4]
    assert listed(many, "--reason", "MessagePack") == [5, 6]
    assert listed(many, "--type", "session_append") == [1, 2, 3, 4]
    assert listed(many, "--since", "2070-01-01") == [6]
    assert listed(many, "--projection", "sessions", "--limit", "2") == [1, 2]
    assert listed(many, "--projection", "absent") == []
    assert (
        "is no time"
        in projector("quarantine", "list", "--since", "3", "-d", many.url, check=2).stderr
    )


def test_an_event_has_one_line_where_all_projections_say_the_same(many: Database) -> None:
    table = projector("quarantine", "list", "-d", many.url).stdout.splitlines()
    summary = projector("quarantine", "list", "--summary", "-d", many.url).stdout.splitlines()

    assert (len(table), len(summary)) == (1 + 6, 1 + 3)
    assert all("session_index, sessions" in line for line in [*table[1:], *summary[1:]])


def test_a_summary_has_a_line_for_each_reason(many: Database) -> None:
    said = projector("quarantine", "list", "--summary", "--json", "-d", many.url).stdout
    found = [one for one in json.loads(said) if one["projection"] == "sessions"]
    assert [(one["events"], one["first"], one["last"]) for one in found] == [
        (4, 1, 4),
        (1, 5, 5),
        (1, 6, 6),
    ]
    assert "byte 0 is 0xc1" in projector("quarantine", "list", "--summary", "-d", many.url).stdout


def test_many_are_dismissed_at_once(many: Database) -> None:
    dismiss = ["quarantine", "dismiss", "--note", "known", "-d", many.url]
    tried = projector(*dismiss, "--reason", "MessagePack", "--dry-run").stdout
    assert tried == "would dismiss event 5\nwould dismiss event 6\n"
    assert alerts(many) == [6, 6]
    projector(*dismiss, "--reason", "MessagePack")
    assert alerts(many) == [4, 4]
    for neither_or_both in ([], ["1", "--reason", "MessagePack"], ["1", "--all"]):
        assert "which events?" in projector(*dismiss, *neither_or_both, check=2).stderr
    assert "not in quarantine" in projector(*dismiss, "7", "--dry-run", check=1).stdout
    projector(*dismiss, "1", "3")
    assert alerts(many) == [2, 2]
    assert projector(*dismiss, "--all").stdout == "dismissed event 2\ndismissed event 4\n"
    assert alerts(many) == [0, 0]


def test_many_are_resubmitted_at_once_and_those_that_cannot_be_are_said(many: Database) -> None:
    resubmit = ["quarantine", "resubmit", "-d", many.url]
    tried = projector(*resubmit, "--all", "--dry-run", check=1)
    assert tried.stdout.count("would append event") == 2
    assert many.log()[-1][0] == 7

    done = projector(*resubmit, "--all", check=1)

    assert "appended event 1 again as 8\nappended event 2 again as 9\n" in done.stdout
    assert "event 5: " in done.stdout
    assert "4 of 6 events could not be resubmitted, 2 could" in done.stderr
    assert listed(many) == [1, 2, 3, 4, 5, 6]
    projector("run", "--once", "-d", many.url)
    assert many.contents("A-1") == ["early", "early"]
    assert alerts(many) == [4, 4]


def test_what_was_done_is_told_as_json(many: Database) -> None:
    def told(command: str, *arguments: str, code: int = 0) -> list[Any]:
        done = projector("quarantine", command, *arguments, "--json", "-d", many.url, check=code)
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert told("resubmit", "1", "--dry-run") == [{"seq": 1, "would": "resubmit"}]
    assert told("resubmit", "1") == [{"seq": 1, "new_seq": 8}]
    done = told("resubmit", "2", "5", code=1)
    assert (done[0], done[1].keys()) == ({"seq": 2, "new_seq": 9}, {"seq", "error"})
    assert told("dismiss", "3", "--note", "known") == [{"seq": 3, "dismissed": "known"}]


@pytest.mark.once
def test_what_nobody_has_dismissed_is_told_by_doctor_and_health(many: Database) -> None:
    told = projector("doctor", "-d", many.url).stdout
    assert "nobody has dismissed them: 6 of session_index, 6 of sessions" in told
    with daemon(many.url) as running:
        running.wait_for("started")
        assert "in quarantine: 6" in projector("health", "-d", many.url).stdout
        projector("quarantine", "dismiss", "--all", "--note", "known", "-d", many.url)
        assert "in quarantine" not in projector("health", "-d", many.url).stdout
    assert "nothing that nobody has dismissed" in projector("doctor", "-d", many.url).stdout
