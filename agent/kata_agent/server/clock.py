"""The clock port: what time it is here, as fast as can be, for the host's offset measurement.

8 bytes in, 24 bytes out: the same 8, then CLOCK_MONOTONIC and CLOCK_REALTIME in ns, big-endian int64. Any number of
times per connection (docs/architecture.md).
"""

import asyncio
import socket
import struct
import time
from typing import Final

__all__ = ["ClockServer"]

MAX_CONNECTIONS: Final = 8
_REPLY: Final = struct.Struct(">8sqq")


class ClockServer:
    """Give `accepted` to an Acceptor."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, tuple[socket.socket, bytearray]] = {}

    def accepted(self, stream: socket.socket, _: int) -> None:
        if len(self._streams) >= MAX_CONNECTIONS:
            stream.close()
            return
        fd = stream.fileno()
        self._streams[fd] = stream, bytearray()
        self._loop.add_reader(fd, self._readable, fd)

    def _readable(self, fd: int) -> None:
        stream, partial = self._streams[fd]
        try:
            data = stream.recv(8 - len(partial))
            partial += data
            if data and len(partial) == 8:
                # An unread reply means a peer that doesn't keep to the protocol: BlockingIOError, and closed.
                reply = _REPLY.pack(bytes(partial), time.monotonic_ns(), time.time_ns())
                partial.clear()
                if stream.send(reply) != len(reply):
                    data = b""
        except OSError:
            data = b""
        if not data:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        stream, _ = self._streams.pop(fd)
        self._loop.remove_reader(fd)
        stream.close()

    def close(self) -> None:
        for fd in list(self._streams):
            self._drop(fd)
