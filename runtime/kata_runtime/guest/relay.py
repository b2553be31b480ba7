"""A unix socket whose connections are carried to another stream socket, in this process.

For clients that can't dial AF_VSOCK (grpcio's wheels), and small traffic: gRPC, not stdio.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kata_common.relay import join

__all__ = ["carry", "relay"]

_log = logging.getLogger("kata.relay")

# Opens a non-blocking socket.
Dial = Callable[[], Awaitable[socket.socket]]


@asynccontextmanager
async def relay(path: Path, dial: Dial) -> AsyncIterator[None]:
    """Listen at `path` for the block; each connection gets its own socket from `dial`.

    Both ends see the other's end of file, each direction by itself; a `dial` that fails (OSError) ends its client.
    Leaving the block ends all connections and removes the socket.
    """
    # Not asyncio's server: its tasks belong to nobody, and before Python 3.12 it has no way to end its connections.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))
        try:
            listener.listen(64)
            serving = asyncio.create_task(_serve(listener, dial))
            try:
                yield
            finally:
                serving.cancel()
                await asyncio.wait((serving,))
        finally:
            os.unlink(path)  # noqa: PTH108 - of a socket in /run, which does not block


async def _serve(listener: socket.socket, dial: Dial) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as connections:
        while True:
            client, _ = await loop.sock_accept(listener)
            connections.create_task(carry(client, dial))


async def carry(client: socket.socket, dial: Dial) -> None:
    """Carry one connection to what `dial` opens, until both directions have ended. Takes `client` over."""
    with client:
        try:
            server = await dial()
        except OSError as error:
            _log.debug("relay: no way to the guest", extra={"reason": str(error)})
            return
        await join(client, server)
