"""A guest's clock port, as a handler of `FakeTransport`."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable

from support.fake_transport import Handler

__all__ = ["answering"]


def answering(change: Callable[[int, int], tuple[int, int]]) -> Handler:
    """A guest's clock port; `change` makes (echo, monotonic) of the question and the true time."""

    async def serve(stream: socket.socket, _: int) -> None:
        loop = asyncio.get_running_loop()
        while question := await loop.sock_recv(stream, 8):
            echo, monotonic = change(struct.unpack(">q", question)[0], time.monotonic_ns())
            await loop.sock_sendall(stream, struct.pack(">qqq", echo, monotonic, 0))

    return serve
