"""Carries connections of a vsock port to the unix socket that grpcio serves.

PyPI's grpcio has no vsock compiled in (docs/decisions/0004). The relay is part of the agent's event loop: a byte waits
for no other thread. Both directions of a connection are independent, ends of file included.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

__all__ = ["Pair", "Relay"]

CHUNK: Final = 64 * 1024
MAX_CONNECTIONS: Final = 64
# Seconds that the last close may take to hand its bytes to the host before the power goes.
LINGER: Final = 2

_buffer = memoryview(bytearray(CHUNK))


class Relay:
    """Connections to `target`, a unix socket path. Give `accepted` to an Acceptor."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.get_running_loop()
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
        pair = Pair(self._loop, stream, inner, self._ended)
        self._pairs.add(pair)
        self._idle.clear()

    def _ended(self, pair: "Pair") -> None:
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


class _Half:
    """One direction."""

    __slots__ = ("ended", "pending", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pending = memoryview(b"")
        self.ended = False


class Pair:
    """The two directions of one connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outer: socket.socket,
        inner: socket.socket,
        ended: Callable[["Pair"], None],
    ) -> None:
        self._loop = loop
        self._outer = outer
        self._inner = inner
        self._on_end = ended
        self._halves = (_Half(outer, inner), _Half(inner, outer))
        for half in self._halves:
            loop.add_reader(half.source.fileno(), self._readable, half)

    def _readable(self, half: _Half) -> None:
        try:
            count = half.source.recv_into(_buffer)
        except BlockingIOError:
            return
        except OSError:
            # A reset; what came before it has been read.
            count = 0
        if not count:
            self._end(half)
            return
        sent = self._send(half, _buffer[:count])
        if 0 <= sent < count:
            half.pending = memoryview(bytes(_buffer[sent:count]))
            self._loop.remove_reader(half.source.fileno())
            self._loop.add_writer(half.sink.fileno(), self._writable, half)

    def _writable(self, half: _Half) -> None:
        sent = self._send(half, half.pending)
        if sent < 0:
            return
        half.pending = half.pending[sent:]
        if not half.pending:
            self._loop.remove_writer(half.sink.fileno())
            self._loop.add_reader(half.source.fileno(), self._readable, half)

    def _send(self, half: _Half, data: memoryview) -> int:
        try:
            return half.sink.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # Nobody reads this direction any more. The other one may still have something to say: gRPC's last answer
            # is followed by a close that doesn't wait for our acknowledgements.
            self._end(half)
            return -1

    def _end(self, half: _Half) -> None:
        half.ended = True
        self._loop.remove_reader(half.source.fileno())
        self._loop.remove_writer(half.sink.fileno())
        with suppress(OSError):
            half.sink.shutdown(socket.SHUT_WR)
        if all(half.ended for half in self._halves):
            self.cut()

    def linger(self) -> None:
        """Let the close of the host's side wait until the host has everything (vsock honours SO_LINGER)."""
        with suppress(OSError):
            self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))

    def cut(self) -> None:
        for stream in (self._outer, self._inner):
            if stream.fileno() >= 0:
                self._loop.remove_reader(stream.fileno())
                self._loop.remove_writer(stream.fileno())
                stream.close()
        self._on_end(self)
