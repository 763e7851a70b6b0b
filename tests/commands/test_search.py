"""`projector search`, and that what it finds is what the log says, whatever happens to the rows."""

import json
import re
from typing import Any

import msgpack
import pytest
from support import T0, Database, daemon, event, logs, projector
from support.folding import catch_up, differences, examine, repair, target

from session_projector.projections import BUILT_IN, SEARCH
from session_projector.projections.search import Search, key_of
from session_projector.worker.sessions import search as searching
from session_projector.worker.sessions.search import Found, Result, SearchUnavailable, search

WITH_SEARCH = (*BUILT_IN, SEARCH)


def run(database: Database, *arguments: str, code: int = 0) -> Any:
    return projector("search", *arguments, "-d", database.url, check=code)


def found(database: Database, words: str, **how: Any) -> Found:
    with target(database.url).open() as store:
        return search(store, words, **how)


def places(database: Database, words: str, **how: Any) -> list[tuple[str, int]]:
    return [(result.session, result.n) for result in found(database, words, **how).results]


def marked(result: Result) -> str:
    return "".join(f"[{piece.text}]" if piece.mark else piece.text for piece in result.snippet)


def appended(database: Database, session_id: str, *messages: Any, **fields: Any) -> int:
    data = {"messages": [*messages]}
    return database.insert(f"session:{session_id}", event("session_append", data, **fields))


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


@pytest.fixture
def talk(database: Database) -> Database:
    """Two sessions, folded."""
    database.created("A-1", "fix the login page", project="web")
    appended(database, "A-1", said("assistant", "the login is fixed"), said("user", "thanks"))
    database.created("A-2", "the login of the api", project="api")
    appended(database, "A-2", said("model", "login, login, login"), timestamp=T0 + 60_000)
    catch_up(database, WITH_SEARCH)
    return database


