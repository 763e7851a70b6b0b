"""The errors that a user can cause: what happened, to which file or event, and what fixes it."""

import copyreg
import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

Lack = Literal["lock", "space", "limit", "database"]
"""What is waited for: a lock that somebody else holds, disk space, what a limit of the system keeps
back (memory, a thread, a file descriptor), or the database, for another reason."""


class ProjectorError(Exception):
    """Base of the errors that end a command with one line, a hint and an exit code, no traceback.

    A hint has this program's commands in backticks and without the database, `projector status`;
    the command line, which knows the database, adds it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, whatever the arguments were that made it: it may come of another process."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class CheckFailed(ProjectorError):
    """Exit code 1: the answer is no, such as no such session, or an event that would not fold."""


class OutputFailed(ProjectorError):
    """Exit code 1: standard output cannot be written; 141 where nobody reads it any more, as by
    `| head`, which is no finding."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.closed = error.errno == errno.EPIPE


class UsageError(ProjectorError):
    """Exit code 2: the command or the call is wrong, such as an invalid value."""

    exit_code = 2


class TransientError(ProjectorError):
    """Exit code 3: transient, safe to retry: database locked, disk full, file replaced."""

    exit_code = 3


class DatabaseUnavailable(TransientError):
    """Exit code 3: the database cannot be written or read for now, for want of what it `lacks`; a
    daemon waits and continues."""

    def __init__(self, message: str, hint: str = "", *, lacks: Lack = "database") -> None:
        super().__init__(message, hint)
        self.lacks: Lack = lacks


class InterventionRequired(ProjectorError):
    """Exit code 4: permanent, needs an operator: no database, unknown layout, newer schema, corrupt
    file, or a log that does not match its checkpoint."""

    exit_code = 4


class ProjectionFailed(InterventionRequired):
    """Exit code 4: one projection cannot continue; a daemon sets it aside and runs the others."""

    def __init__(self, projection: str, message: str, hint: str) -> None:
        super().__init__(f"{projection}: {message}", hint)
        self.projection = projection


class LostRace(Exception):
    """Another process moved the checkpoint: drop what is remembered of it and read it again."""


@contextmanager
def no_thread() -> Iterator[None]:
    """Raises `DatabaseUnavailable` where the block starts a thread or process and the system allows
    none."""
    try:
        yield
    except (RuntimeError, BlockingIOError) as error:
        what = "thread" if isinstance(error, RuntimeError) else "process"
        raise DatabaseUnavailable(
            f"no {what} can be started ({error}): a limit on tasks or memory is reached",
            "see what has so many (`ps -eLf`), or raise the limit (`ulimit -u`, `ulimit -v`;"
            " TasksMax= or MemoryMax= of a systemd unit; pids_limit of a container)",
            lacks="limit",
        ) from error


def run_out(error: OSError) -> DatabaseUnavailable | None:
    """The error of a process that has no file descriptor or memory left, None for any other."""
    if error.errno == errno.ENOMEM:
        return no_memory()
    if error.errno not in (errno.EMFILE, errno.ENFILE):
        return None
    return DatabaseUnavailable(
        f"no file descriptor is left ({os.strerror(error.errno)})",
        "see what is open (`lsof -p PID`), or raise the limit (`ulimit -n`; LimitNOFILE= of a"
        " systemd unit)",
        lacks="limit",
    )


def no_memory() -> DatabaseUnavailable:
    """The error of a process that has no memory left."""
    return DatabaseUnavailable(
        "no memory is left",
        "see what has it (`free -m`), or raise the limit (`ulimit -v`; MemoryMax= of a systemd"
        " unit; mem_limit of a container)",
        lacks="limit",
    )


def quoted(text: str | Path) -> str:
    """A path or a name, quoted for a shell.

    What a terminal would not show, or what could be taken for another part of a hint, is escaped
    as bash, ksh, zsh and busybox read it: `$'a\\x60b'`.
    """
    name = str(text)
    if name.isprintable() and not _AMBIGUOUS.search(name):
        return shlex.quote(name)
    escaped = _UNSAFE.sub(lambda one: _bytes_of(one[0]), name)
    return f"$'{escaped}'"


def many(count: int, what: str) -> str:
    """A number of things: `1 event`, `2,000 events`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def argument(text: str) -> str:
    """A name, quoted for a shell, as the last argument of a command of this program."""
    return f"-- {quoted(text)}" if text.startswith("-") else quoted(text)


def naming(database: str, hint: str, owner: Callable[[], str] | None = None) -> str:
    """Add `-d DATABASE`, quoted for a shell, to this program's commands in a hint.

    `owner` gives the name by which those open it that only an owner may run. Names within them must
    be `quoted`: nothing in such a name is taken for a command.
    """

    def named(command: re.Match[str]) -> str:
        words, dashes, last = command[0].partition(" -- ")
        name = owner() if owner and _CHANGES.match(words) else database
        return f"{words} -d {quoted(name)}{dashes}{last}"

    return _IN_BACKTICKS.sub(lambda commands: _COMMAND.sub(named, commands[0]), hint)


def pip_install(*what: str) -> str:
    """The command that installs something beside this program, in backticks for a hint."""
    return f"`{quoted(sys.executable)} -m pip install {' '.join(map(quoted, what))}`"


def upgrade() -> str:
    """How to get a newer version of this program, which no index has."""
    return f"upgrade projector: {pip_install('.')} in a newer clone of it"


@contextmanager
def about(database: str) -> Iterator[None]:
    """Let hints of what goes wrong in the block name a database, where a command has two."""
    try:
        yield
    except ProjectorError as error:
        error.hint = naming(database, error.hint)
        raise


_AMBIGUOUS: Final = re.compile(
    "[`\u115f\u1160\u180e\u3164\uffa0]|projector | -d | && | -- "  # the letters show nothing
)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9/._+,:@%=-]")
_IN_BACKTICKS: Final = re.compile("`[^`]+`")
_CHANGES: Final = re.compile(
    r"projector (run|replay|db setup|projection drop|quarantine (resubmit|dismiss))\b"
)
_COMMAND: Final = re.compile(r"\bprojector (?!.* -d )(?:(?! && )[^`])+")


def _bytes_of(character: str) -> str:
    odd = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", odd))
