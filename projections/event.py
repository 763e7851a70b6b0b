"""What projections fold: a row of the log, and the typed event that it holds."""

from typing import Any, Final

import msgspec

from session_projector.projections import messagepack

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""The largest `data` that is read, as stored."""
MAX_NAME_BYTES: Final = 64 * 1024
"""The longest `id` and `key`, in bytes of UTF-8."""
PREFIX: Final = "session:"
"""How the keys of sessions begin, in the log and in `view`."""
TEXT_PARTS: Final = ("text", "input_text", "output_text")
"""Types of a message's parts that are text: Anthropic's, and those of OpenAI's Responses API."""
SESSION_EVENTS: Final = frozenset(
    {
        "session_created",
        "session_append",
        "session_append_messages",
        "session_status_update",
        "session_updated",
    }
)
"""The types of event that are about sessions."""


class Unfoldable(Exception):
    """An event that goes to quarantine; the text is the reason, in words to act on.

    `type` is the event's, where that could be read: others have no concern with it then.
    """

    def __init__(self, reason: str, type: str | None = None) -> None:  # noqa: A002
        super().__init__(reason)
        self.type = type


class OutOfMemory(MemoryError):
    """There is too little memory for an event: nobody knows yet what it does."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"too little memory to fold event {seq}")
        self.seq = seq


class LogRow(msgspec.Struct, frozen=True, gc=False):
    """A row of `event_log` as stored; text that is not UTF-8 carries lone surrogates."""

    seq: int
    id: Any
    key: Any
    data: Any
    created_at: Any


class Messages(msgspec.Struct, frozen=True, gc=False):
    """Messages as their writer encoded them: `body` is `count` maps in MessagePack, end to end."""

    count: int
    body: bytes

    @property
    def values(self) -> list[dict[Any, Any]]:
        """The same, decoded at each access.

        A value that has no type in Python is an extension type, msgspec's or ours.
        """
        values: list[dict[Any, Any]] = messagepack.decode(
            messagepack.list_header(self.count) + self.body
        )
        return values


class SessionCreated(msgspec.Struct, frozen=True, gc=False):
    """The body of `session_created`; `created_at` in Unix milliseconds."""

    project: str
    messages: Messages
    status: str
    created_at: int


class MessagesAppended(msgspec.Struct, frozen=True, gc=False):
    """The body of `session_append` and `session_append_messages`."""

    messages: Messages


class SessionUpdated(msgspec.Struct, frozen=True, gc=False):
    """The body of `session_updated` and `session_status_update`; None leaves a field as it is."""

    messages: Messages | None
    status: str | None
    project: str | None


class Other(msgspec.Struct, frozen=True):
    """The body of any other type that a projection folds: the event's own `data`, decoded."""

    data: dict[Any, Any]


Body = SessionCreated | MessagesAppended | SessionUpdated | Other


class Event(msgspec.Struct, frozen=True, gc=False):
    """One decoded event; `time` in Unix milliseconds.

    For types that no projection here folds `body` is None, and only `type` and `seq` count.
    """

    seq: int
    id: str
    type: str
    session_id: str
    time: int
    body: Body | None


def session_of(key: str) -> str:
    """The session that a key names, in either spelling."""
    return key.removeprefix(PREFIX)


def keys_of(session_id: str) -> tuple[str, ...]:
    """The keys that name a session: `session:x`, and `x` where that names no other session."""
    bare = () if session_id.startswith(PREFIX) else (session_id,)
    return (*bare, PREFIX + session_id)


def is_utf8(text: str) -> bool:
    """Whether a text of the database was UTF-8: `LogRow` has lone surrogates where it was not."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def is_too_long(name: Any) -> bool:
    """Whether an `id` or `key` is beyond `MAX_NAME_BYTES`."""
    if not isinstance(name, str | bytes) or 4 * len(name) <= MAX_NAME_BYTES:
        return False
    if isinstance(name, str) and not name.isascii() and len(name) <= MAX_NAME_BYTES:
        return len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES
    return len(name) > MAX_NAME_BYTES


def is_name(value: Any) -> bool:
    """Whether this can be the key of an event that is folded."""
    return isinstance(value, str) and is_utf8(value) and not is_too_long(value)


def beginning(name: Any) -> Any:
    """As much of an `id` or `key` as an event may have."""
    return name[: MAX_NAME_BYTES + 1] if isinstance(name, str | bytes) else name
