"""Other users write events: a second uid in the group, with the daemon alive and dead."""

import os
import re
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from support import INSERT, PROJECTOR, T0, Daemon, Database, daemon, projector, users

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")

DAEMON_UID, WRITER_UID, STRANGER_UID = 60001, 60002, 60003
GROUP = 60010

# With a umask that would keep every new file to itself.
DAEMON = f"""{users.PROJECTOR}
become({DAEMON_UID}, {GROUP})
os.umask(0o077)
cli.main()
"""
WRITER = f"""{users.BECOME}
import sqlite3
path, uid, event_id, kind = sys.argv[1:]
become(int(uid), *([{GROUP}] if int(uid) == {WRITER_UID} else []))
os.umask(0o077)
data = '{{"type": "%s", "data": {{"project": "A", "messages": [{{"n": 1}}]}}}}' % kind
connection = sqlite3.connect(path, timeout=30)
with connection:
    connection.execute("{INSERT}", (event_id, "A-1", data, {T0}))
"""


@pytest.fixture
def shared() -> Iterator[Database]:
    """A database set up for a group, its daemon one of the group's users."""
    folder = Path(tempfile.mkdtemp(prefix="projector-test-"))
    folder.chmod(0o755)
    path = folder / "data" / "local.db"
    projector("db", "setup", "-d", path, "--group", str(GROUP))
    for entry in (path.parent, path):
        os.chown(entry, DAEMON_UID, -1)
    path.parent.chmod(0o2770)  # chown took the setgid bit away
    yield Database(path)
    shutil.rmtree(folder)


def unprivileged(database: Database) -> AbstractContextManager[Daemon]:
    return daemon(database.path, code=DAEMON)


def insert_as(uid: int, database: Database, event_id: str) -> str:
    """One event by another user; returns what the writer's process complained of."""
    kind = "session_created" if event_id == "first" else "session_append"
    arguments = [str(database.path), str(uid), event_id, kind]
    done = subprocess.run(
        [sys.executable, "-c", WRITER, *arguments], stderr=subprocess.PIPE, text=True, check=False
    )
    return done.stderr


def test_database_and_folder_are_the_groups(shared: Database) -> None:
    folder, file = shared.path.parent.stat(), shared.path.stat()

    assert stat.S_IMODE(folder.st_mode) == 0o2770
    assert stat.S_IMODE(file.st_mode) == 0o660
    assert folder.st_gid == file.st_gid == GROUP


def test_a_second_user_writes_with_the_daemon_alive_and_dead(shared: Database) -> None:
    with unprivileged(shared) as running:
        running.wait_for("started")
        assert insert_as(WRITER_UID, shared, "first") == ""
        running.wait_until_at(1)
        running.stop(signal.SIGKILL)
    assert insert_as(WRITER_UID, shared, "dead") == ""
    with unprivileged(shared) as running:
        running.wait_until_at(2)
        assert insert_as(WRITER_UID, shared, "alive again") == ""
        running.wait_until_at(3)
        assert running.stop(signal.SIGTERM) == 0
    assert insert_as(WRITER_UID, shared, "stopped") == ""
    with unprivileged(shared) as running:
        running.wait_until_at(4)

    assert len(shared.view("A-1")["messages"]) == 4


def test_a_stranger_may_not_write(shared: Database) -> None:
    assert "unable to open database file" in insert_as(STRANGER_UID, shared, "first")
    assert shared.log() == []


def test_set_up_again_by_the_daemons_user_beside_files_of_another(shared: Database) -> None:
    """As a service does before each start."""
    with closing(sqlite3.connect(shared.path)) as writer:
        writer.execute("SELECT * FROM event_log").fetchall()
        for suffix in ("-wal", "-shm"):
            os.chown(f"{shared.path}{suffix}", WRITER_UID, -1)
        code = DAEMON.replace("cli.main()", "cli.app(sys.argv[1:])")
        arguments = ["db", "setup", "-d", str(shared.path), "--group", str(GROUP)]
        done = projector(*arguments, code=code)

    assert "nothing to do" in done.stdout, done.stderr


