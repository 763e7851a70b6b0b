"""What the world does to a database: full disks, limits, rights, damage, kills, clocks, big logs.

Real files and real processes. After each fault the views are those of the oracle, or the program
has ended and said why.
"""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support import INSERT, T0, Database, daemon, event, oracle, projector, users
from support.folding import opened, run_once
from support.interrupted import Interrupted

from session_projector.projections import BUILT_IN
from session_projector.worker.daemon.member import load
from session_projector.worker.daemon.tail import Tail
from session_projector.worker.storage.sqlite.schema import migrate as schema

SHELL = shutil.which("sqlite3")
STRANGER_UID = 60003
MIB = 1024 * 1024

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_shell = pytest.mark.skipif(SHELL is None, reason="needs the sqlite3 shell")


def is_exact(database: Database) -> bool:
    """Whether everything that was written is folded, and as it should be."""
    log = database.log()
    expected = oracle.fold(log)
    return (
        database.position() == (log[-1][0] if log else 0)
        and database.views() == expected.views
        and database.index() == oracle.index(log)
        and database.quarantine().keys() == expected.quarantine.keys()
    )


# Disks and limits


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Database]:
    """A fresh database alone on a file system of a few MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs: {mounted.stderr}")
    try:
        schema.setup(folder / "local.db")
        yield Database(folder / "local.db")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill_up(folder: Path) -> Path:
    """Write until there is not one byte of room; returns the file to delete."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def trouble(database: Database) -> Any:
    """What the daemon says that it waits for."""
    found = json.loads(projector("status", "--json", "-d", database.path).stdout)
    return found["daemon"]["trouble"]


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


@needs_root
def test_a_disk_that_fills_up_is_waited_out_and_nothing_is_lost(small_disk: Database) -> None:
    with daemon(small_disk.path) as running:
        running.wait_for("started")
        small_disk.created("A-1", "before")
        running.wait_until_at(1)
        running.process.send_signal(signal.SIGSTOP)  # so that the writer comes first
        small_disk.appended("A-1", "x" * 300_000)
        filler = fill_up(small_disk.path.parent)
        running.process.send_signal(signal.SIGCONT)
        said = running.wait_for("database_unavailable")
        refused = projector("run", "--once", "-d", small_disk.path, check=3)
        until(lambda: trouble(small_disk))
        status, waits = projector("status", "-d", small_disk.path).stdout, trouble(small_disk)
        health = projector("health", "-d", small_disk.path, check=1).stdout
        doctor = projector("doctor", "-d", small_disk.path, check=1).stdout
        filler.unlink()
        running.wait_for("database_available_again")
        until(lambda: not trouble(small_disk))
        small_disk.appended("A-1", "after")
        running.wait_until_at(3)

        assert "disk is full" in said["why"]
        assert "disk is full" in refused.stderr
        assert "projector doctor" in status
        assert status.splitlines()[1].split()[:4] == ["trouble", "waits", "for", "disk"]
        assert waits["lacks"] == "space"
        who = f"process {running.process.pid}"
        assert health.startswith(f"the daemon ({who}) waits for disk space, for ")
        assert re.match(f"FAIL  daemon +{who} waits for disk space, for ", doctor)
        assert doctor.count("FAIL") == 1
        assert f"`df {small_disk.path.parent}; du -xh " in doctor.splitlines()[1]
        assert "kill" not in doctor
        assert is_exact(small_disk)
        assert running.stop(signal.SIGTERM) == 0


@needs_root
def test_a_daemon_killed_on_a_full_disk_loses_nothing(small_disk: Database) -> None:
    with daemon(small_disk.path) as running:
        small_disk.created("A-1", "before")
        running.wait_until_at(1)
        running.process.send_signal(signal.SIGSTOP)
        small_disk.appended("A-1", "x" * 300_000)
        filler = fill_up(small_disk.path.parent)
        running.process.send_signal(signal.SIGCONT)
        running.wait_for("database_unavailable")
        running.stop(signal.SIGKILL)
    filler.unlink()

    projector("run", "--once", "-d", small_disk.path)
    assert is_exact(small_disk)


