"""The localhost port: streams of the host that go to a port of the guest's localhost (port-forwarding).

Two bytes in, the port (big-endian); one byte out, 0 where somebody took the connection, and then its bytes, both ways.
Anything else than 0 is a refusal (`kata_common.contract`).
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final

from kata_common.contract import CONNECTED, LOCALHOST_PORT, REFUSED
from kata_common.relay import Pair

__all__ = ["PortServer"]

MAX_CONNECTIONS: Final = 256
# Seconds for the connect; whoever listens on localhost takes it at once.
CONNECT_WITHIN: Final = 10.0
# As `localhost` is looked up.
_ADDRESSES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class PortServer:
    """Give `accepted` to an Acceptor."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: set[Pair] = set()

    def accepted(self, stream: socket.socket, _: int) -> None:
        if len(self._tasks) + len(self._pairs) >= MAX_CONNECTIONS:
            stream.close()
            return
        task = self._loop.create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: socket.socket) -> None:
        inner = None
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                wanted = await self._loop.sock_recv(stream, LOCALHOST_PORT.size)
                if len(wanted) == 1:
                    wanted += await self._loop.sock_recv(stream, 1)
                if len(wanted) == LOCALHOST_PORT.size:
                    inner = await self._connect(LOCALHOST_PORT.unpack(wanted)[0])
                await self._loop.sock_sendall(stream, REFUSED if inner is None else CONNECTED)
        except (OSError, asyncio.CancelledError) as error:
            if inner is not None:
                inner.close()
            stream.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        if inner is None:
            stream.close()
            return
        self._pairs.add(Pair(stream, inner, self._pairs.discard))

    async def _connect(self, port: int) -> socket.socket | None:
        for family, host in _ADDRESSES:
            with suppress(OSError):
                inner = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                try:
                    await self._loop.sock_connect(inner, (host, port))
                except BaseException:
                    inner.close()
                    raise
                return inner
        return None

    def close(self) -> None:
        """Cut every connection."""
        for task in self._tasks:
            task.cancel()
        for pair in list(self._pairs):
            pair.cut()
