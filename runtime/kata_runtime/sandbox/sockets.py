"""Unix sockets of the host that a container mounts: connections to them in the guest come out here.

For each a stream to the agent waits (Port.SOCKETS); when the agent says that somebody has connected, the host's socket
is dialled and the bytes go both ways, while another stream waits. So a guest reaches the very sockets that its
containers mount, and nothing of the host listens to guests.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from kata_common.contract import CONNECTED, HOST_SOCKET, Port
from kata_common.relay import join
from kata_runtime.guest.transport import Transport
from kata_runtime.loop import beside

__all__ = ["GUEST_SOCKETS", "HostSocket", "forwarded"]

_log = logging.getLogger("kata.sockets")

# As the agent has it.
GUEST_SOCKETS: Final = "/run/kata-containers/sockets"
_MAX_CONNECTIONS: Final = 256
# Seconds until the next try where the agent takes no stream, for as long as the container lives.
_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class HostSocket:
    """One of them: `descriptor` (O_PATH) is the socket itself, wherever a path may lead by now."""

    number: int
    descriptor: int
    name: str

    @property
    def place(self) -> str:
        """Where it is in the guest."""
        return f"{GUEST_SOCKETS}/{self.number}"


@asynccontextmanager
async def forwarded(sockets: Sequence[HostSocket], transport: Transport) -> AsyncIterator[None]:
    """Connect who connects to these in the guest, for the block."""
    async with beside((f"socket {each.name}", _serve(each, transport)) for each in sockets):
        yield


async def _serve(each: HostSocket, transport: Transport) -> None:
    busy: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                stream, _ = await transport.connect(Port.SOCKETS)
            except OSError as error:
                _log.debug("no stream for a socket of the host", extra={"error": str(error)})
                await asyncio.sleep(_PAUSE)
                continue
            if not await _wanted(stream, each.number):
                stream.close()
                await asyncio.sleep(_PAUSE)
                continue
            if len(busy) >= _MAX_CONNECTIONS:
                await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(_carry(stream, each))
            busy.add(task)
            task.add_done_callback(busy.discard)
    finally:
        for task in busy:
            task.cancel()
        if busy:
            await asyncio.wait(busy)


async def _wanted(stream: socket.socket, number: int) -> bool:
    """Wait, however long, until somebody in the guest connects; whether the agent lives on."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(stream, HOST_SOCKET.pack(number))
        return await loop.sock_recv(stream, len(CONNECTED)) == CONNECTED
    except OSError:
        return False
    except BaseException:
        stream.close()
        raise


async def _carry(stream: socket.socket, each: HostSocket) -> None:
    """To the host's socket; who finds nobody there is hung up on, as by a server that ends."""
    with stream, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as server:
        try:
            # Does not wait but where its queue is full, which a client is told by a refusal as well.
            server.connect(f"/proc/self/fd/{each.descriptor}")
        except OSError as error:
            _log.info("nobody listens at %s, which a container mounts: %s", each.name, os.strerror(error.errno or 0))
            return
        with suppress(OSError):
            await join(stream, server)
