"""Where the board listens: a host and port, or the path of a Unix socket."""

import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from session_projector.worker.errors import TransientError, UsageError

_PATTERN: Final = re.compile(r"(?:\[([^][/]+)\]|([^][/:]+)):([0-9]{1,5})")
_UNIX: Final = "unix:"
_TRANSIENT: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, socket.EAI_AGAIN}


class Address(msgspec.Struct, frozen=True):
    """`path` is that of a Unix socket, None for a port."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine can reach it."""
        if self.path is not None or self.host.lower() == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def url(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parsed(text: str) -> Address:
    """Raises `UsageError`."""
    if text.startswith(_UNIX) and text != _UNIX:
        return Address(path=os.path.abspath(text.removeprefix(_UNIX)))
    match = _PATTERN.fullmatch(text)
    if not match or int(match[3]) > 65535:
        raise UsageError(
            f"--listen {text} is not an address",
            "give host:port, such as 127.0.0.1:9188, or unix:PATH",
        )
    return Address(match[1] or match[2], int(match[3]))


@contextmanager
def listening(address: Address) -> Iterator[tuple[socket.socket, Address]]:
    """A socket that listens there, and the address with its port, for as long as the block takes;
    raises `UsageError` and `TransientError`."""
    opened, address = _bound(address)
    file = os.lstat(address.path) if address.path else None
    with opened:
        try:
            yield opened, address
        finally:
            with suppress(FileNotFoundError):
                if address.path and file and os.path.samestat(file, os.lstat(address.path)):
                    os.unlink(address.path)


def _bound(address: Address) -> tuple[socket.socket, Address]:
    try:
        if address.path is not None:
            return _bound_to_path(address.path), address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        opened = socket.create_server((address.host, address.port), family=family, backlog=256)
        return opened, Address(address.host, opened.getsockname()[1])
    except OSError as error:
        what = f"cannot listen on {address.url.removeprefix('http://')} ({error.strerror})"
        if error.errno in _TRANSIENT:
            hint = "another process may use it: give another address, or stop that process"
            raise TransientError(what, hint) from None
        hint = "give an address of this machine, such as --listen 127.0.0.1:9188"
        raise UsageError(what, hint) from None


def _bound_to_path(path: str) -> socket.socket:
    """A socket for this user alone; what a process that is gone has left there is replaced."""
    opened = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError, ConnectionRefusedError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            try:
                opened.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            opened.close()
            opened = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        opened.bind(path)
    finally:
        os.umask(before)
    opened.listen(256)
    return opened
