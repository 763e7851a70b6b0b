"""What a message says, as readable text: the shapes in which agents write messages.

Known are Anthropic's content blocks, the parts of OpenAI's Chat and Responses APIs (and so Codex's
items), those of the AI SDK, and Gemini's. A call of a tool and what it returned are a line each.
What is not known stays as it is. The page of the board reads the same shapes (`parts.js`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from session_projector.projections.event import TEXT_PARTS
from session_projector.worker.sessions.plain import plain

LINE: Final = 160
"""Characters that are shown of a call of a tool, and of what it returned."""


def said(message: Mapping[Any, Any]) -> list[Any]:
    """The texts of a message, in order; a part of an unknown shape is itself, no text."""
    found = [*_body(message)]
    for call in _list(message.get("tool_calls")):  # of OpenAI's Chat API
        function = call.get("function") if isinstance(call, dict) else None
        found.append(_called(function) if isinstance(function, dict) else call)
    if found or message.get("content", "") is None:
        return found or [None]
    rest = {key: value for key, value in message.items() if key != "role"}
    return [rest] if rest else []


def speaker(message: Mapping[Any, Any]) -> str:
    """Who says a message: its role, or else, as items of the Responses API have none, `tool` for
    what a tool returned and `assistant` for its call and for reasoning. What tools returned to
    Anthropic's models comes in messages of the user."""
    role, kind, content = message.get("role"), _kind(message), message.get("content")
    if role == "user" and isinstance(content, list) and content:
        is_result = all(_reader(part) is _result for part in content)
        return "tool" if is_result else "user"
    if role is not None and role != "":
        return str(role)
    if (read := _reader(message)) is _result:
        return "tool"
    return "assistant" if read in (_called, _reasoning) else kind or "message"


def _body(message: Mapping[Any, Any]) -> Iterator[Any]:
    is_item = _reader(message) in (_called, _result, _reasoning)  # of the Responses API
    content = message.get("content")
    if is_item or (_kind(message) in _KINDS and not content and not message.get("parts")):
        yield from _part(message)
        return
    if message.get("role") == "tool" and isinstance(content, str):
        yield _returned(content)
    elif isinstance(content, list):
        for part in content:
            yield from _part(part)
    elif content is not None:
        yield content
    for part in _list(message.get("parts")):
        yield from _part(part)
    if isinstance(refusal := message.get("refusal"), str):
        yield f"(refused) {refusal}"


def _part(part: Any) -> Iterator[Any]:
    if not isinstance(part, dict):
        yield part
        return
    kind = _kind(part)
    read = _KINDS.get(kind)
    if read is None and kind.startswith("tool-"):  # of the AI SDK
        yield _call(kind[len("tool-") :], part.get("input"))
        if "output" in part or "errorText" in part:
            yield _returned(part.get("output", part.get("errorText")))
        return
    if read is None and not kind:
        read = next((_GEMINI[key] for key in _GEMINI if key in part), None)
    text = read(part) if read else part
    if text != "":
        yield text


def _kind(part: Mapping[Any, Any]) -> str:
    kind = part.get("type")
    return kind if isinstance(kind, str) else ""


