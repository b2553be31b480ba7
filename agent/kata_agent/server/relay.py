"""Carries connections of a vsock port to the unix socket that grpcio serves.

PyPI's grpcio has no vsock compiled in (docs/decisions/0004).
"""

import asyncio
import socket
from typing import Final

from kata_common.relay import Pair

__all__ = ["Relay"]

MAX_CONNECTIONS: Final = 64


class Relay:
    """Connections to `target`, a unix socket path. Give `accepted` to an Acceptor."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pairs: set[Pair] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def accepted(self, stream: socket.socket, _: int) -> None:
        """Take a connection; it is closed where there are too many or nobody serves the target."""
        if len(self._pairs) >= MAX_CONNECTIONS:
            stream.close()
            return
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inner.connect(self._target)
        except OSError:
            inner.close()
            stream.close()
            return
        pair = Pair(stream, inner, self._ended)
        self._pairs.add(pair)
        self._idle.clear()

    def _ended(self, pair: Pair) -> None:
        self._pairs.discard(pair)
        if not self._pairs:
            self._idle.set()

    async def drained(self) -> None:
        """Return when every connection has ended with all its bytes handed on."""
        for pair in self._pairs:
            pair.linger()
        await self._idle.wait()

    def close(self) -> None:
        """Cut every connection."""
        for pair in list(self._pairs):
            pair.cut()