@needs_root
def test_on_a_disk_that_is_full_from_the_start_it_ends_with_exit_3(small_disk: Database) -> None:
    small_disk.created("A-1", "one")
    filler = fill_up(small_disk.path.parent)

    for arguments in (["run"], ["status"]):
        refused = projector(*arguments, "-d", small_disk.path, check=3, timeout=30)
        assert f"{small_disk.path} cannot be written or read" in refused.stderr

    filler.unlink()
    projector("run", "--once", "-d", small_disk.path)
    assert is_exact(small_disk)


@needs_root
def test_create_that_found_no_room_succeeds_once_there_is_room(small_disk: Database) -> None:
    database = Database(small_disk.path.with_name("new.db"))
    filler = fill_up(database.path.parent)
    projector("run", "--once", "--create", "-d", database.url, check=3)
    filler.unlink()

    projector("run", "--once", "--create", "-d", database.url)
    assert database.position() == 0


@pytest.mark.sqlite
def test_a_file_size_limit_is_waited_out_and_nothing_is_lost(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        database.created("A-1", "before")
        running.wait_until_at(1)
        pid = running.process.pid
        written = database.path.with_name("local.db-wal").stat().st_size
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (written, limits[1]))
        database.appended("A-1", "x" * 300_000)
        said = running.wait_for("database_unavailable")
        told = projector("doctor", "-d", database.url, check=1).stdout
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        running.wait_for("database_available_again")
        database.appended("A-1", "after")
        running.wait_until_at(3)

        assert f"{database.path} cannot be written or read" in said["why"]
        assert (
            f"is in its log (journalctl -u projector, say), its limits by `prlimit --pid {pid}`"
            in told
        )
        assert is_exact(database)
        assert running.stop(signal.SIGTERM) == 0


# Rights

AS_STRANGER = f"{users.PROJECTOR}\nbecome({STRANGER_UID})\ncli.main()\n"


@pytest.fixture
def public() -> Iterator[Database]:
    """A database in a folder that any user may look into, both owned by the stranger."""
    folder = Path(tempfile.mkdtemp(prefix="projector-test-"))
    schema.setup(folder / "local.db")
    folder.chmod(0o755)
    for path in (folder, folder / "local.db"):
        os.chown(path, STRANGER_UID, STRANGER_UID)
    yield Database(folder / "local.db")
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize(
    ("name", "mode"),
    [("local.db", 0o444), ("", 0o555), ("local.db-wal", 0), ("local.db-shm", 0)],
)
def test_what_may_not_be_written_is_named_with_exit_4(
    public: Database, name: str, mode: int
) -> None:
    public.created("A-1", "one")
    with closing(sqlite3.connect(public.path)) as other:
        if "-" in name:  # the files beside the database are there while it is open
            other.execute("SELECT * FROM event_log").fetchall()
        (public.path.parent / name).chmod(mode)

        done = projector("run", "-d", public.path, code=AS_STRANGER, check=4)

    assert str(public.path) in done.stderr
    assert "Traceback" not in done.stderr
    public.path.parent.chmod(0o755)
    for file in public.path.parent.iterdir():
        file.chmod(0o644)
    projector("run", "--once", "-d", public.path, code=AS_STRANGER)
    assert is_exact(public)


# Damage


def overwrite_page_of(database: Database, table: str) -> None:
    """Rubbish in place of a table's first page, while nobody has the database open."""
    database.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ((page,),) = database.sql("SELECT rootpage FROM sqlite_master WHERE name = ?", table)
    ((size,),) = database.sql("PRAGMA page_size")
    with database.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("command", "table"),
    [
        ("run", "event_log"),
        ("run", "view"),
        ("run", "session_index"),
        ("run --once", "checkpoint"),
        ("run --once", "idx_event_log_key"),
        ("run --once", "sqlite_schema"),
    ],
)
def test_a_damaged_page_ends_it_with_exit_4_and_says_so(
    database: Database, command: str, table: str
) -> None:
    many(database, range(50))
    projector("run", "--once", "-d", database.url)
    database.appended("A-1", "new")
    database.created("A-new", "new")
    if table == "sqlite_schema":
        with database.path.open("r+b") as file:
            file.seek(100)
            file.write(b"\xa5" * 3996)
    else:
        overwrite_page_of(database, table)

    refused = projector(*command.split(), "-d", database.url, check=4, timeout=30)

    assert f"{database.path} is damaged or not a SQLite database" in refused.stderr
    assert ".recover" in refused.stderr