def _reader(part: Any) -> Callable[[Mapping[str, Any]], Any] | None:
    return _KINDS.get(_kind(part)) if isinstance(part, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(part: Mapping[str, Any]) -> Any:
    text = part.get("text")
    if not isinstance(text, str):
        return part
    return _thought(text) if part.get("thought") is True else text


def _thought(text: Any) -> str:
    return f"(thinking) {text}" if isinstance(text, str) and text else ""


def _reasoning(part: Mapping[str, Any]) -> Any:
    """Of the Responses API a summary or the whole in parts, of the AI SDK a text."""
    parts = [*_list(part.get("summary")), *_list(part.get("content"))]
    texts = (one.get("text") for one in parts if isinstance(one, dict))
    text = "\n".join(text for text in texts if isinstance(text, str))
    hidden = "(thinking, encrypted)" if part.get("encrypted_content") else ""
    return _thought(text or part.get("text") or part.get("reasoning")) or hidden


def _called(part: Mapping[str, Any]) -> str:
    """A call of a tool; what it is given has another name in each API."""
    names = ("input", "arguments", "args", "action", "rawInput")
    given = next((part[name] for name in names if part.get(name) is not None), None)
    line = _call(part.get("name") or part.get("toolName") or part.get("type"), given)
    return f"{line}\n{_returned(part['output'])}" if part.get("output") is not None else line


def _call(name: Any, given: Any) -> str:
    return f"→ {name} {_line(given)}".rstrip()


def _invoked(part: Mapping[str, Any]) -> Any:
    call = part.get("toolInvocation")
    if not isinstance(call, dict):
        return part
    line = _call(call.get("toolName"), call.get("args"))
    return f"{line}\n{_returned(call['result'])}" if "result" in call else line


def _result(part: Mapping[str, Any]) -> str:
    names = ("content", "output", "result", "response")
    value = next((part[name] for name in names if part.get(name) is not None), "")
    return _returned(value, is_error=part.get("is_error") is True)


def _returned(value: Any, *, is_error: bool = False) -> str:
    if isinstance(value, str) and value.startswith('{"output":'):  # of Codex
        value = _wrapped(value)
    if isinstance(value, dict) and isinstance(value.get("value"), str):  # of the AI SDK
        value = value["value"]
    if isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        known = [text for text in texts if isinstance(text, str)]
        value = "\n".join(known) if known and len(known) == len(value) else value
    return f"← {'error: ' * is_error}{_line(value)}"


def _wrapped(text: str) -> str:
    """What a tool of Codex returned, which may stand in JSON beside its exit code."""
    try:
        inner = json.loads(text)["output"]
    except (ValueError, RecursionError):
        return text
    return inner if isinstance(inner, str) else text


def _line(value: Any) -> str:
    """The first line of a text, and of how many, or a value in short."""
    if value is None:
        return ""
    more = ""
    if isinstance(value, str):
        first, *others = value.strip().split("\n")
        more = f" (1 of {len(others) + 1:,} lines)" if others else ""
    elif isinstance(value, dict):
        given = [*value.items()][:LINE]  # more than are shown
        first = ", ".join(f"{name}={_short(one)}" for name, one in given)
    else:
        first = _short(value)
    return (first if len(first) <= LINE else first[: LINE - 1] + "…") + more


def _short(value: Any) -> str:
    """Some more of a value than is shown: text as it is, all else as JSON."""
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return " ".join(text[: 2 * LINE].split())


def _file(part: Mapping[str, Any]) -> str:
    """A picture, a sound or a document, by its type or address."""
    inner = part
    for name in ("source", "image_url", "input_audio", "inlineData", "fileData", "file"):
        if isinstance(part.get(name), dict):
            inner = part[name]
    names = ("media_type", "mediaType", "mimeType", "filename", "format")
    kind = next((inner[name] for name in names if isinstance(inner.get(name), str)), "")
    url = next(
        (
            inner[n]
            for n in ("url", "fileUri", "image_url", "file_id")
            if isinstance(inner.get(n), str)
        ),
        "",
    )
    if url.startswith("data:"):
        kind, url = kind or url[5:].partition(";")[0], ""
    return "[" + " ".join(filter(None, (_kind(part) or "file", kind, _line(url)))) + "]"


def _code(code: Mapping[str, Any]) -> str:
    return f"```{str(code.get('language', '')).lower()}\n{code.get('code', '')}\n```"


_KINDS: Final[dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    **dict.fromkeys(TEXT_PARTS, _text),
    "summary_text": _text,
    "refusal": lambda part: f"(refused) {part.get('refusal')}",
    "thinking": lambda part: _thought(part.get("thinking")),
    "redacted_thinking": lambda _: "(thinking, redacted)",
    "reasoning": _reasoning,
    "step-start": lambda _: "",
    **dict.fromkeys(
        ("tool_use", "server_tool_use", "mcp_tool_use", "function_call", "custom_tool_call"),
        _called,
    ),
    **dict.fromkeys(("tool-call", "local_shell_call", "web_search_call", "mcp_call"), _called),
    "dynamic-tool": _called,
    "tool-invocation": _invoked,
    **dict.fromkeys(
        ("tool_result", "web_search_tool_result", "mcp_tool_result", "tool-result"), _result
    ),
    **dict.fromkeys(
        ("function_call_output", "custom_tool_call_output", "local_shell_call_output"), _result
    ),
    **dict.fromkeys(("image", "document", "image_url", "input_image", "input_file"), _file),
    **dict.fromkeys(("input_audio", "audio", "file"), _file),
}
"""How a part of a type is read; '' is nothing to show."""


def _within(
    key: str, read: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Mapping[str, Any]], Any]:
    """Of what a part has under a key, if that has a shape that is known."""
    return lambda part: read(part[key]) if isinstance(part[key], dict) else part


_GEMINI: Final[dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    "functionCall": _within("functionCall", _called),
    "functionResponse": _within("functionResponse", _result),
    "executableCode": _within("executableCode", _code),
    "codeExecutionResult": _within("codeExecutionResult", _result),
    "inlineData": _file,
    "fileData": _file,
    "text": _text,
}
"""The same of a part that has no type, by a key that it has."""
