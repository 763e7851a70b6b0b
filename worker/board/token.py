"""The secret that a browser or a script needs: made once for each user, readable by no other."""

import hmac
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

from session_projector.worker.errors import InterventionRequired, quoted

TICKET_S: Final = 60


def kept(folder: Path) -> tuple[str, Path]:
    """The token in a folder, and its file; both are made if they are not there."""
    file = folder / "board-token"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_shared(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(file, flags, 0o600), "w") as made:
            made.write(f"{secrets.token_urlsafe(32)}\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise InterventionRequired(
            f"the board's token cannot be kept in {folder} ({error.strerror})",
            "name a folder that you may write to: set XDG_STATE_HOME",
        ) from None
    return _read(file), file


def _refuse_shared(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise InterventionRequired(
            f"{folder} is not yours alone: others could put another token there",
            f"name a folder of your own (XDG_STATE_HOME), or take it back:"
            f" `chmod go-w {quoted(folder)}`",
        )


def _read(file: Path) -> str:
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as opened:
            found = os.fstat(opened.fileno())
            others = stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid()
            others = others or not stat.S_ISREG(found.st_mode)
            token = opened.read(200).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InterventionRequired(
            f"{file} cannot be read ({error})", f"delete it: `rm {quoted(file)}`"
        ) from None
    if others or len(token) < 32 or not token.isascii():
        raise InterventionRequired(
            f"{file} is not a secret of yours: others may read it, or it is too short",
            f"delete it, so that another is made: `rm {quoted(file)}`",
        )
    return token


def derived(token: str, name: str) -> str:
    """Another secret, by which nobody finds the token."""
    return hmac.digest(token.encode(), name.encode(), "sha256").hex()


def ticket(token: str) -> str:
    """What lets a browser in that is started in the next minute: its command line, which all users
    of the machine can read, must not have the token in it."""
    until = str(int(time.time()) + TICKET_S)
    return f"{until}.{derived(token, f'ticket {until}')}"


def is_ticket(given: str, token: str) -> bool:
    until, _, secret = given.partition(".")
    return (
        until.isascii()
        and until.isdecimal()
        and time.time() <= int(until[:12]) <= time.time() + TICKET_S
        and hmac.compare_digest(secret.encode(), derived(token, f"ticket {until}").encode())
    )
