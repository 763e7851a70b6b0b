"""The server's process: what it listens on, and how it ends."""

import asyncio
import os
import socket
from types import FrameType
from typing import ClassVar, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from session_projector.projections.event import MAX_NAME_BYTES
from session_projector.worker.board.address import Address
from session_projector.worker.board.app import Board, application

NICE: Final = 10
_MOST_CONNECTIONS: Final = 400
_MOST_IDLE: Final = 100
_HEAD_WITHIN_S: Final = 10
_HEAD_BYTES: Final = 4 * MAX_NAME_BYTES
"""Three times the longest id of a session is that in an address. `_MOST_IDLE` may have so much."""
_END_WITHIN_S: Final = 5


class _Connection(H11Protocol):
    """Of those that ask for nothing the oldest end, where there are many or they wait for long: or
    anybody could keep all others out."""

    idle: ClassVar[dict["_Connection", None]] = {}
    """The oldest first."""
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEAD_WITHIN_S, self._end_if_idle)
        self._idles()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle.pop(self, None)

    def on_response_complete(self) -> None:
        self._idles()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        if self._late:
            self._late.cancel()
        super().connection_lost(exc)

    def _idles(self) -> None:
        self.idle[self] = None
        if len(self.idle) > _MOST_IDLE:
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            oldest.transport.abort()

    def _end_if_idle(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class _Server(uvicorn.Server):
    """Ends its streams when it ends, which would be waited for."""

    def __init__(self, config: uvicorn.Config, board: Board) -> None:
        super().__init__(config)
        self._board = board

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        self.force_exit, self.should_exit = self.should_exit, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._board.hub.close()
        await super().shutdown(sockets)


def serve(board: Board, opened: socket.socket, address: Address, token: str | None) -> None:
    """Serve until a signal."""
    os.nice(NICE)  # whoever looks on takes nothing from the daemon and the writers
    config = uvicorn.Config(
        application(board, address, token),
        log_config=None,
        access_log=False,  # the address of the login has the token in it
        lifespan="off",
        ws="none",
        loop="asyncio",
        http=_Connection,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_END_WITHIN_S,
    )
    _Server(config, board).run(sockets=[opened])