@pytest.mark.sqlite
def test_a_damaged_schema_whose_names_are_not_utf_8_ends_it_with_exit_4(
    database: Database,
) -> None:
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET name = CAST(x'FF' AS TEXT), sql = 'rubbish'"
            " WHERE name = 'idx_view_key'"
        )

    projector("run", "-d", database.url, check=4, timeout=30)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "column",
    [
        "last_role",
        "title",
        "message_count",
    ],
)
def test_damaged_text_in_the_index_is_folded_over_or_refused_but_never_a_traceback(
    database: Database, column: str
) -> None:
    database.created("A-1", "one")
    projector("run", "--once", "-d", database.url)
    database.appended("A-1", "two")
    database.sql(f"UPDATE session_index SET {column} = CAST(x'78FF' AS TEXT)")

    projector("run", "--once", "-d", database.url)

    assert is_exact(database)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("run", "hello\n"),
        ("run", "hello, this is no database\n" * 500),
        ("run --once", "\0" * 4096),
        ("db setup", "hello\n"),
        ("status", "hello\n"),
    ],
)
def test_a_file_that_is_not_a_database_is_refused_and_left_alone(
    tmp_path: Path, command: str, text: str
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)

    refused = projector(*command.split(), "-d", path, check=4, timeout=30)

    assert f"{path} is damaged or not a SQLite database" in refused.stderr
    assert path.read_text() == text


def test_an_empty_file_is_refused_until_it_is_set_up(tmp_path: Path) -> None:
    database = Database(tmp_path / "empty.db")
    database.path.touch()

    refused = projector("run", "--once", "-d", database.url, check=4)
    assert f"projector db setup -d {database.path}" in refused.stderr
    assert database.path.stat().st_size == 0

    projector("db", "setup", "-d", database.url)
    database.created("A-1", "one")
    projector("run", "--once", "-d", database.url)
    assert is_exact(database)


# Cancelling


@pytest.mark.parametrize("again", [False, True])
async def test_a_turn_cancelled_at_any_await_leaves_no_lock_and_no_half_batch(
    database: Database, again: bool
) -> None:
    async with opened(database.url) as thread:
        members = [await load(thread, projection) for projection in BUILT_IN]
        completed = at = 0
        while not completed:
            at += 1
            database.created(f"A-{at}", "one")
            database.appended("A-1", str(at))
            database.insert("A-1", "no event")
            if at > 1:
                database.sql("DELETE FROM view WHERE key = ?", f"session:A-{at - 1}")
                database.appended(f"A-{at - 1}", "to be folded from the log")
            turn = Interrupted(Tail(thread, members).iterate(), at, again=again)
            task = asyncio.create_task(turn)
            turn.cancel = task.cancel
            await asyncio.wait([task])
            if not task.cancelled():
                assert task.result()
                completed = turn.suspensions

            with database.locked():  # which it waits for
                pass
            await run_once(database.url)
            assert is_exact(database)
            members = [await load(thread, projection) for projection in BUILT_IN]

    assert completed == at - 1 > 5


# Other processes


def test_a_reader_that_keeps_a_snapshot_open_does_not_hold_up_the_daemon(
    database: Database,
) -> None:
    database.created("A-1", "one")
    projector("run", "--once", "-d", database.url)
    with database.reading() as reader:
        before = reader.execute("SELECT * FROM view").fetchall()
        with daemon(database.url) as running:
            running.wait_for("started")
            for number in range(2, 2002, 500):
                newest = many(database, range(number, number + 500))
                running.wait_until_at(newest)
            assert running.stop(signal.SIGTERM) == 0

        assert reader.execute("SELECT * FROM view").fetchall() == before
    assert is_exact(database)


def many(database: Database, numbers: range) -> int:
    """Sessions A-0, A-1, … of one message each, in one transaction; returns the newest position."""
    rows = [
        (
            f"many-{number}",
            f"session:A-{number}",
            msgpack.packb(
                event("session_created", {"project": "A", "messages": [{"content": "x" * 1000}]})
            ),
            T0,
        )
        for number in numbers
    ]
    return database.insert_many(rows)


