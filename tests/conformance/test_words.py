"""The rows of `search` by their words."""

from typing import Any

import pytest
from conformance.engines import Engine, Outsider
from support.laws import T0, append, keep

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.projections.fold import Rejected
from session_projector.projections.search import BETWEEN, broken, key_of
from session_projector.worker.errors import InterventionRequired
from session_projector.worker.storage.port import ANY_POSITION, Change, Phrase, Store

SESSIONS, INDEX = BUILT_IN


def row(seq: int, text: str, **fields: Any) -> tuple[Any, ...]:
    plain = {
        "event_key": key_of(seq),
        "seq": seq,
        "session_id": "A-1",
        "time": T0 + seq,
        "messages": 1,
        "replaces": 0,
        "roles": "user",
        "text": broken(text),
    }
    return tuple((plain | fields).values())


def find(store: Store, *asked: str | Phrase, **how: Any) -> list[int]:
    phrases = [one if isinstance(one, Phrase) else Phrase(broken(one)) for one in asked]
    how = {"below": ANY_POSITION, "unless_quarantined": "sessions", **how}
    return [match.seq for match in store.words.find(phrases, **how)]


@pytest.fixture(autouse=True)
def index(store: Store) -> None:
    store.views.prepare(INDEX)


def test_rows_are_found_by_all_of_their_words_newest_first(store: Store) -> None:
    keep(store, SEARCH, row(9, "the red fox"), row(10, "The FOX, red"), row(11, "a red hen"))

    assert find(store, "red") == [11, 10, 9]
    assert find(store, "fox", "red") == [10, 9]
    assert find(store, "red fox") == [9]
    assert find(store, "fo") == []
    assert find(store, Phrase("red fo", True)) == [9]
    assert find(store) == []


@pytest.mark.parametrize("every", [1, 12, 70, 399])
def test_page_by_page_all_rows_are_found_however_many_have_a_word(store: Store, every: int) -> None:
    """An engine may look in other ways for what many rows have."""
    keep(store, SEARCH, *(row(n, "red" if n % every == 0 else "blue") for n in range(1, 400)))

    found: list[int] = []
    while some := find(store, "red", below=min(found, default=400), start=3):
        found += some

    assert found == [n for n in range(399, 2, -1) if n % every == 0]


@pytest.mark.parametrize(
    ("text", "asked", "found"),
    [
        ("see src/api/user_name.py, line 12", "user_name.py", True),
        ("see src/api/user_name.py, line 12", "name", True),
        ("see src/api/user_name.py, line 12", "api user", True),
        ("mail to bob@example.org now", "example", True),
        ("https://example.org/a/b?c=d#e", "b c", True),
        ("<div class='wide'>&amp;</div>", "wide", True),
        ("<div class='wide'>&amp;</div>", "div", True),
        ("-5 +7 1e5 3.14", "5 7 1e5 3 14", True),
        ("abc123 123abc", "123abc", True),
        ("“quoted” … — words", "quoted words", True),
        ("don't", "don't", True),
        ("don't", "don", True),
        ("ÀÉ grün Straße", "grün", True),
        ("über", "uber", False),
        ("今日は東京都で会議", "東京", True),
        ("今日は東京都で会議", "京東", False),
        ("emoji 🎉 party", "emoji party", True),
        ("a\nb\tc\r\nd", "b c d", True),
    ],
)
def test_words_are_letters_and_digits_whatever_stands_between(
    store: Store, text: str, asked: str, found: bool
) -> None:
    keep(store, SEARCH, row(1, text))

    assert find(store, asked) == [1] * found


ODD = [
    *(
        '"',
        '""',
        "'",
        "''",
        "\\",
        "\\'",
        "*",
        "a*b",
        "(",
        ")",
        "a AND",
        "OR",
        "NOT a",
        "NEAR(a b)",
    ),
    *(
        "text:",
        "-a",
        "^a",
        "a:*",
        "a & b | !c <-> d",
        ":*",
        "{a}",
        "a\0b",
        "%s",
        ":asked",
        "?",
        "",
    ),
    *("'a' | 'b'", "\\x00", "\ud800", "x" * 5000, "--", ";", "a" + BETWEEN),
]


@pytest.mark.parametrize("is_prefix", [False, True])
def test_nothing_that_is_asked_is_an_error(store: Store, is_prefix: bool) -> None:
    keep(store, SEARCH, row(1, "a b c or not"), row(2, "nothing else"))

    for asked in ODD:
        assert find(store, Phrase(asked, is_prefix), "zebra") == [], asked
        assert set(find(store, Phrase(asked, is_prefix))) <= {1, 2}, asked


def test_a_phrase_without_any_word_does_not_count(store: Store) -> None:
    keep(store, SEARCH, row(1, "one"))

    assert find(store, "one", "--") == [1]
    assert find(store, "--") == []


