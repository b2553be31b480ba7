"""A unix socket whose connections are carried to another stream socket, in this process.

For clients that can't dial AF_VSOCK (grpcio's wheels), and small traffic: gRPC, not stdio.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

__all__ = ["carry", "relay"]

_log = logging.getLogger("kata.relay")

Dial = Callable[[], Awaitable[socket.socket]]

_BLOCK = 256 * 1024


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
        with server:
            try:
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(_copy(client, server))
                    directions.create_task(_copy(server, client))
            except* OSError as errors:
                # An end that breaks takes its connection down, nobody else's.
                _log.debug("relay: connection broke", extra={"reason": str(errors.exceptions[0])})


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while size := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(target, view[:size])
    with contextlib.suppress(OSError):  # it may have gone meanwhile
        target.shutdown(socket.SHUT_WR)
