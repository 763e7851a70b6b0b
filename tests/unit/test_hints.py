"""Hints: what is pasted acts on the database that was asked about, whatever names are in it."""

import os
import shutil
import subprocess
from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from session_projector.worker.cli.inert import printable
from session_projector.worker.errors import argument, naming, quoted

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
NAMES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.lists(
        st.sampled_from(["a", " ", "-", "-d", "`", "'", "\\", "&&", "projector", "\n", "\u3164"]),
        min_size=1,
    ).map("".join),
)


def pasted(hint: str) -> list[list[str]]:
    """Arguments of each command of ours in a hint, as a terminal shows it, by a real bash."""
    commands = "\n".join(printable(hint).split("`")[1::2])
    script = f'projector() {{ printf "%s\\0" "$#" "$@"; }}\n{commands}\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    parts = iter(os.fsdecode(done.stdout).split("\0")[:-1])
    return [list(islice(parts, int(count))) for count in parts]


@needs_bash
@settings(max_examples=150, deadline=None)
@example("a -d b", "x.db")
@example("x && projector y", "no`dir/x.db")
@example("-y", "new\nline.db")
@example("a -- b", "my projector dir/x.db")
@given(NAMES, NAMES)
def test_a_pasted_command_is_about_this_session_of_this_database(name: str, path: str) -> None:
    hint = f"see why: `projector session why {argument(name)}`, or"
    hint += f" `projector replay --session={quoted(name)} && projector db setup`"

    why, replay, setup = pasted(naming(path, hint))

    last = ["-d", path, "--", name] if name.startswith("-") else [name, "-d", path]
    assert why == ["session", "why", *last]
    assert replay == ["replay", f"--session={name}", "-d", path]
    assert setup == ["db", "setup", "-d", path]


def test_a_name_that_needs_no_escape_stays_readable() -> None:
    assert quoted("/data/größe 1/local.db") == "'/data/größe 1/local.db'"
