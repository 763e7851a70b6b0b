"""The table `search`: what people and agents said, one row for each event that has messages."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from session_projector.projections.event import (
    TEXT_PARTS,
    Event,
    Messages,
    MessagesAppended,
    SessionCreated,
    SessionUpdated,
)
from session_projector.projections.messagepack import fields, items, list_header, maps, scalar
from session_projector.projections.projection import Projection, Table
from session_projector.projections.scanner import FAILURES, is_list, is_map

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Of a message's text in UTF-8; what follows is not found."""
MAX_RESULT_BYTES: Final = 4 * 1024
"""Of what a tool returned: people look for what was said."""
MAX_EVENT_TEXT_BYTES: Final = 256 * 1024
"""Of all messages of an event: PostgreSQL indexes no text with 1 MiB of words."""
MAX_WORDS: Final = 120
"""Characters of the beginning of a message."""
BETWEEN: Final = "\x1e"
"""Between the texts of two messages, and between their roles."""
BREAK: Final = "\u200b"
"""A space of no width around each character of scripts that have no spaces between words, so that
each is a word to an index, and several of them are a phrase."""
# By code point, as what Python knows of characters grows with its version.
_UNSPACED: Final = re.compile(
    "[\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U00020000-\U0003ffff]"
)
_RESULT_ROLES: Final = ("tool", "function")
_RESULT_PARTS: Final = ("tool_result", "tool-result", "function_call_output")


class Search(Projection[tuple[Any, ...]]):
    """Keeps the text of each event's messages, which the engine indexes by words.

    It knows no session: whether one was ever created and how many messages it had before is asked
    when somebody searches.
    """

    name = "search"
    version = 1
    per_event = True
    table = Table(
        name="search",
        columns={
            "event_key": "TEXT",
            "seq": "INTEGER",
            "session_id": "TEXT",
            "time": "INTEGER",
            "messages": "INTEGER",
            "replaces": "INTEGER",
            "roles": "TEXT",
            "text": "TEXT",
        },
        key="event_key",
        indexes=("session_id, seq, messages, replaces",),
        words="text",
    )

    def key_of(self, event: Event) -> str | None:
        messages = _messages(event)
        if messages is None or not (messages.count or isinstance(event.body, SessionUpdated)):
            return None
        return key_of(event.seq)

    def position_of(self, key: str) -> int | None:
        return position_of(key)

    def fold(self, view: tuple[Any, ...] | None, event: Event) -> tuple[Any, ...]:
        del view  # one that is there comes of this event too
        messages = _messages(event) or Messages(0, b"")
        said = _read(messages)
        roles = BETWEEN.join(role for role, _ in said)
        text = BETWEEN.join(_within(_cut(text, MAX_MESSAGE_BYTES) for _, text in said))
        return (
            key_of(event.seq),
            event.seq,
            event.session_id,
            event.time,
            messages.count,
            int(isinstance(event.body, SessionUpdated)),
            roles,
            broken(text),
        )


def _messages(event: Event) -> Messages | None:
    body = event.body
    bodies = SessionCreated | MessagesAppended | SessionUpdated
    return body.messages if isinstance(body, bodies) else None


def first_words(event: Event, most: int = MAX_WORDS) -> str:
    """The beginning of the first message of an event, in one line; "" where it has or says none."""
    messages = _messages(event)
    if messages is None or not messages.count:
        return ""
    _, text = _said(bytes(items(list_header(messages.count) + messages.body)[0]))
    return " ".join(text[: 4 * most].split())[:most]


def broken(text: str) -> str:
    """A text with a `BREAK` after each character that is a word of its own, and before the first of
    several."""
    return text if text.isascii() else _UNSPACED.sub(rf"{BREAK}\g<0>{BREAK}", text)


def key_of(seq: int) -> str:
    """The key of an event's row: the bytes of keys have the order of positions, `a7` < `b12`."""
    digits = str(seq)
    return chr(96 + len(digits)) + digits


def position_of(key: str) -> int | None:
    """The position that a key has, None for what is no such key."""
    digits = key[1:]
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        return None
    return int(digits) if key_of(int(digits)) == key else None


class _Plain(msgspec.Struct, gc=False):
    """A message whose content is one text, as most are."""

    content: str
    role: str = ""


_decode_plain = msgspec.msgpack.Decoder(list[_Plain]).decode


def _read(messages: Messages) -> list[tuple[str, str]]:
    """The role of each message, and all that it says."""
    data = list_header(messages.count) + messages.body
    try:
        found = [(message.role, message.content) for message in _decode_plain(data)]
    except FAILURES:
        found = [_said(bytes(message)) for message in items(data)]
    return [
        (_cut(_clean(role), 100), _cut(text, MAX_RESULT_BYTES) if role in _RESULT_ROLES else text)
        for role, text in ((role, _clean(text)) for role, text in found)
    ]


def _said(message: bytes) -> tuple[str, str]:
    """The same of a message of any shape: content as a text or as parts, parts (of Gemini and of
    the AI SDK), or the output of a function."""
    role, kind, content, parts, output = fields(
        message, ("role", "type", "content", "parts", "output")
    )
    said = [*_texts(content), *_texts(parts)]
    if _text(kind) in _RESULT_PARTS:
        said += _result(output)
    return _text(role), "\n".join(filter(None, said))


def _texts(content: bytes | None) -> Iterator[str]:
    if content is None or not is_list(content[0]):
        yield from filter(None, [_text(content)])
        return
    for part in maps(content):
        kind, text, refusal, thought = fields(part, ("type", "text", "refusal", "thought"))
        name = _text(kind)
        if name in _RESULT_PARTS:
            yield from _result(*fields(part, ("content", "output", "result")))
        elif name in TEXT_PARTS or (kind is None and not scalar(thought)):
            yield _text(text)
        elif name == "refusal":
            yield _text(refusal)


def _result(*values: bytes | None) -> Iterator[str]:
    """The beginning of what a tool returned, where that is text."""
    for value in values:
        if value is not None and is_map(value[0]):
            (value,) = fields(value, ("value",))
        if value is not None and is_list(value[0]):
            texts = (fields(part, ("text",))[0] for part in maps(value))
            said = "\n".join(filter(None, map(_text, texts)))
        else:
            said = _text(value)
        if said:
            yield _cut(said, MAX_RESULT_BYTES)


def _text(encoded: bytes | None) -> str:
    text = scalar(encoded)
    return text if isinstance(text, str) else ""


def _clean(text: str) -> str:
    """Without the characters that stand for something else in a row."""
    for character in ("\0", "\1", BETWEEN, BREAK):
        if character in text:
            text = text.replace(character, " ")
    return text


def _cut(text: str, most: int) -> str:
    """As much of a text as has so many bytes."""
    if 4 * len(text) <= most or (text.isascii() and len(text) <= most):
        return text
    return text.encode()[:most].decode(errors="ignore")


def _within(texts: Iterator[str]) -> Iterator[str]:
    """Texts, of which those that come last are cut."""
    left = MAX_EVENT_TEXT_BYTES
    for text in texts:
        text = _cut(text, left)
        left -= len(text.encode())
        yield text
