"""What Codex keeps of its sessions, in `sessions/YYYY/MM/DD/rollout-TIME-ID.jsonl` of its folder.

The program is open source; its writer and types are in https://github.com/openai/codex,
`codex-rs/core/src/rollout` and `codex-rs/protocol` (`RolloutLine`, `ResponseItem`, `EventMsg`).
Sessions that a person archived are in `archived_sessions`.

- Until about 0.40 a line is an item of OpenAI's Responses API as it is, without a time; the first
  has `id`, `timestamp` and `instructions`, and `record_type` marks what is no item. The working
  directory stands in the text of `<environment_context>`.
- Since then a line is `timestamp`, `type` and `payload`: `session_meta` (`id`, `cwd`, …),
  `response_item` (an item as before), `event_msg` (what the terminal showed, for the most part the
  same again), `turn_context`, `compacted`.

Items that say something are messages here, as the API has them: `message`, `reasoning`, calls of
tools and what these returned. No messages are those of the developer, and those that the program
writes in the person's name (`_WRITTEN_FOR`). The turn ends with the event `task_complete` (or
`turn_complete`) or `turn_aborted`; in versions that do not keep the former, with what the assistant
says. Subagents have files of their own, whose `source` says so.
"""

import re
from pathlib import Path
from typing import Any, Final

from session_projector.worker.importing.transcript import DONE, READY, WORKING, Meaning, Read

NAME: Final = "codex"
PATTERN: Final = "rollout-*.jsonl"
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)
_CWD: Final = re.compile(r"<cwd>([^<\n]+)</cwd>|^Current working directory: (.+)$", re.MULTILINE)
_TYPES: Final = frozenset(
    {"session_meta", "response_item", "event_msg", "turn_context", "compacted", "world_state"}
)
_SAYING: Final = frozenset(
    {
        *("message", "reasoning", "function_call", "function_call_output", "custom_tool_call"),
        *("custom_tool_call_output", "local_shell_call", "local_shell_call_output"),
        *("web_search_call", "mcp_call"),
    }
)
_OTHER_ITEMS: Final = frozenset({"ghost_snapshot", "compaction", "compaction_summary", "other"})
_WRITTEN_FOR: Final = (
    *("<environment_context>", "<user_instructions>", "<permissions instructions>"),
    *("# AGENTS.md instructions", "<turn_aborted>", "<skill>"),
)
_BEGAN: Final = frozenset({"task_started", "turn_started"})
_ENDED: Final = frozenset({"task_complete", "turn_complete", "turn_aborted"})


def folders(home: Path) -> list[Path]:
    """Where the transcripts are, in the folder of Codex."""
    return [home / "sessions", home / "archived_sessions"]


def reader(path: Path) -> Read:
    """What reads the lines of a file."""
    return _Reader(path).read


class _Reader:
    def __init__(self, path: Path) -> None:
        found = _ID.search(path.stem)
        self._stem = path.stem
        self._session_id = found[0] if found else ""
        self._has_turns = False
        self._ended = READY

    def read(self, line: dict[str, Any]) -> Meaning:
        kind, payload = line.get("type"), line.get("payload")
        if not isinstance(payload, dict):
            return self._read_old(line)
        given = payload if kind == "session_meta" else {}
        if isinstance(source := given.get("source"), dict) and "subagent" in source:
            self._ended = DONE
        meaning = self._meaning(line, given.get("id"))
        meaning.cwd = payload.get("cwd")
        meaning.time = line.get("timestamp")
        if kind == "response_item":
            rest = {name: value for name, value in line.items() if name != "payload"}
            self._read_item(meaning, payload, rest)
        elif kind == "event_msg":
            self._read_event(meaning, payload.get("type"))
        elif kind not in _TYPES:
            meaning.unknown = str(kind)
        return meaning

    def _read_old(self, line: dict[str, Any]) -> Meaning:
        is_first = "type" not in line and "id" in line
        meaning = self._meaning(line, line.get("id") if is_first else None)
        meaning.time = line.get("timestamp")
        if not is_first and "record_type" not in line:
            self._read_item(meaning, line, {})
        meaning.is_unique = is_first
        return meaning

    def _meaning(self, line: dict[str, Any], given: Any) -> Meaning:
        """That of a line whose message, if any, is not known yet."""
        self._session_id = (
            self._session_id or (given if isinstance(given, str) else "") or self._stem
        )
        return Meaning(self._session_id, rest=line)

    def _read_item(self, meaning: Meaning, item: dict[str, Any], rest: dict[str, Any]) -> None:
        kind, role = item.get("type"), item.get("role")
        if kind not in _SAYING:
            meaning.unknown = "" if kind in _OTHER_ITEMS else f"item {kind}"
            return
        text = _text(item) if kind == "message" else ""
        if role in ("developer", "system") or (role == "user" and text.startswith(_WRITTEN_FOR)):
            if found := _CWD.search(text):
                meaning.cwd = (found[1] or found[2]).strip()
            return
        meaning.message, meaning.rest = item, rest
        is_over = kind == "message" and role == "assistant" and item.get("phase") != "commentary"
        if not is_over:
            meaning.status = WORKING
        elif not self._has_turns:
            meaning.status = self._ended

    def _read_event(self, meaning: Meaning, kind: Any) -> None:
        if kind in _BEGAN or kind == "user_message":
            self._has_turns = self._has_turns or kind in _BEGAN
            meaning.status = WORKING
        elif kind in _ENDED:
            meaning.status = self._ended


def _text(item: dict[str, Any]) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return next((text for text in texts if isinstance(text, str)), "")
