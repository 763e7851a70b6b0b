"""An agent of `projector demo`: a process that writes events and uses nothing of projector.

python -m session_projector.worker.storage.ENGINE.demo_agent DATABASE AGENT AGENTS
"""

import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

_TASKS: Final = (
    ("web", "The login form loses what was typed when the session expires."),
    ("web", "Make the board readable on a phone."),
    ("api", "Add a rate limit to POST /tokens, with a test."),
    ("api", "Why does the nightly export take 40 minutes?"),
    ("infra", "Upgrade the base image and see what breaks."),
    ("infra", "Alert when the disk has less than 10 % left."),
)
_STEPS: Final = (
    ("Bash", {"command": "git grep -n 'session' | head"}, "12 places; two of them look relevant."),
    ("Read", {"file_path": "src/app.py", "limit": 80}, "The state is kept in the closure."),
    ("Edit", {"file_path": "src/app.py", "old_string": "state", "new_string": "saved"}, "Edited."),
    ("Bash", {"command": "pytest -q", "timeout": 120}, "41 passed in 3.2s"),
    ("Bash", {"command": "git diff --stat"}, "2 files changed, 14 insertions(+), 3 deletions(-)"),
)


class Scratch(NamedTuple):
    """A database for a demo: its URL, its agents' module, and the shell command that asks it, to
    which a statement is added; '' where it is gone with the demo."""

    url: str
    agent: str
    shell: str


Insert = Callable[[str, str, dict[str, Any]], None]


def work(insert_as_shell: Insert, insert_as_library: Insert) -> None:
    """Work on one task after the other, as long as the demo lives; the first agent is a script."""
    url, agent, agents = sys.argv[1], *map(int, sys.argv[2:])
    demo = os.getppid()
    chance = random.Random(agent)
    insert = insert_as_shell if agent == 0 else insert_as_library
    for turn in range(1_000_000):
        project, task = _TASKS[(agent + turn * agents) % len(_TASKS)]
        session_id = f"{project}-{agent + 1 + turn * agents}"
        now = time.time_ns() // 1_000_000
        for step, (kind, data) in enumerate(_work(project, task, chance)):
            event = {"type": kind, "sessionId": session_id, "data": data, "timestamp": now}
            if os.getppid() != demo:  # it was killed, and could end nobody
                os.killpg(0, signal.SIGTERM)
            insert(url, f"session:{session_id}", event)
            time.sleep(chance.uniform(0.05, 0.2) if step == 0 else chance.uniform(0.2, 1.2))
            now = time.time_ns() // 1_000_000


def _work(project: str, task: str, chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "session_created", {"project": project, "messages": [{"role": "user", "content": task}]}
    yield "session_status_update", {"status": "in-progress"}
    for tool, use, answer in chance.sample(_STEPS, k=chance.randint(3, len(_STEPS))):
        call = {"type": "tool_use", "id": uuid.uuid4().hex[:8], "name": tool, "input": use}
        said = [{"type": "text", "text": f"I will use {tool}."}, call]
        yield "session_append", {"messages": [{"role": "assistant", "content": said}]}
        yield "session_append", {"messages": [{"role": "user", "content": answer}]}
    yield "session_append", {"messages": [{"role": "assistant", "content": "Done. Please review."}]}
    yield "session_status_update", {"status": chance.choice(("review", "done"))}
