"""What neighbours put beside a database: it is named and touched by nobody, also not by a cure."""

import os
import re
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support import INSERT, T0, Database, daemon, projector
from support.folding import examine

from session_projector.worker.storage.sqlite.lock import LOCK_SUFFIX, DaemonLock
from session_projector.worker.storage.sqlite.schema import migrate as schema
from session_projector.worker.storage.sqlite.sidecars import SIDECARS

COMMANDS = (["status"], ["db", "setup"], ["run"])
SAMPLE = Path(__file__).parents[2] / "support" / "kanbatte-sample.db"
MAGIC = bytes.fromhex("d9d505f920a163d7")
SECTOR = 512


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[Path]:
    """A file that is none of the database's: nothing may happen to it."""
    path = tmp_path / "elsewhere"
    path.write_text("secret\nmore\n")
    path.chmod(0o600)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_text() == "secret\nmore\n"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def beside(database: Database, suffix: str) -> Path:
    return database.path.with_name(database.path.name + suffix)


def link(path: Path, bystander: Path) -> None:
    path.symlink_to(bystander)


def dangling(path: Path, bystander: Path) -> None:
    path.symlink_to(bystander.with_name("not-there"))


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def hard_link(path: Path, bystander: Path) -> None:
    path.hardlink_to(bystander)


def folder(path: Path, _: Path) -> None:
    path.mkdir()


Put = Callable[[Path, Path], None]
PUT = [link, dangling, fifo, hard_link, folder]


def cured(text: str, database: Database) -> None:
    """Run the commands that a message gives."""
    for command in re.findall("`((?:rm|mv) [^`]*)`", text):
        subprocess.run(["bash", "-euc", command], check=True, cwd=database.path.parent)


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("suffix", SIDECARS)
def test_what_is_no_plain_file_is_named_by_all_and_removed_by_the_cure(
    database: Database, bystander: Path, suffix: str, put: Put
) -> None:
    file = beside(database, suffix)
    put(file, bystander)

    for command in COMMANDS:
        said = projector(*command, "-d", database.path, check=4, timeout=30).stderr
        assert f"{file} is " in said
    found = [one for one in examine(database.path) if one.check == "rights"]
    assert [one.level for one in found] == ["fail"]
    assert f"{file} is " in found[0].found
    beside(database, f"{suffix}.aside").mkdir()
    beside(database, f"{suffix}.aside").joinpath("x").touch()
    cured(found[0].fix, database)

    projector("run", "--once", "-d", database.path)
    assert not bystander.with_name("not-there").exists()


@pytest.mark.parametrize("put", PUT)
def test_a_lock_that_is_no_plain_file_is_refused_and_replaced_by_the_cure(
    database: Database, bystander: Path, put: Put
) -> None:
    lock = beside(database, LOCK_SUFFIX)
    put(lock, bystander)

    said = projector("run", "-d", database.path, check=4, timeout=30).stderr
    (found,) = [one for one in examine(database.path) if one.check == "rights"]

    assert f"{lock} is " in said
    assert f"{lock} is " in found.found
    cured(found.fix, database)
    with daemon(database.path) as running:
        running.wait_for("started")
    assert not bystander.with_name("not-there").exists()


def test_a_lock_that_holds_something_else_is_left_alone(database: Database) -> None:
    lock = beside(database, LOCK_SUFFIX)
    lock.write_text("secret\n")
    lock.chmod(0o640)

    said = projector("run", "-d", database.path, check=4, timeout=30).stderr

    assert "holds something else than the number of a daemon" in said
    assert lock.read_text() == "secret\n"
    assert lock.stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize(
    ("database_mode", "mode"),
    [(0o644, 0o600), (0o660, 0o660), (0o664, 0o660), (0o4600, 0o600), (0o666, 0o666)],
)
def test_only_who_can_write_the_database_can_open_the_lock(
    database: Database, database_mode: int, mode: int
) -> None:
    lock = beside(database, LOCK_SUFFIX)
    lock.touch(0o644)
    database.path.chmod(database_mode)

    held = DaemonLock(database.path)
    assert held.acquire()
    held.release()

    assert lock.stat().st_mode & 0o7777 == mode