@pytest.mark.sqlite  # a server begins with the project's sessions
def test_what_is_looked_at_is_bounded_and_that_is_said(
    talk: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not found(talk, "login", project="web").partly
    monkeypatch.setattr(searching, "MOST_ROWS", 1)
    assert places(talk, "login", project="web") == []
    assert found(talk, "login", project="web").partly
    assert places(talk, "login", project="api") == [("A-2", 2)]
    assert not found(talk, "login").partly
    assert len(places(talk, "login")) == 4
    assert not found(talk, "thanks", project="web").partly


# Switched on and off


def test_it_is_off_until_it_is_asked_for_and_goes_on_then(database: Database) -> None:
    database.created("A-1", "one word")
    projector("run", "--once", "-d", database.url)

    off = run(database, "word", code=1)
    assert "switched off" in off.stderr
    assert f"`projector run --with search -d {database.named}`" in off.stderr

    projector("run", "--once", "--with", "search", "-d", database.url)
    assert "**word**" in run(database, "word").stdout

    database.appended("A-1", "another word")
    left = projector("run", "--once", "--without", "search", "-d", database.url)
    assert "projection_without_code" not in left.stderr
    behind = run(database, "word")
    assert behind.stdout.count("**word**") == 1
    assert "not searched yet: 1 event;" in behind.stderr

    projector("run", "--once", "-d", database.url)
    assert run(database, "word").stdout.count("**word**") == 2

    for command in ("verify", "replay"):
        said = projector(command, "--session", "A-1", "-d", database.url)
        assert said.stderr == ""
    dropped = projector("projection", "drop", "search", "--yes", "-d", database.url)
    assert f"search is off now, until `projector run --with search -d {database.named}`" in (
        dropped.stdout
    )
    projector("run", "--once", "-d", database.url)
    assert "switched off" in run(database, "word", code=1).stderr
    listed = projector("projection", "list", "--json", "-d", database.url).stdout
    assert [one["name"] for one in json.loads(listed)] == ["sessions", "session_index"]


@pytest.mark.sqlite  # on a server one that runs with it leads it beside the other
def test_beside_a_daemon_without_it_the_hint_ends_that_first(database: Database) -> None:
    database.created("A-1", "one word")
    options = ("--with", "search")
    with daemon(database.url) as running:
        running.wait_until_at(1)
        off = run(database, "word", code=1).stderr
        with daemon(database.url, options=options) as second:
            assert "--with" in second.wait_for("standing_by")["hint"]
        still_off = run(database, "word", code=1).stderr
        projector("run", "--once", *options, "-d", database.url)
        on = run(database, "word").stdout

    end = f"`kill {running.process.pid}`, then `projector run --with search -d {database.named}`"
    assert end in off
    assert off == still_off
    assert "**word**" in on
    with daemon(database.url) as running:
        running.wait_until_at(database.appended("A-1", "another word"))
        assert len(places(database, "word")) == 2


def test_both_at_once_are_refused(database: Database) -> None:
    options = ("--with", "search", "--without", "search")
    assert "contradict" in projector("run", *options, "-d", database.url, check=2).stderr


def test_a_daemon_makes_messages_found_as_they_come(database: Database) -> None:
    database.created("A-1", "the first word")
    with daemon(database.url, options=["--with", "search"]) as running:
        running.wait_until_at(1)
        running.wait_until_at(database.appended("A-1", "the second word"))

        assert places(database, "word") == [("A-1", 2), ("A-1", 1)]


def test_one_that_knows_nothing_of_it_leaves_it_as_it_is(talk: Database) -> None:
    """As one of an older version, beside it or before it."""
    talk.appended("A-1", "a later login")
    catch_up(talk)

    assert found(talk, "later").results == []
    assert found(talk, "login").behind == 1

    catch_up(talk, WITH_SEARCH)
    assert places(talk, "later") == [("A-1", 4)]


def test_while_it_is_rebuilt_it_says_so(talk: Database) -> None:
    talk.sql("UPDATE checkpoint SET version = -1 WHERE name = 'search'")

    with pytest.raises(SearchUnavailable, match="being built"):
        found(talk, "login")
    projector("run", "--once", "-d", talk.url)
    assert places(talk, "thanks") == [("A-1", 3)]


def test_a_projection_of_that_name_of_another_package_is_not_taken_for_it(
    database: Database,
) -> None:
    database.created("A-1", "word")
    table = type(SEARCH.table)("finds", {"k": "TEXT"}, "k")
    other = type("Search", (Search,), {"table": table, "per_event": False})
    catch_up(database, BUILT_IN)
    with target(database.url).open(writable=True) as store:
        store.views.prepare(other())

    assert "switched off" in run(database, "word", code=1).stderr


# What is found


def test_a_message_is_found_with_its_place_newest_first(talk: Database) -> None:
    results = found(talk, "login").results

    assert [(one.session, one.n, one.seq, one.role, one.time) for one in results] == [
        ("A-2", 2, 4, "model", T0 + 60_000),
        ("A-2", 1, 3, "user", T0),
        ("A-1", 2, 2, "assistant", T0),
        ("A-1", 1, 1, "user", T0),
    ]
    assert [(one.project, one.title) for one in results[1:3]] == [
        ("api", "the login of the api"),
        ("web", "fix the login page"),
    ]
    assert [marked(one) for one in results[:2]] == [
        "[login], [login], [login]",
        "the [login] of the api",
    ]


def test_only_some_are_asked_for(talk: Database) -> None:
    assert places(talk, "login", project="web") == [("A-1", 2), ("A-1", 1)]
    assert places(talk, "login", project="\udcff") == []
    assert places(talk, "login", role="user") == [("A-2", 1), ("A-1", 1)]
    assert places(talk, "login", role="assistant") == [("A-2", 2), ("A-1", 2)]
    assert places(talk, "login", since_ms=T0 + 1) == [("A-2", 2)]
    assert places(talk, "log* fix*") == [("A-1", 2), ("A-1", 1)]
    assert places(talk, '"login page"') == [("A-1", 1)]
    assert places(talk, "login thanks") == []  # one event has both, no message


def test_the_best_come_first_where_that_is_asked_for(talk: Database) -> None:
    assert places(talk, "login", order="best")[0] == ("A-2", 2)
    assert {*places(talk, "login", order="best")} == {*places(talk, "login")}


def test_it_says_whether_there_are_more(talk: Database) -> None:
    for limit, more in ((3, True), (4, False)):
        some = found(talk, "login", limit=limit)
        assert (len(some.results), some.more) == (limit, more)


def test_messages_that_were_replaced_are_not_found_and_do_not_count(talk: Database) -> None:
    messages = [said("user", "hello"), said("user", "the new login")]
    talk.insert("A-1", event("session_updated", {"messages": messages}))
    catch_up(talk, WITH_SEARCH)

    assert places(talk, "login", project="web") == [("A-1", 2)]


def test_events_in_quarantine_are_not_found_and_do_not_count(talk: Database) -> None:
    talk.appended("never-created", "login")
    talk.created("A-1", "login again")  # created twice
    talk.insert("A-1", b"\xc1 login")
    talk.appended("A-1", "the last login")
    catch_up(talk, WITH_SEARCH)

    assert places(talk, "login")[:2] == [("A-1", 4), ("A-2", 2)]
    assert len(places(talk, "login")) == 5


def test_a_long_message_is_shown_around_the_word(database: Database) -> None:
    text = f"{'before ' * 100}NEEDLE{' after' * 100}"
    database.created("A-1", text)
    catch_up(database, WITH_SEARCH)

    (result,) = found(database, "needle").results

    shown = marked(result)
    assert re.fullmatch(r"…(before )+\[NEEDLE\]( after)+( \w*)?…", shown)
    assert len(shown) < 200


def test_scripts_without_spaces_are_found_by_any_part(database: Database) -> None:
    database.created("A-1", "今日は東京都で会議があります")
    catch_up(database, WITH_SEARCH)

    (result,) = found(database, "東京都").results

    assert marked(result) == "今日は[東京都]で会議があります"
    assert places(database, "京東") == []


NASTY = ['"', "'", "a AND", "NEAR(", "*", "--", "\\", "text:login", "(login", "NOT", "%", "\x00"]


@pytest.mark.parametrize("words", NASTY)
def test_no_words_are_an_error(talk: Database, words: str) -> None:
    found(talk, words)


# The command


def test_the_command_prints_a_table_or_json(talk: Database) -> None:
    table = run(talk, "login", "--role", "assistant", "-p", "web").stdout
    as_json = json.loads(run(talk, "login", "--since", "2023-11-14T22:14", "--json").stdout)

    header, line = table.strip().splitlines()
    assert header.split() == ["session", "n", "role", "time", "text"]
    assert line.startswith("A-1")
    assert line.endswith("the **login** is fixed")
    (result,) = as_json.pop("results")
    assert as_json == {"more": False, "behind": 0, "partly": False}
    assert result["snippet"][0] == {"text": "login", "mark": True}
    assert {*result} == {
        *("session_id", "project", "title", "n", "seq", "role", "time", "snippet"),
    }


def test_the_command_finds_nothing_and_says_what_is_wrong(talk: Database) -> None:
    none = run(talk, "zebra")
    assert (none.stdout, none.stderr) == ("", "no message matches\n")
    assert "no time" in run(talk, "login", "--since", "5", code=2).stderr
    assert run(talk, code=2).stdout == ""


def test_what_messages_say_does_nothing_to_a_terminal(database: Database) -> None:
    database.created("A-1", "word \x1b[31m red \u202e bidi")
    catch_up(database, WITH_SEARCH)

    assert "\x1b" not in run(database, "word").stdout


# The log is what counts


@logs.examples(30, on_server=8, log=logs.logs, sizes=logs.batchings)
def test_exactly_the_messages_of_all_views_are_found(
    database: Database, log: list[Any], sizes: list[int]
) -> None:
    database = database.renewed()
    for batch in logs.batches(log, sizes):
        for key, data, created_at in batch:
            database.insert(key, data, created_at=created_at)
        catch_up(database, WITH_SEARCH)
    wanted: dict[str, set[tuple[str, int]]] = {}
    for row in database.views().values():
        view = msgpack.unpackb(row[2], strict_map_key=False)
        for number, message in enumerate(view["messages"], 1):
            for word in re.findall(r"[a-zA-Z0-9]+", message["content"]):
                if message["content"].isascii():
                    wanted.setdefault(word.lower(), set()).add((view["id"], number))

    for word, messages in wanted.items():
        assert messages <= {*places(database, word, limit=1000)}
    assert differences(database, WITH_SEARCH) == {}
    assert repair(database, WITH_SEARCH) == {}


CHANGES = {
    "UPDATE search SET text = 'zebra' WHERE seq = 1": {"view stale": 1},
    "UPDATE search SET messages = 5 WHERE seq = 1": {"view stale": 1},
    "DELETE FROM search WHERE seq = 2": {"view missing": 1},
    "UPDATE search SET event_key = 'b99', seq = 99 WHERE seq = 3": {
        "view missing": 1,
        "view ghost": 1,
    },
    "INSERT INTO search VALUES ('zzz', 1, 'A-1', 1, 1, 0, 'user', 'zebra login')": {
        "view ghost": 1
    },
    "INSERT INTO search VALUES ('', NULL, NULL, NULL, NULL, NULL, NULL, NULL)": {"view ghost": 1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_somebody_changed_are_reported_and_fixed_and_so_is_what_is_found(
    talk: Database, change: str
) -> None:
    before = found(talk, "login")
    talk.sql(change)

    assert differences(talk, WITH_SEARCH) == CHANGES[change]
    assert repair(talk, WITH_SEARCH) == CHANGES[change]

    assert differences(talk, WITH_SEARCH) == {}
    assert found(talk, "login") == before
    assert found(talk, "zebra").results == []
    assert [one for one in examine(talk.url) if one.check == "search" and one.level != "ok"] == []


def test_rows_that_anybody_wrote_are_no_obstacle(talk: Database) -> None:
    for key in ("zz", "b98"):
        talk.sql(f"INSERT INTO search (event_key, text) VALUES ('{key}', 'login')")

    assert len(places(talk, "login")) == 4


def test_a_new_version_is_rebuilt_and_finds_the_same(talk: Database) -> None:
    def text(self: Any, view: Any, event: Any) -> Any:
        row = Search.fold(self, view, event)
        return (*row[:-1], row[-1].upper())

    newer = type("Newer", (Search,), {"version": 2, "fold": text})()
    catch_up(talk, (*BUILT_IN, newer))

    rows = talk.sql("SELECT text FROM search WHERE seq = 1")
    assert rows == [("FIX THE LOGIN PAGE",)]
    assert differences(talk, (*BUILT_IN, newer)) == {}
    talk.sql("UPDATE checkpoint SET version = 1 WHERE name = 'search'")
    catch_up(talk, WITH_SEARCH)
    assert differences(talk, WITH_SEARCH) == {"view stale": 4}


def test_verify_and_replay_know_it_where_it_is_on(talk: Database) -> None:
    talk.sql(f"DELETE FROM search WHERE event_key = '{key_of(2)}'")

    assert "search: 1 of 4 views differ" in projector("verify", "-d", talk.url, check=1).stdout
    projector("replay", "--projection", "search", "-d", talk.url)
    assert projector("verify", "-d", talk.url).stdout.count(": 0 of") == 3


@pytest.mark.once
def test_a_copy_is_searched_where_its_source_was(talk: Database) -> None:
    copy = talk.path.with_name("copy.db")
    projector("copy", talk.url, copy)

    assert places(Database(copy), "thanks") == [("A-1", 3)]


def test_a_log_that_was_restored_is_searched_as_it_is(talk: Database) -> None:
    backup = talk.another()
    with target(backup.url).open(writable=True) as store:
        store.views.prepare(SEARCH)
    backup.restore(talk)
    talk.appended("A-1", "a zebra")
    catch_up(talk, WITH_SEARCH)
    assert len(found(talk, "zebra").results) == 1

    talk.restore(backup)

    assert found(talk, "zebra").results == []
    assert len(found(talk, "login").results) == 4
