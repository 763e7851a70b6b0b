"""The server's process: what it listens on, and how it ends."""

import os
import socket
from types import FrameType
from typing import Final

import uvicorn

from session_projector.worker.board.address import Address
from session_projector.worker.board.app import Board, application

NICE: Final = 10
_MOST_CONNECTIONS: Final = 300
_HEAD_BYTES: Final = 32 * 1024
_END_WITHIN_S: Final = 5


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
        http="h11",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_END_WITHIN_S,
    )
    _Server(config, board).run(sockets=[opened])
