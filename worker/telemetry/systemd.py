"""systemd's notify protocol, sd_notify(3): datagrams to the socket that it names."""

import socket
import time
from contextlib import suppress
from typing import Final

from session_projector.worker.telemetry.state import DaemonState

EVERY_S: Final = 1.0
EXTEND_S: Final = 60
"""How much longer a start may take; repeated during the first catch-up."""


class Notifier:
    """Sends a daemon's signs of life to systemd; does nothing without `address`.

    READY once the tail has caught up or stands by, STATUS with position and lag, and WATCHDOG, at
    most every second or every half of `watchdog_s`.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._every_s = EVERY_S if watchdog_s is None else min(EVERY_S, watchdog_s / 2)
        self._watchdog = watchdog_s is not None
        self._ready = False
        self._last = -self._every_s
        self._status = ""

    def notify(self, state: DaemonState) -> None:
        if state.stopping:
            self._send(["STOPPING=1"])
            return
        # READY is final, even if a daemon that stood by has to catch up when it takes over.
        ready = self._ready or state.standing_by or state.caught_up
        now = time.monotonic()
        if now - self._last < self._every_s and ready == self._ready:
            return
        self._last = now
        status = _status(state)
        lines = [f"STATUS={status}"] if status != self._status else []
        if not ready:
            lines.append(f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1_000_000}")
        elif not self._ready:
            lines.append("READY=1")
        if self._watchdog:
            lines.append("WATCHDOG=1")
        self._ready, self._status = ready, status
        self._send(lines)

    def _send(self, lines: list[str]) -> None:
        if not self._address or not lines:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # systemd may be gone, which must not stop the daemon.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.setblocking(False)
            connection.sendto("\n".join(lines).encode(), address)


def _status(state: DaemonState) -> str:
    if state.standing_by:
        return "standing by for another daemon"
    progress = sorted(state.progress.items())
    position = min((at.position for _, at in progress), default=0)
    lag = max(state.newest - position, 0)
    doing = [str(state.trouble)] if state.trouble else []
    doing += [f"{name} is being rebuilt" for name, at in progress if at.rebuild]
    doing += [f"{name} is failing" for name, at in progress if at.failing]
    return "; ".join([f"position {position}, lag {lag} events", *doing])