def test_a_page_goes_on_below_a_position(store: Store) -> None:
    keep(store, SEARCH, *[row(seq, "word") for seq in range(1, 201)])

    found: list[int] = []
    while page := find(store, "word", below=found[-1] if found else ANY_POSITION):
        found += page

    assert found == [*range(200, 0, -1)]
    assert find(store, "word", start=199) == [200, 199]


def test_how_far_back_the_newest_rows_with_some_words_reach(store: Store, engine: Engine) -> None:
    rows = [row(seq, "word" if seq % 2 else "other") for seq in range(1, 12)]
    keep(store, SEARCH, *rows)

    asked = [Phrase("word")]
    wanted = {"sqlite": [11, 9, 1, 0], "postgresql": [0, 0, 0, 0]}  # which begins with a project
    assert [store.words.reach(asked, rows) for rows in (1, 2, 6, 7)] == wanted[engine.name]
    assert store.words.reach([*asked, Phrase("other")], 1) == 0


def test_what_else_is_asked_of_a_row_and_its_session(store: Store) -> None:
    entry = ("A-1", "web", "ready", "The title", 1, "user", T0, T0, "e1", 1)
    keep(store, INDEX, entry, ("A-2", "api", *entry[2:]))
    rows = [
        row(1, "word"),
        row(2, "word", session_id="A-2", roles="assistant"),
        row(3, "word", session_id="A-3", roles=f"tool{BETWEEN}model"),
    ]
    keep(store, SEARCH, *rows)

    assert find(store, "word", project="api") == [2]
    assert find(store, "word", roles=["assistant", "model"]) == [3, 2]
    assert find(store, "word", since_ms=T0 + 2) == [3, 2]
    (match,) = store.words.find(
        [Phrase("word")], below=2, project="web", unless_quarantined="sessions"
    )
    assert (match.session, match.time, match.roles, match.text) == ("A-1", T0 + 1, "user", "word")
    assert (match.project, match.title) == ("web", "The title")


def test_events_in_the_quarantine_of_a_projection_are_not_found(store: Store) -> None:
    first, second = append(store, "e1", "e2")
    keep(store, SEARCH, row(first, "word"), row(second, "word"))
    before = store.views.prepare(SESSIONS)
    bad = [Rejected(first, "bad")]
    store.commit([Change(SESSIONS.table, before, before, quarantined=bad)])

    assert find(store, "word") == [second]
    assert find(store, "word", unless_quarantined="session_index") == [second, first]
    counts = store.words.counts("A-1", unless_quarantined="sessions")
    assert counts == [(second, 1, False)]


def test_the_messages_of_a_session_are_counted_by_position(store: Store) -> None:
    rows = [
        row(10, "", messages=3),
        row(9, ""),
        row(11, "", replaces=1),
        row(8, "", session_id="B"),
    ]
    keep(store, SEARCH, *rows)

    counts = store.words.counts("A-1", unless_quarantined="sessions")

    assert counts == [(9, 1, False), (10, 3, False), (11, 1, True)]


def test_rows_that_are_written_again_or_deleted_are_found_as_they_are(store: Store) -> None:
    keep(store, SEARCH, row(1, "old"), row(2, "old"), row(3, "old"))
    before = keep(store, SEARCH, row(1, "new"), row(2, "old", time=5))
    store.commit([Change(SEARCH.table, before, before, removed=[key_of(3)])])

    assert find(store, "old") == [2]
    assert find(store, "new") == [1]
    store.words.check()


def test_nothing_is_left_of_it_when_it_is_dropped(store: Store) -> None:
    keep(store, SEARCH, row(1, "word"))
    store.views.drop(SEARCH.name)
    keep(store, SEARCH, row(2, "word"))

    assert find(store, "word") == [2]
    store.words.check()


@pytest.mark.parametrize(
    "text",
    [
        " ".join(str(number) for number in range(45_000)),
        "-".join("ab"[n % 2] + str(n) for n in range(40_000)),
        "x" * 250_000,
        " ".join(f"a.b{number}/c" for number in range(25_000)),
        "é " * 80_000,
        "東京" * 40_000,
        "\t \n" * 80_000,
    ],
    ids=["numbers", "hyphens", "long", "addresses", "accents", "characters", "spaces"],
)
def test_a_row_that_is_as_long_as_any_can_be_kept(store: Store, text: str) -> None:
    keep(store, SEARCH, row(1, f"first {text}"))

    assert find(store, "first") == [1]


def test_an_index_that_is_gone_is_told_of_and_made_again(
    store: Store, other: Store, outside: Outsider, engine: Engine
) -> None:
    keep(store, SEARCH, row(1, "word"))
    gone = {
        "sqlite": "DROP TRIGGER search_words_insert",
        "postgresql": "DROP INDEX idx_search_words",
    }
    outside.sql(gone[engine.name])

    with pytest.raises(InterventionRequired):
        other.words.check()
    store.views.prepare(SEARCH)

    other.words.check()