def hot_journal(database: Database, named: bytes = b"") -> bytes:
    """A journal without any page, as SQLite rolls it back; it may name a super-journal."""
    pages = database.path.stat().st_size // 4096
    head = MAGIC + struct.pack(">IIIII", 0, 0, pages, SECTOR, 4096)
    name = struct.pack(">I", 0x40000000 // 4096 + 1) + named
    name += struct.pack(">II", len(named), sum(named) & 0xFFFFFFFF) + MAGIC
    return head.ljust(SECTOR, b"\0") + (name if named else b"")


def test_a_journal_that_names_a_file_to_delete_is_refused(
    database: Database, bystander: Path
) -> None:
    journal = beside(database, "-journal")
    journal.write_bytes(hot_journal(database, os.fsencode(bystander)))

    for command in COMMANDS:
        said = projector(*command, "-d", database.path, check=4).stderr
        assert f"{journal} names '{bystander}', which SQLite would delete" in said
    cured(said, database)
    projector("status", "-d", database.path)


@contextmanager
def in_wal(database: Database) -> Iterator[None]:
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("SELECT * FROM event_log").fetchall()
        yield


def test_one_byte_in_the_place_of_the_journal_is_named(database: Database) -> None:
    journal = beside(database, "-journal")
    with in_wal(database):
        journal.write_bytes(b"x")
        for command in COMMANDS:
            said = projector(*command, "-d", database.path, check=4).stderr
            assert f"{journal} is no journal of SQLite's" in said
        assert str(journal) in "".join(one.found for one in examine(database.path))
        cured(said, database)
        projector("status", "-d", database.path)


@pytest.mark.parametrize("kind", ["empty", "done with", "hot", "of two databases"])
def test_a_journal_of_sqlites_own_is_left_to_it(database: Database, kind: str) -> None:
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA journal_mode = PERSIST")
    content = {
        "empty": b"",
        "done with": bytes(SECTOR),
        "hot": hot_journal(database),
        "of two databases": hot_journal(database, os.fsencode(database.path) + b"-mj0A1B2C9FF"),
    }
    beside(database, "-journal").write_bytes(content[kind])

    projector("run", "--once", "-d", database.path)


def test_a_daemon_that_is_alive_goes_on_beside_such_a_file(database: Database) -> None:
    with daemon(database.path) as running:
        running.wait_for("started")
        writer = sqlite3.connect(database.path)
        with closing(writer):
            writer.execute("SELECT * FROM event_log").fetchall()
            beside(database, "-journal").symlink_to("/etc/passwd")
            values = ("first", "session:A-1", "{}", T0)
            writer.execute(INSERT, values)
            writer.commit()
            running.wait_for("batch_committed")
        assert running.process.poll() is None


def test_the_copy_of_an_adopted_database_is_made_where_nobody_else_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "local.db"
    shutil.copyfile(SAMPLE, path)
    path.chmod(0o4640)
    left = tmp_path / "local.db.copying-999999999-x"
    left.mkdir(0o700)
    (left / "local.db").touch()
    (tmp_path / "local.db.copying-999999998").symlink_to(left)
    seen = []

    def connect(*arguments: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = original(*arguments, **options)  # type: ignore[arg-type]
        connection.set_trace_callback(traced)
        return connection

    def traced(statement: str) -> None:
        if "CREATE TABLE IF NOT EXISTS umzug_meta" in statement:
            seen.extend((one.name, one.stat().st_mode & 0o7777) for one in tmp_path.iterdir())

    original = schema.connect
    monkeypatch.setattr(schema, "connect", connect)
    done = schema.setup(path)

    assert done.backup is not None
    copies = [mode for name, mode in seen if ".copying-" in name]
    assert copies == [0o700]
    assert Path(done.backup).stat().st_mode & 0o7777 == 0o640
    assert not list(tmp_path.glob("*.copying-*"))


@pytest.mark.parametrize("suffix", ["-wal", "-shm", LOCK_SUFFIX])
@pytest.mark.parametrize("put", [link, hard_link])
def test_nothing_is_shared_through_a_link(
    tmp_path: Path, bystander: Path, suffix: str, put: Put
) -> None:
    path = tmp_path / "data" / "local.db"
    schema.setup(path)
    put(path.with_name(f"local.db{suffix}"), bystander)

    group = str(os.getegid())
    refused = projector("db", "setup", "-d", path, "--group", group, check=4, timeout=30)

    assert f"local.db{suffix} is " in refused.stderr