@pytest.mark.sqlite
def test_a_writer_killed_in_its_transaction_leaves_nothing_of_it(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        with subprocess.Popen(
            [sys.executable, "-c", HALF_A_WRITER, str(database.path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
            writer.kill()
        seq = database.created("A-1", "one")
        running.wait_until_at(seq)

        assert writer.returncode == -signal.SIGKILL
        assert database.sql("SELECT id FROM event_log") == [("e1",)]
        assert is_exact(database)
        assert running.stop(signal.SIGTERM) == 0


# Its small cache makes it write to the file before it commits.
HALF_A_WRITER = f"""
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN IMMEDIATE")
for number in range(200):
    data = '{{"type": "session_created", "data": {{"project": "' + "x" * 10_000 + '"}}}}'
    connection.execute("{INSERT}", (f"half-{{number}}", f"H-{{number}}", data, {T0}))
print("written", flush=True)
sys.stdin.read()
time.sleep(60)
"""


# Each look at the clock finds it a minute earlier.
CLOCK_SET_BACK = """
import itertools, time
start, looks = time.time_ns(), itertools.count()
time.time_ns = lambda: start - next(looks) * 60_000_000_000
time.time = lambda: time.time_ns() / 1e9
from session_projector.worker.cli import main as cli
cli.main()
"""


@pytest.mark.once
def test_a_clock_that_goes_back_stops_nothing(database: Database) -> None:
    program = [sys.executable, "-P", "-c", CLOCK_SET_BACK]
    with daemon(database.url, program=program) as running:
        running.wait_for("started")
        for number in range(5):
            database.created(f"A-{number}", "one")
            database.insert("A-0", '{"type": "session_append", "data": {"messages": [{}]}}')
            running.wait_until_at(2 * number + 2)
        subprocess.run(
            [
                *program,
                "session",
                "append",
                "A-0",
                "-m",
                '[{"role": "user", "content": ""}]',
                "-d",
                database.url,
            ],
            check=True,
        )
        running.wait_until_at(11)
        status = subprocess.run(
            [*program, "status", "--json", "-d", database.url], capture_output=True, text=True
        )

        assert status.returncode == 0, status.stderr
        assert '"alive": true' in status.stdout or '"alive":true' in status.stdout
        assert "Traceback" not in status.stderr
        assert is_exact(database)
        assert running.stop(signal.SIGTERM) == 0


# Copies


@pytest.mark.sqlite
@needs_shell
def test_a_daemon_goes_on_through_a_vacuum(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        running.wait_until_at(many(database, range(100)))
        subprocess.run([str(SHELL), database.path, "VACUUM"], check=True)
        running.wait_until_at(database.appended("A-1", "after"))

        assert is_exact(database)
        assert running.stop(signal.SIGTERM) == 0


@pytest.mark.sqlite
@needs_shell
@pytest.mark.parametrize("way", ["VACUUM", "VACUUM INTO", ".dump", ".backup"])
def test_a_copy_made_with_the_sqlite3_shell_is_gone_on_with(
    database: Database, tmp_path: Path, way: str
) -> None:
    many(database, range(100))
    database.insert("A-1", "no event")
    database.insert("A-1", {"type": "of no concern"})
    projector("run", "--once", "-d", database.url)
    database.appended("A-1", "not folded yet")
    views, log = database.views(), database.log()
    copy = Database(copied(database.path, tmp_path / "copy.db", way))
    assert copy.views() == views
    assert copy.log() == log

    copy.insert("A-1", event("session_append", {"messages": [{"content": "a"}]}), id="after")
    copy.insert("A-new", event("session_created", {"project": "A"}), id="new")
    with daemon(copy.path) as running:
        running.wait_until_at(copy.log()[-1][0])
        assert running.stop(signal.SIGTERM) == 0

    assert copy.log()[: len(log)] == log
    assert is_exact(copy)


def copied(path: Path, copy: Path, way: str) -> Path:
    """What the sqlite3 shell makes of a database."""
    shell = [str(SHELL), "-bail"]
    if way == "VACUUM":
        subprocess.run([*shell, path, "VACUUM"], check=True)
        return path
    if way == ".dump":
        dump = subprocess.run([*shell, path, way], check=True, capture_output=True)
        subprocess.run([*shell, copy], input=dump.stdout, check=True)
        return copy
    said = f"VACUUM INTO '{copy}'" if way == "VACUUM INTO" else f"{way} {copy}"
    subprocess.run([*shell, path, said], check=True, capture_output=True)
    return copy


# Sizes


@pytest.mark.parametrize(("letter", "kind"), [("x", str), ("é", str), ("x", bytes)])
def test_an_event_of_16_mib_folds_and_one_byte_more_does_not(
    database: Database, letter: str, kind: type
) -> None:
    database.created("A-1")
    for number, size in enumerate([16 * MIB, 16 * MIB + 1]):
        database.insert(f"B-{number}", event_of(size, letter, kind))
    database.appended("A-1", "after")

    projector("run", "--once", "-d", database.url)

    assert [*database.quarantine()] == [3]
    assert "larger than" in database.quarantine()[3]
    assert is_exact(database)


def event_of(size: int, letter: str, kind: type) -> str | bytes:
    """An event of exactly so many bytes, as JSON or MessagePack."""

    def of(content: str) -> bytes:
        message = {"content": content}
        if kind is bytes:
            data = {"messages": [message], "project": "B"}
            return bytes(msgpack.packb(event("session_created", data)))
        return (
            '{"type": "session_created", "data": {"project": "B", "messages": '
            f'[{{"content": "{content}"}}]}}}}'
        ).encode()

    width = len(letter.encode())
    room = size - len(of("x" * 70_000)) + 70_000
    data = of("x" * (room % width) + letter * (room // width))
    assert len(data) == size
    return data if kind is bytes else data.decode()


@pytest.mark.once
def test_a_session_of_10_000_appends_is_exact(database: Database) -> None:
    with daemon(database.url) as running:
        running.wait_for("started")
        database.created("A-1")
        append_many(database, 10_000)
        running.wait_until_at(10_001)
        assert running.stop(signal.SIGTERM) == 0

    assert len(database.contents("A-1")) == 10_000
    assert is_exact(database)


def append_many(database: Database, count: int) -> None:
    data = (
        msgpack.packb(event("session_append", {"messages": [{"content": str(number)}]}))
        for number in range(count)
    )
    database.insert_many((f"a{number}", "A-1", blob, T0) for number, blob in enumerate(data))


@pytest.mark.once
def test_a_log_of_100_000_sessions_is_exact(database: Database) -> None:
    created = msgpack.packb(event("session_created", {"project": "A", "messages": [{"n": 1}]}))
    rows = ((f"e{number}", f"A-{number}", created, T0) for number in range(100_000))
    database.insert_many(rows)
    projector("run", "--once", "-d", database.url)
    with daemon(database.url) as running:
        running.wait_for("started")
        for number in (0, 50_000, 99_999):
            database.insert(
                f"A-{number}",
                event("session_append", {"messages": [{"content": "one"}]}),
                id=f"more-{number}",
            )
        running.wait_until_at(100_003)
        assert running.stop(signal.SIGTERM) == 0

    keys = [f"A-{number}" for number in (*range(0, 100_000, 50), 99_999)]
    marks = ", ".join("?" * len(keys))
    events = [row for row in database.log() if row[2] in {*keys}]
    rows = database.sql(f"SELECT * FROM view WHERE substr(key, 9) IN ({marks})", *keys)
    assert len(events) == len(keys) + 3
    assert {row[1]: row for row in rows} == oracle.fold(events).views
    for table in ("view", "session_index"):
        assert database.sql(f"SELECT count(*) FROM {table}") == [(100_000,)]
    assert database.position() == 100_003
    assert database.quarantine() == {}


@pytest.mark.sqlite
def test_status_warns_of_a_write_ahead_log_that_a_reader_pins(database: Database) -> None:
    assert "write-ahead log is large" not in projector("status", "-d", database.url).stdout
    with closing(sqlite3.connect(database.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM event_log").fetchall()
        for _ in range(5):
            database.insert("A-1", bytes(15 * 1024 * 1024))

        assert "write-ahead log is large" in projector("status", "-d", database.url).stdout
