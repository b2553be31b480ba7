"""The clock port: what time it is here, as fast as can be, for the host's offset measurement.

Bytes as in `kata_common.contract`, any number of times per connection.
"""

import asyncio
import socket
import time
from typing import Final

from kata_common.contract import CLOCK_ANSWER, CLOCK_QUESTION

__all__ = ["ClockServer"]

MAX_CONNECTIONS: Final = 8


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
            data = stream.recv(CLOCK_QUESTION.size - len(partial))
            partial += data
            if data and len(partial) == CLOCK_QUESTION.size:
                # An unread reply means a peer that doesn't keep to the protocol: BlockingIOError, and closed.
                reply = CLOCK_ANSWER.pack(bytes(partial), time.monotonic_ns(), time.time_ns())
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
