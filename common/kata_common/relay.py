"""Moves the bytes between two stream sockets, both ways, as part of the event loop: a byte waits for no other thread.

Both directions are independent, ends of file included. For gRPC and small traffic: stdio has ways of its own.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

__all__ = ["Pair", "join"]

CHUNK: Final = 64 * 1024
# Seconds that the last close may take to hand its bytes over before the power goes.
LINGER: Final = 2

# One for all: it is filled and emptied in one step of the loop, and a process has one loop that relays.
_buffer = memoryview(bytearray(CHUNK))


class _Half:
    """One direction."""

    __slots__ = ("ended", "pending", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pending = memoryview(b"")
        self.ended = False


class Pair:
    """The two directions of one connection between non-blocking sockets, which it closes. `ended` is called once."""

    def __init__(self, outer: socket.socket, inner: socket.socket, ended: Callable[["Pair"], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._outer = outer
        self._inner = inner
        self._on_end = ended
        self._halves = (_Half(outer, inner), _Half(inner, outer))
        for half in self._halves:
            self._loop.add_reader(half.source.fileno(), self._readable, half)

    def _readable(self, half: _Half) -> None:
        try:
            count = half.source.recv_into(_buffer)
        except BlockingIOError:
            return
        except OSError:
            # A reset; what came before it has been read, and nothing can be said to that end any more.
            self.cut()
            return
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
        """Let the close of the outer side wait until its peer has everything (vsock honours SO_LINGER)."""
        with suppress(OSError):
            self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))

    def cut(self) -> None:
        """End both directions now."""
        if self._outer.fileno() < 0:
            return
        for stream in (self._outer, self._inner):
            self._loop.remove_reader(stream.fileno())
            self._loop.remove_writer(stream.fileno())
            stream.close()
        self._on_end(self)


async def join(outer: socket.socket, inner: socket.socket) -> None:
    """Carry everything between two non-blocking sockets until both directions have ended; cancelled, it cuts them."""
    ended = asyncio.Event()
    pair = Pair(outer, inner, lambda _: ended.set())
    try:
        await ended.wait()
    finally:
        pair.cut()
