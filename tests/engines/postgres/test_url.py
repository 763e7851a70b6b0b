"""What a `postgresql://` URL may be, and that a password in it is never shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PROJECTOR, projector
from support.postgres import Server

from session_projector.worker.errors import UsageError
from session_projector.worker.storage.postgres.target import Target, parse, passwords

LETTERS = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="%@:/?#&=[]+ '")
NAMES = st.text(LETTERS, min_size=1, max_size=20)


@given(user=NAMES, secret=st.text(LETTERS, min_size=3, max_size=20), other=NAMES)
def test_a_password_is_neither_in_the_name_nor_in_a_repr(
    user: str, secret: str, other: str
) -> None:
    secret = f"pw-{secret}-wp"
    url = f"postgresql://{user}:{secret}@host:5433/db?schema=x&password={secret}&options={other}"

    found = parse(url)

    assert found.settings["password"] == secret
    assert secret not in found.name
    assert secret not in repr(found)
    assert secret in passwords(url)


def test_a_password_that_is_escaped_is_found_both_ways() -> None:
    assert passwords("postgresql://u:a%40b@h/d") == ["a%40b", "a@b"]


@pytest.mark.parametrize(
    ("url", "schema", "settings"),
    [
        ("postgresql://h/d", "public", {"host": "h", "dbname": "d"}),
        ("postgres://h/d?schema=log", "log", {"host": "h", "dbname": "d"}),
        (
            "postgresql://u@a:1,b:2/d?sslmode=require&schema=%22q%22",
            '"q"',
            {"user": "u", "host": "a,b", "port": "1,2", "dbname": "d", "sslmode": "require"},
        ),
        ("postgresql:///d?host=/run/pg", "public", {"host": "/run/pg", "dbname": "d"}),
        ("postgresql://?service=agents", "public", {"service": "agents"}),
    ],
)
def test_a_url_is_what_libpq_takes_and_a_schema(
    url: str, schema: str, settings: dict[str, str]
) -> None:
    found = parse(url)

    assert found.schema == schema
    assert found.settings == settings
    assert parse(found.name) == Target(found.name, settings, schema)


@pytest.mark.parametrize(
    "url", ["postgresql://h/d?nonsense=1", "postgresql://h/d?schema=", "postgresql://h/%00"]
)
def test_what_is_no_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(url.replace("//", "//u:s3cret@"))

    assert "s3cret" not in f"{refused.value} {refused.value.hint}"


def test_no_command_shows_the_password(postgres: Server) -> None:
    """The server trusts everybody, whatever password they give."""
    with postgres.database() as url:
        secret = url.replace("postgres@", "postgres:s3cret@")
        said = [
            projector(*command, "-d", secret, check=None)
            for command in (["status"], ["db", "setup"], ["run", "--once"], ["status", "--json"],
                            ["doctor"], ["verify"], ["db", "status"])
        ]  # fmt: skip

    assert all("s3cret" not in one.stdout + one.stderr for one in said)
    assert [one.returncode for one in said] == [4, 0, 0, 0, 0, 0, 0]


def test_the_list_of_processes_does_not_show_it(postgres: Server) -> None:
    with postgres.database(template=postgres.template) as url:
        secret = url.replace("postgres@", "postgres:s3cret@")
        daemon = subprocess.Popen(
            [*PROJECTOR, "run", "-d", secret], stderr=subprocess.PIPE, text=True
        )
        try:
            assert daemon.stderr
            line = daemon.stderr.readline()
            shown = Path(f"/proc/{daemon.pid}/cmdline").read_text()
        finally:
            daemon.kill()
            daemon.communicate()

    assert "s3cret" not in line
    assert "postgres:******@" in shown


def test_without_psycopg_it_is_said_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('no psycopg here')")
    done = subprocess.run(
        [sys.executable, "-m", "session_projector", "status", "-d", "postgresql://h/d"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert "-m pip install 'psycopg[binary]>=3.2.2'`" in done.stderr
