"""A way into a guest that is not there: ports are handlers in this process."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from kata_agent.server.listeners import UnixEndpoints

Handler = Callable[[socket.socket, int], Awaitable[None]]


class FakeTransport:
    """Implements `kata_runtime.guest.transport.Transport`.

    `handlers` maps guest ports to coroutines that get the guest's end of each connection and the host's port; ports
    without a handler refuse. Use it as an async context manager: leaving it ends the handlers and closes their sockets.
    """

    def __init__(self, handlers: dict[int, Handler] | None = None, *, grpc_address: str = "unix:/nowhere") -> None:
        self.handlers = dict(handlers or {})
        self.grpc_address = grpc_address
        self.kata_address = "vsock://3:1024"
        self._tasks: set[asyncio.Task[None]] = set()
        self._host_port = 0x4000_0000

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See Transport."""
        handler = self.handlers.get(port)
        if handler is None:
            raise ConnectionRefusedError(f"guest port {port} can't be reached: it was refused")
        self._host_port += 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        task = asyncio.create_task(self._handle(handler, theirs, self._host_port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ours, self._host_port

    async def _handle(self, handler: Handler, stream: socket.socket, host_port: int) -> None:
        with stream:
            await handler(stream, host_port)


class UnixTransport:
    """Ports of the "guest" are unix sockets, as `UnixEndpoints` makes them."""

    grpc_address = kata_address = ""

    def __init__(self, endpoints: UnixEndpoints) -> None:
        self._endpoints = endpoints

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await asyncio.get_running_loop().sock_connect(stream, str(self._endpoints.path(port)))
        return stream, 0
