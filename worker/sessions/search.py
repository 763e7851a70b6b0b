"""Searching what people and agents said, over all sessions."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from math import log1p
from typing import Final, Literal

import msgspec

from session_projector.projections import SEARCH
from session_projector.projections.event import is_utf8
from session_projector.projections.search import BETWEEN, BREAK, broken
from session_projector.worker import registry
from session_projector.worker.errors import CheckFailed
from session_projector.worker.sessions.timeline import SESSIONS
from session_projector.worker.storage.port import ANY_POSITION, Match, Phrase, Store

LIMIT: Final = 50
BEST_OF: Final = 1000
"""The newest messages, of which the best are found."""
MOST_ROWS: Final = 100_000
"""Where not all that was said with some words is asked for: the newest events that have them, among
which is looked."""
MOST_PHRASES: Final = 32
MOST_CHARACTERS: Final = 2000
"""What follows in a question does not count."""
_MOST_HITS: Final = 1000
"""Of one phrase in a message: what follows is not marked."""
SNIPPET: Final = 160
"""Characters, about."""
BEFORE: Final = 50
"""Of these, so many before the first word that was found."""
ROLES: Final = {"user": ("user", "human"), "assistant": ("assistant", "model")}
"""What messages call who said them."""
_PHRASE: Final = re.compile(r'"([^"]*)"(\*?)|([^\s"]+)')
_WORD: Final = re.compile(r"[^\W_]+")


class Piece(msgspec.Struct, frozen=True):
    """A piece of a text; `mark`: it is what was asked for."""

    text: str
    mark: bool


class Result(msgspec.Struct, frozen=True):
    """A message, the `n`th of its session from 1, which the event at `seq` brought; `time` is the
    event's, in milliseconds. `project` and `title` are those of the session, None while
    `session_index` does not have it."""

    session: str
    project: str | None
    title: str | None
    n: int
    seq: int
    role: str
    time: int
    snippet: list[Piece]


class Found(msgspec.Struct, frozen=True):
    """What was found; `more`: there is more of it. So many events at the end of the log are not
    searched yet: `behind`. `partly`: there are more than `MOST_ROWS` events with these words, and
    only the newest were looked at."""

    results: list[Result]
    more: bool
    behind: int
    partly: bool = False


class SearchUnavailable(CheckFailed):
    """Search is switched off in this database, or is being built."""


class SearchOff(SearchUnavailable):
    """Search is switched off in this database."""


def search(
    store: Store,
    words: str,
    *,
    project: str | None = None,
    role: Literal["user", "assistant"] | None = None,
    since_ms: int | None = None,
    order: Literal["newest", "best"] = "newest",
    limit: int = LIMIT,
) -> Found:
    """The messages that have all of some words, each as a whole and in any case.

    Words in double quotes follow each other, and of `word*` it is the beginning; nothing else has a
    meaning. `best` are those among the newest that have them most often, for their length. Raises
    `SearchUnavailable`.
    """
    behind = _require(store)
    asked = phrases(words) if project is None or is_utf8(project) else []
    patterns = [_pattern(phrase) for phrase in asked]
    some = asked and (project is not None or role is not None or since_ms is not None)
    left_out = store.words.reach(asked, MOST_ROWS + 1) if some else 0
    said = _said(
        store, asked, patterns, left_out + 1, project=project, role=role, since_ms=since_ms
    )
    if order == "best":
        said = iter(sorted(islice(said, BEST_OF), key=lambda one: one.score, reverse=True))
    results = [*islice(_results(store, said), limit + 1)]
    more = len(results) > limit
    return Found(results[:limit], more, behind, partly=left_out > 0 and not more)


def phrases(words: str) -> list[Phrase]:
    """What is asked for by some words."""
    found = []
    for match in _PHRASE.finditer(words[:MOST_CHARACTERS]):
        text, is_prefix = (
            match[3] or match[1] or "",
            bool(match[2]) or (match[3] or "").endswith("*"),
        )
        if _WORD.search(text):
            found.append(Phrase(broken(text), is_prefix))
    return found[:MOST_PHRASES]


def _require(store: Store) -> int:
    """How many events are not searched yet; raises `SearchUnavailable`."""
    stored = store.checkpoints.get(SEARCH.name)
    if stored is None or not registry.searches(store):
        raise SearchOff(
            f"search is switched off in {store.name}",
            "switch it on: end the daemon, where one is alive, and start `projector run --with"
            " search`; later `projector run` alone",
        )
    if stored.version != SEARCH.version or SEARCH.name in store.checkpoints.reports():
        raise SearchUnavailable(
            f"search is being built in {store.name}, or failed",
            "see how far it is, or why: `projector status`",
        )
    return store.log.count(after=stored.complete)


class _Said(msgspec.Struct, frozen=True):
    """A message that has all words, and where in its text they are; `index` counts those of its
    event from 0."""

    match: Match
    index: int
    role: str
    text: str
    spans: list[tuple[int, int]]

    @property
    def score(self) -> float:
        return len(self.spans) / log1p(len(self.text) + 1)


def _said(
    store: Store,
    asked: Sequence[Phrase],
    patterns: Sequence[re.Pattern[str]],
    start: int,
    *,
    project: str | None,
    role: str | None,
    since_ms: int | None,
) -> Iterator[_Said]:
    """The messages that have all words, those that were replaced too, newest first."""
    roles = ROLES[role] if role else ()
    below = ANY_POSITION
    while asked:
        page = store.words.find(
            asked,
            below=below,
            start=start,
            project=project,
            roles=roles,
            since_ms=since_ms,
            unless_quarantined=SESSIONS.name,
        )
        for match in page:
            yield from _messages(match, patterns, roles)
        if not page or page[-1].seq >= below:  # as anybody may write any row
            return
        below = page[-1].seq


def _before(store: Store, session: str) -> dict[int, int]:
    """How many messages of a session stand before those of each event, by position; those that were
    replaced are no longer there."""
    found: dict[int, int] = {}
    number = 0
    for seq, messages, replaces in store.words.counts(session, unless_quarantined=SESSIONS.name):
        if replaces:
            found, number = {}, 0
        found[seq] = number
        number += messages
    return found


def _messages(
    match: Match, patterns: Sequence[re.Pattern[str]], roles: Sequence[str]
) -> Iterator[_Said]:
    """Those messages of an event that have all of it, the last one first. The engine knows more
    characters than Python may, so of an event with one message its word counts."""
    texts, said_by = match.text.split(BETWEEN), match.roles.split(BETWEEN)
    for index, (text, role) in reversed([*enumerate(zip(texts, said_by, strict=False))]):
        hits = [[*islice(_spans(pattern, text), _MOST_HITS)] for pattern in patterns]
        if (roles and role not in roles) or (len(texts) > 1 and not all(hits)):
            continue
        yield _Said(match, index, role, text, sorted(chain(*hits)))


def _spans(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    return (hit.span() for hit in pattern.finditer(text))


def _results(store: Store, found: Iterator[_Said]) -> Iterator[Result]:
    """Those of some messages that are still in their session, with their place there."""
    sessions: dict[str, dict[int, int]] = {}
    for said in found:
        match = said.match
        if match.session not in sessions:
            sessions[match.session] = _before(store, match.session)
        if (before := sessions[match.session].get(match.seq)) is not None:
            yield Result(
                session=match.session,
                project=match.project,
                title=match.title,
                n=before + said.index + 1,
                seq=match.seq,
                role=said.role,
                time=match.time,
                snippet=_snippet(said.text, said.spans),
            )


def _pattern(phrase: Phrase) -> re.Pattern[str]:
    words = r"[\W_]+".join(map(re.escape, _WORD.findall(phrase.text)))
    end = "" if phrase.is_prefix else r"(?![^\W_])"
    return re.compile(rf"(?<![^\W_]){words}{end}", re.IGNORECASE)


def _snippet(text: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    """What stands around the first word that was found, in one line."""
    start = max(0, (spans[0][0] if spans else 0) - BEFORE)
    if start:  # not in the middle of a word
        start = text.find(" ", start, start + BEFORE) + 1 or start
    end = start + SNIPPET
    pieces = [Piece("…", False)] if start else []
    at = start
    for first, last in spans:
        if at <= first < end:
            pieces += [Piece(text[at:first], False), Piece(text[first : min(last, end)], True)]
            at = min(last, end)
    pieces.append(Piece(text[at:end] + ("…" if end < len(text) else ""), False))
    shown = (Piece(_in_line(piece.text), piece.mark) for piece in pieces)
    return [piece for piece in shown if piece.text]


def _in_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace(BREAK, ""))
