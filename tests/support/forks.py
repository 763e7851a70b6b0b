"""Processes of the program, forked by one that has imported it: imports take longer than most
commands do. `serve` runs in that one."""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

START = "import runpy, sys; runpy.run_path(sys.argv[1])['serve'](int(sys.argv[2]))"
CHANGES = ("PYTEST_CURRENT_TEST",)
"""What the environment may have otherwise than when the first of them was started."""


class Forked:
    """A process of the program, with as much of `subprocess.Popen` as is used of it."""

    def __init__(
        self,
        arguments: Sequence[str],
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        folder: str | None = None,
        code: str = "",
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`code` is what it runs instead of the program, `more` what it has in its environment
        besides."""
        self.returncode: int | None = None
        self.stderr: IO[str] | None = None
        self._told, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        request = os.memfd_create("request")
        try:
            asked = [folder or os.getcwd(), code, {**(more or {})}, *arguments]
            os.write(request, json.dumps(asked).encode())
            descriptors = [theirs.fileno(), request, stdin, stdout, stderr]
            socket.send_fds(_server(), [b" "], descriptors)
        finally:
            os.close(request)
            theirs.close()
        self.pid = int(self._told.recv(20))

    def poll(self) -> int | None:
        if self.returncode is None:
            self._told.setblocking(False)
            with suppress(BlockingIOError):
                self._learn()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self._learn()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("projector", timeout or 0) from None
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        said = self.stderr.read() if self.stderr and not self.stderr.closed else ""
        self.wait(timeout)
        if self.stderr:
            self.stderr.close()
        return None, said

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _learn(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(self._told.recv(20)))
        self._told.close()


def is_as_it_was() -> bool:
    """Whether the environment is the one that these processes have."""
    return _environment() == _at_first()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in CHANGES}


@cache
def _at_first() -> dict[str, str]:
    return _environment()


@cache
def _server() -> socket.socket:
    """The channel to it; it ends with this process."""
    _at_first()
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-P", "-c", START, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def serve(channel: int) -> None:
    import gc
    import importlib
    import pkgutil

    import anyio
    import uvicorn.lifespan.off
    import uvicorn.protocols.http.h11_impl  # noqa: F401  # as a board does

    import session_projector

    sys.path.append(str(Path(__file__).parents[1]))  # for `--projection support.extensions:…`
    # Who became another user may not read any more what is imported late, as anyio does.
    for package in (session_projector, anyio):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".tests", "._trio", ".pytest_plugin")):
                importlib.import_module(module.name)
    for engine in ([], ["sqlite"], ["postgres"]):  # as each is asked for: others may not read it
        session_projector.migrations.load(*engine)
    for name in _imported_late():
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # so that no collection of a process writes to what it shares
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=channel) as asked:
        while True:
            sent, descriptors, *_ = socket.recv_fds(asked, 1, 5)
            if not sent:
                return
            if not os.fork():
                break
            for descriptor in descriptors:
                os.close(descriptor)
    _watch(*descriptors)


def _imported_late() -> list[str]:
    """What is imported first by a fold: who became another user may not read it any more."""
    ours, theirs = os.pipe()
    if pid := os.fork():
        os.close(theirs)
        with os.fdopen(ours) as names:
            late = names.read().split()
        os.waitpid(pid, 0)
        return late
    from session_projector.worker.cli import main as cli

    with suppress(BaseException), tempfile.TemporaryDirectory() as folder:
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        before = {*sys.modules}
        command = ["run", "--once", "--create", "-d", f"{folder}/local.db"]
        cli.app(command, standalone_mode=False)
        os.write(theirs, " ".join(sys.modules.keys() - before).encode())
    os._exit(0)


def _watch(told: int, request: int, *streams: int) -> None:
    """Fork the process itself, and tell its number, and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (pid := os.fork()):
        code = _become(request, streams)
        os.close(told)
        _run(code)
    for descriptor in (request, *streams):
        os.close(descriptor)
    with socket.socket(fileno=told) as answer:
        answer.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        answer.send(str(status).encode())
    os._exit(0)


def _run(instead: str) -> None:
    """Be the program, or what runs instead, to its end, without taking apart what was imported:
    that would write to all that is shared."""
    code: object = 0
    try:
        if instead:
            exec(compile(instead, "<code>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module("session_projector", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _become(request: int, streams: Sequence[int]) -> str:
    size = os.fstat(request).st_size
    folder, code, more, *arguments = json.loads(os.pread(request, size, 0))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for descriptor in {request, *streams}:
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.update(more)
    sys.argv[1:] = arguments
    return str(code)