def test_a_folder_that_holds_more_is_not_opened_to_a_group(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").touch()
    mode = tmp_path.stat().st_mode

    refused = projector("db", "setup", "-d", tmp_path / "local.db", "--group", "0", check=2)

    assert "diary.txt" in refused.stderr
    assert tmp_path.stat().st_mode == mode
    assert not (tmp_path / "local.db").exists()


def test_a_folder_that_is_the_groups_already_may_hold_more(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    os.chown(tmp_path, -1, os.getegid())
    tmp_path.chmod(0o2770)
    path = tmp_path / "local.db"

    projector("db", "setup", "-d", path, "--group", str(os.getegid()))

    assert path.stat().st_mode & 0o777 == 0o660


def test_a_group_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "data" / "local.db"

    refused = projector("db", "setup", "-d", path, "--group", "no-such-group", check=2)

    assert "groupadd no-such-group" in refused.stderr


def as_daemon(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return projector(*arguments, code=DAEMON, check=None)


def lock_of(database: Database) -> Path:
    return database.path.with_name("local.db-projector.lock")


def test_root_acts_as_the_owner_of_a_folder_that_others_can_write(shared: Database) -> None:
    """Or, where that user cannot run this installation, refuses and says how it is done."""
    with closing(sqlite3.connect(shared.path)) as writer:
        writer.execute("SELECT * FROM event_log").fetchall()
        done = projector("replay", "-d", shared.path, check=None)

    if done.returncode == 4:
        command = f"`setpriv --reuid={DAEMON_UID} --regid={GROUP} --clear-groups -- projector "
        assert "root does not open" in done.stderr
        assert command in done.stderr
        assert not lock_of(shared).exists()
    else:
        assert lock_of(shared).stat().st_uid == DAEMON_UID


def test_root_becomes_the_owner_for_good(shared: Database) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom session_projector.worker import linux\n"
        f"seen = linux.become({DAEMON_UID}, {GROUP}, [Path(sys.argv[1])])\n"
        "print(seen, os.getresuid(), os.getresgid(), os.getgroups())"
    )

    def become(file: Path) -> str:
        return projector(file, code=code).stdout.strip()

    ids = ((DAEMON_UID,) * 3, (GROUP,) * 3, [GROUP])
    own = shared.path.with_name("of-root")
    own.touch(0o600)

    assert become(shared.path) == f"True {ids[0]} {ids[1]} {ids[2]}"
    assert become(own).startswith("False (0, 0, 0) (0, 0, 0)")


def test_a_link_that_another_user_made_leads_nobody_elsewhere(shared: Database) -> None:
    elsewhere = shared.path.parent.parent / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    shared.path.unlink()
    shared.path.symlink_to(elsewhere / "made.db")
    os.chown(shared.path, WRITER_UID, WRITER_UID, follow_symlinks=False)

    refused = projector("db", "setup", "-d", shared.path, check=4).stderr
    as_owner = as_daemon("db", "setup", "-d", shared.path)

    said = f"{shared.path} is a symbolic link of user {WRITER_UID}, and leads to '{elsewhere}"
    assert said in refused
    assert as_owner.returncode == 4
    assert said in as_owner.stderr
    assert not list(elsewhere.iterdir())


def test_a_link_of_ones_own_is_followed(shared: Database) -> None:
    link = shared.path.with_name("link.db")
    link.symlink_to(shared.path)
    os.chown(link, DAEMON_UID, -1, follow_symlinks=False)

    assert as_daemon("run", "--once", "-d", link).returncode == 0


def test_root_among_others_in_a_folder_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data" / "local.db"
    projector("db", "setup", "-d", path, "--group", str(GROUP))

    for command in (["status"], ["run", "--once"], ["db", "setup"]):
        refused = projector(*command, "-d", path, check=4).stderr
        assert "other users can write its folder" in refused
        assert f"`chown USER {path.parent}`" in refused


def test_the_lock_is_shared_with_the_group_too(shared: Database) -> None:
    lock_of(shared).touch(0o600)
    os.chown(lock_of(shared), DAEMON_UID, DAEMON_UID)

    done = as_daemon("db", "setup", "-d", shared.path, "--group", str(GROUP))
    assert done.returncode == 0, done

    found = lock_of(shared).stat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (GROUP, 0o660)


def test_a_lock_that_cannot_be_opened_is_fixed_by_the_command(shared: Database) -> None:
    shared.insert("session:A-1", {"type": "of no concern"})
    lock_of(shared).touch(0o600)
    os.chown(lock_of(shared), 0, 0)
    lock_of(shared).chmod(0o600)

    with unprivileged(shared) as running, pytest.raises(AssertionError, match="mv -T") as refused:
        running.wait_for("started")
    (command,) = re.findall("`([^`]*)`", str(refused.value))
    subprocess.run(["bash", "-euc", command], check=True)

    assert "cannot be opened (Permission denied)" in str(refused.value)
    with unprivileged(shared) as running:
        running.wait_for("started")


def test_what_is_no_file_in_the_place_of_the_lock_is_said(database: Database) -> None:
    lock_of(database).mkdir()

    said = projector("run", "-d", database.path, check=4).stderr

    assert "local.db-projector.lock is a folder" in said
    assert "move it aside: `mv -T " in said


HOLD = f"""{users.BECOME}
import fcntl
held = os.open(sys.argv[1], os.O_RDONLY)
become({STRANGER_UID})
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


@pytest.fixture
def readable(shared: Database) -> Database:
    """Others may read it, and its lock is as earlier versions made it."""
    lock_of(shared).touch(0o644)
    for file, mode in ((shared.path.parent, 0o755), (shared.path, 0o644), (lock_of(shared), 0o644)):
        os.chown(file, DAEMON_UID, DAEMON_UID)
        file.chmod(mode)
    return shared


def test_a_reader_who_holds_the_lock_keeps_nobody_from_folding(readable: Database) -> None:
    command = [sys.executable, "-c", HOLD, str(lock_of(readable))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with unprivileged(readable) as running:
            running.wait_for("started")
            assert lock_of(readable).stat().st_mode & 0o777 == 0o600
        holder.kill()


def test_a_reader_is_told_of_the_daemon_whose_lock_it_cannot_open(readable: Database) -> None:
    code = DAEMON.replace(f"become({DAEMON_UID}, {GROUP})", f"become({STRANGER_UID})")
    with unprivileged(readable) as running:
        running.wait_for("started")
        said = projector("status", "-d", readable.path, code=code).stdout

    assert f"process {running.process.pid}" in said


def test_root_is_not_led_by_one_user_into_the_folder_of_another(shared: Database) -> None:
    """As the owner of that folder it would do there what the first user never may."""
    theirs = shared.path.parent.parent / "theirs"
    theirs.mkdir(mode=0o755)
    link = theirs / "data"
    link.symlink_to(shared.path.parent)
    for file in (theirs, link):
        os.chown(file, STRANGER_UID, STRANGER_UID, follow_symlinks=False)
    shared.path.parent.chmod(0o700)

    code = "from session_projector.worker.storage import open as storage\nimport sys"
    become = (
        f"{code}\ntry: storage.act_as_owner(sys.argv[1])\n"
        "except Exception as refused: sys.exit(str(refused))"
    )

    refused = projector("db", "setup", "-d", link / "local.db", "--group", str(GROUP), check=4)
    nobody = projector(link / "local.db", code=become, check=None)

    said = f"{link} is a symbolic link of user {STRANGER_UID}"
    assert said in refused.stderr
    assert said in nobody.stderr  # before root is anybody else
    assert stat.S_IMODE(shared.path.parent.stat().st_mode) == 0o700


def test_a_name_with_a_step_back_out_of_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "inner"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)

    projector("db", "setup", "-d", tmp_path / "link" / ".." / "local.db")
    projector("run", "--once", "-d", f"{tmp_path}/link/../local.db")

    assert (folder.parent / "local.db").exists()


def test_an_absolute_name_needs_no_working_folder(tmp_path: Path) -> None:
    """As in a container whose working folder is not there."""
    projector("db", "setup", "-d", tmp_path / "local.db")
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; exec {shlex.join(PROJECTOR)} db status -d {tmp_path}/local.db"

    done = subprocess.run(
        ["sh", "-c", command], cwd=gone, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
