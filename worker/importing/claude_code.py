"""What Claude Code keeps of its sessions, in `projects/FOLDER/SESSION.jsonl` of its folder.

Where the files are is documented (https://code.claude.com/docs/en/sessions), what is in them is
not: it is internal to the program and changes with its versions. This is what lines of the versions
1.0 to 2.1 have:

- `user` and `assistant` have the message in `message`, as the API has it, and beside it `uuid`,
  `parentUuid`, `timestamp`, `sessionId`, `cwd`, `version`, `isSidechain`, `toolUseResult` and more.
  An answer is a line for each block of its content, all with one `message.id`, and each of these
  lines is a message here. Where `stop_reason` is null, as it is in many of these lines, a text is
  taken for the end of the turn; if a call of a tool follows, that line says so.
- `isMeta` marks what the program says to the model and shows to nobody: no message here, either.
  Nor are the program's own commands, such as `/clear`, which would be the title of many sessions.
- `system`, `summary`, `file-history-snapshot` and the others of `_KNOWN` are no messages.
- What a subagent says is marked `isSidechain`. Up to 1.x it stands in the session's own file, later
  in `agent-ID.jsonl` beside it, then in `SESSION/subagents/`. Each subagent is a session of its own
  here, `SESSION.agent-ID`, so that the main conversation stays readable. Without an `agentId` the
  ID is the beginning of the first line's `uuid`, from which `parentUuid` leads to the others.
- A file that was resumed from another may begin with lines of that one, `sessionId` included: the
  session is the one that the file is named after.
- Lines may stand in a file twice, and are one event then, if they have a `uuid`.
"""

import re
from pathlib import Path
from typing import Any, Final

from session_projector.worker.importing.transcript import DONE, READY, WORKING, Meaning, Read

NAME: Final = "claude-code"
PATTERN: Final = "*.jsonl"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_KNOWN: Final = frozenset(
    {
        *("system", "summary", "file-history-snapshot", "file-history-delta", "queue-operation"),
        *("progress", "attachment", "custom-title", "ai-title", "agent-name", "last-prompt"),
        *("mode", "permission-mode", "pr-link", "tag", "worktree-state"),
    }
)
_TURN_ENDED: Final = frozenset({"turn_duration", "stop_hook_summary"})
"""Subtypes of `system` lines."""
_LOCAL: Final = re.compile(
    "<local-command-|(<command-message>[^<]*</command-message>\\s*)?<command-name>/(clear|compact|config"
    "|context|cost|doctor|exit|help|hooks|login|logout|mcp|memory|model|permissions|plugin|quit"
    "|resume|rewind|status|theme|usage|vim)</command-name>"
)
"""How it begins when a person uses a command of the program, and what that printed: the model does
not answer it. Other commands are prompts."""
_UNANSWERED: Final = ("<bash-input>", "<bash-stdout>", "<bash-stderr>")
"""How a command of the shell begins that a person ran, and what it printed."""
_INTERRUPTED: Final = "[Request interrupted by user"


def folders(home: Path) -> list[Path]:
    """Where the transcripts are, in the folder of Claude Code."""
    return [home / "projects"]


def reader(path: Path) -> Read:
    """What reads the lines of a file."""
    return _Reader(path).read


class _Reader:
    def __init__(self, path: Path) -> None:
        self._stem = path.stem
        self._main = self._stem if _UUID.fullmatch(self._stem) else ""
        self._begun = False
        self._roots: dict[str, str] = {}

    def read(self, line: dict[str, Any]) -> Meaning:
        kind = line.get("type")
        said = _message(line) if kind in ("user", "assistant") else None
        self._begun = self._begun or said is not None or isinstance(line.get("cwd"), str)
        if self._begun and not self._main:
            given = line.get("sessionId")
            self._main = given if isinstance(given, str) and given else self._stem
        agent = self._agent(line)
        meaning = Meaning(
            (f"{self._main}.agent-{agent}" if agent else self._main) if self._begun else "",
            rest=line,
            cwd=line.get("cwd"),
            time=line.get("timestamp"),
            is_unique="uuid" in line,
        )
        if said is None and kind not in _KNOWN:
            meaning.unknown = str(kind)
        status = None
        if kind == "system" and line.get("subtype") in _TURN_ENDED:
            status = READY
        elif said is not None and not (line.get("isMeta") is True or _LOCAL.match(_text(said))):
            meaning.message = said
            meaning.rest = {name: value for name, value in line.items() if name != "message"}
            status = _status(kind == "assistant", said)
        meaning.status = DONE if agent and status == READY else status
        return meaning

    def _agent(self, line: dict[str, Any]) -> str:
        """The id of the subagent that says this, '' for none."""
        if self._stem.startswith("agent-"):
            return self._stem.removeprefix("agent-")
        if line.get("isSidechain") is not True:
            return ""
        if isinstance(given := line.get("agentId"), str) and given:
            return given
        uuid = str(line.get("uuid"))
        root = self._roots.get(str(line.get("parentUuid")), uuid[:8])
        return self._roots.setdefault(uuid, root)


def _message(line: dict[str, Any]) -> dict[str, Any] | None:
    said = line.get("message")
    if not isinstance(said, dict) or not isinstance(said.get("role"), str):
        return None
    return said if isinstance(said.get("content"), str | list) else None


def _status(is_answer: bool, message: dict[str, Any]) -> str | None:
    if is_answer:
        content, stop = message["content"], message.get("stop_reason")
        last = content[-1] if isinstance(content, list) and content else {"type": "text"}
        is_text = isinstance(last, dict) and last.get("type") == "text"
        ended = is_text if stop is None else stop not in ("tool_use", "pause_turn")
        return READY if ended else WORKING
    text = _text(message)
    if text.startswith(_INTERRUPTED):
        return READY
    return None if text.startswith(_UNANSWERED) else WORKING


def _text(message: dict[str, Any]) -> str:
    """The content, or the first block of it that is text."""
    content = message["content"]
    if isinstance(content, str):
        return content
    texts = (block.get("text") for block in content if isinstance(block, dict))
    return next((text for text in texts if isinstance(text, str)), "")
