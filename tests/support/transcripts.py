"""Made-up transcripts of Claude Code and Codex, in the shapes that several versions write."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SESSION = "3f2a0b1c-0000-4000-8000-000000000001"
ROLLOUT = "0199aaaa-0000-7000-8000-000000000002"


def encoded(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def written(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(lines))
    return path


def claude(kind: str, second: int, content: Any = None, **fields: Any) -> dict[str, Any]:
    """A line of Claude Code, with a message if there is `content`; `stop` is its `stop_reason`."""
    line: dict[str, Any] = {
        "parentUuid": None,
        "isSidechain": False,
        "userType": "external",
        "cwd": "/home/u/src/web",
        "sessionId": SESSION,
        "version": "1.0.67",
        "uuid": f"{second:08x}-1111-4111-8111-111111111111",
        "timestamp": f"2025-08-01T12:00:{second:02}.250Z",
        "type": kind,
    }
    if content is not None:
        line["message"] = {"role": kind, "content": content}
        if kind == "assistant":
            stop = fields.pop("stop", None)
            line["message"] |= {"id": "msg_1", "model": "claude", "stop_reason": stop}
    return line | fields


def text(said: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": said}]


def call(name: str, **given: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_use", "id": "toolu_1", "name": name, "input": given}]


def returned(said: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": "toolu_1", "content": said}]


CLAUDE_1: list[dict[str, Any]] = [
    {"type": "summary", "summary": "Login form", "leafUuid": "x"},
    claude("user", 1, "Caveat: not for the model", isMeta=True),
    claude("user", 2, "<command-name>/clear</command-name>"),
    claude("user", 3, "Fix the login form"),
    claude("assistant", 4, [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]),
    claude("assistant", 5, text("I look.")),
    claude("assistant", 6, call("Bash", command="ls")),
    claude("user", 7, returned("a\nb"), toolUseResult={"stdout": "a\nb", "stderr": ""}),
    claude("assistant", 8, call("Task", prompt="Search")),
    claude("user", 9, "Search", isSidechain=True),
    claude(
        "assistant",
        10,
        text("Found."),
        isSidechain=True,
        parentUuid="00000009-1111-4111-8111-111111111111",
        stop="end_turn",
    ),
    claude("user", 11, returned(text("Found."))),
    claude("assistant", 12, text("Mended."), stop="end_turn"),
]
"""Version 1.x, with a subagent in the file of the session."""
CLAUDE_2: list[dict[str, Any]] = [
    {"type": "file-history-snapshot", "messageId": "m", "snapshot": {}, "isSnapshotUpdate": False},
    {"type": "queue-operation", "operation": "dequeue", "sessionId": SESSION},
    claude("user", 1, text("Make it blue"), version="2.1.12"),
    claude("assistant", 2, text("Blue it is."), stop="end_turn", version="2.1.12"),
    claude("system", 3, subtype="turn_duration", durationMs=1000),
    claude("brand-new", 4, fresh={"a": [1, 2.5, None]}),
    claude("user", 5, text("[Request interrupted by user]")),
    {"type": "mode", "mode": "normal"},
    {"type": "mode", "mode": "normal"},
]
"""Version 2.x, with a type of line that nobody knows, and two equal lines without a `uuid`."""
SUBAGENT: list[dict[str, Any]] = [
    claude("user", 1, "Count", isSidechain=True, agentId="ab12"),
    claude("assistant", 2, text("Three."), isSidechain=True, agentId="ab12", stop="end_turn"),
]
"""A file of its own, as of version 2.x."""


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def said(role: str, words: str, **fields: Any) -> dict[str, Any]:
    part = {"type": "output_text" if role == "assistant" else "input_text", "text": words}
    return item("message", role=role, content=[part], **fields)


ENVIRONMENT = "<environment_context>\n<cwd>/home/u/src/api</cwd>\n</environment_context>"
CODEX_OLD: list[dict[str, Any]] = [
    {"id": ROLLOUT, "timestamp": "2025-05-07T17:24:21.500Z", "instructions": None},
    {"record_type": "state"},
    said("user", ENVIRONMENT),
    said("user", "Why is it slow?"),
    item("reasoning", id="rs_1", summary=[{"type": "summary_text", "text": "Look."}]),
    item("function_call", name="shell", arguments='{"command": ["ls"]}', call_id="c1"),
    item("function_call_output", call_id="c1", output="a"),
    said("assistant", "An index is missing."),
    said("user", "yes"),
    said("assistant", "Added."),
    said("user", "yes"),
]
"""Items as they are; the last line is one that was there before."""


def codex(kind: str, second: int, payload: dict[str, Any]) -> dict[str, Any]:
    time = f"2025-11-20T09:00:{second:02}.000Z"
    return {"timestamp": time, "type": kind, "payload": payload}


CODEX_NEW: list[dict[str, Any]] = [
    codex("session_meta", 0, {"id": ROLLOUT, "cwd": "/home/u/src/api", "cli_version": "0.65.0"}),
    codex("response_item", 1, said("developer", "<permissions instructions>")),
    codex("response_item", 1, said("user", ENVIRONMENT)),
    codex("event_msg", 2, {"type": "task_started", "turn_id": "1"}),
    codex("turn_context", 2, {"cwd": "/home/u/src/api", "model": "gpt-5-codex"}),
    codex("response_item", 3, said("user", "Add a limit")),
    codex("event_msg", 3, {"type": "user_message", "message": "Add a limit"}),
    codex("response_item", 4, item("reasoning", summary=[], content=None, encrypted_content="g=")),
    codex("response_item", 5, said("assistant", "I begin.")),
    codex("response_item", 6, item("custom_tool_call", name="apply_patch", input="*", call_id="2")),
    codex("response_item", 7, item("custom_tool_call_output", call_id="2", output="ok")),
    codex("response_item", 8, item("hologram", data="?")),
    codex("compacted", 9, {"message": "", "replacement_history": []}),
    codex("response_item", 10, said("assistant", "Done.")),
    codex("event_msg", 11, {"type": "task_complete", "turn_id": "1"}),
]
"""Lines with a payload, with the end of the turn."""
FILES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "claude 1": (f"{SESSION}.jsonl", CLAUDE_1),
    "claude 2": (f"{SESSION}.jsonl", CLAUDE_2),
    "claude 2, a subagent": ("agent-ab12.jsonl", SUBAGENT),
    "codex, old": (f"rollout-2025-05-07T17-24-21-{ROLLOUT}.jsonl", CODEX_OLD),
    "codex, new": (f"rollout-2025-11-20T09-00-00-{ROLLOUT}.jsonl", CODEX_NEW),
}
"""Names of files and lines; the first word is the tool."""


def tool(name: str) -> str:
    """The tool of one of `FILES`."""
    return "claude-code" if name.startswith("claude") else "codex"
