"""The secret that a browser or a script needs: made once for each user, readable by no other."""

import hmac
import os
import secrets
import stat
from pathlib import Path

from session_projector.worker.errors import InterventionRequired, quoted


def kept(folder: Path) -> tuple[str, Path]:
    """The token in a folder, and its file; both are made if they are not there."""
    file = folder / "board-token"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def _read(file: Path) -> str:
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW)) as opened:
            found = os.fstat(opened.fileno())
            others = stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid()
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


def cookie_of(token: str, name: str) -> str:
    """The value of the cookie of this name: browsers show it to each port of this machine, so that
    it must not be the token itself."""
    return hmac.digest(token.encode(), name.encode(), "sha256").hex()
