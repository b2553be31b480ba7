"""Bytes between a process and its streams.

Pumps run on the event loop, without threads and without a buffer that grows: a pump reads only what it can pass on, so
a slow host stops the process (back-pressure) and nobody else.

What a process wrote is always delivered, however late the host reads. What its orphans write (a background job that
kept stdout open) is delivered for LINGER seconds after the process ended; then the stream is closed.
"""

import asyncio
import errno
import fcntl
import os
import socket
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Final

__all__ = ["LINGER", "PIPE_SIZE", "Inlet", "Outlet"]

# Seconds, see above. Documented in docs/architecture.md.
LINGER: Final = 2.0
# Bytes a pipe holds: with 64 KiB the process and the pump would take turns on every write.
PIPE_SIZE: Final = 1 << 20
CHUNK: Final = 256 * 1024
# Rounds before a busy pump lets the event loop look at others.
ROUNDS: Final = 4
# Bytes of output that are remembered.
HEAD: Final = 512

# One buffer for all outlets: what the stream doesn't take at once is copied, so nothing stays in it between callbacks.
_buffer = memoryview(bytearray(CHUNK))


class _Pump:
    """Moves bytes from `source` to a sink until the end, then closes both and sets `done`."""

    def __init__(self, source: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._pending = memoryview(b"")
        self._closed = False
        self._blocked = False
        self.done = asyncio.Event()
        self.moved = 0

    def start(self) -> None:
        self._loop.add_reader(self._source, self._readable)

    def _readable(self) -> None:
        raise NotImplementedError

    def _writable(self) -> None:
        raise NotImplementedError

    def _block(self, sink: int, rest: memoryview) -> None:
        """Stop reading until the sink takes the rest."""
        self._pending = rest
        if not self._blocked:
            self._blocked = True
            self._loop.remove_reader(self._source)
            self._loop.add_writer(sink, self._writable)

    def _unblock(self, sink: int) -> None:
        self._blocked = False
        self._pending = memoryview(b"")
        self._loop.remove_writer(sink)
        self._loop.add_reader(self._source, self._readable)


class Outlet(_Pump):
    """From a process (pipe or pty master) to the host's stream."""

    def __init__(
        self, source: int, stream: socket.socket | None, *, linger: float = LINGER, keep_reading: bool = False
    ) -> None:
        """Both become the pump's, which closes them. Without a stream the bytes go nowhere.

        When the host closes the stream early, the process learns it as SIGPIPE, or with `keep_reading` (a terminal,
        which knows no such thing) goes on unheard.
        """
        super().__init__(source)
        os.set_blocking(source, False)
        if stream:
            stream.setblocking(False)
        self._stream = stream
        self._keep_reading = keep_reading
        self._linger = linger
        self._owed = -1
        self._timer: asyncio.TimerHandle | None = None
        # The first bytes, for whoever wants to know what a process that failed at once has said.
        self.head = b""

    def look(self) -> bytes:
        """The first bytes of all, those that are only just in the pipe included."""
        if not self.head and not self._closed and not self._blocked:
            self._readable()
        return self.head

    def process_ended(self) -> None:
        """From now on only what is already on its way is owed; an end of file usually comes by itself."""
        if self._closed:
            return
        # Non-zero content that the process wrote before its end sits in the pipe (or terminal) now.
        self._owed = self.moved + len(self._pending) + _readable_bytes(self._source)
        self._settle()

    def abandon(self) -> None:
        """Close now, whatever is left."""
        self._finish()

    def _settle(self) -> None:
        if self._owed >= 0 and self.moved >= self._owed and self._timer is None and not self._closed:
            self._timer = self._loop.call_later(self._linger, self._finish)

    def _readable(self) -> None:
        for _ in range(ROUNDS):
            try:
                count = os.readv(self._source, (_buffer,))
            except BlockingIOError:
                return
            except OSError:
                # A terminal whose last user has gone says EIO.
                self._finish()
                return
            if not count:
                self._finish()
                return
            if len(self.head) < HEAD:
                self.head += bytes(_buffer[: min(count, HEAD - len(self.head))])
            sent = self._send(_buffer[:count])
            if sent < 0:
                return
            self.moved += sent
            if sent < count:
                assert self._stream
                self._block(self._stream.fileno(), memoryview(bytes(_buffer[sent:count])))
                return
            self._settle()

    def _writable(self) -> None:
        assert self._stream
        sink = self._stream.fileno()
        sent = self._send(self._pending)
        if sent < 0:
            return
        self.moved += sent
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return
        self._unblock(sink)
        self._settle()

    def _send(self, data: memoryview) -> int:
        if not self._stream:
            return len(data)
        try:
            return self._stream.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The host went away.
            if not self._keep_reading:
                self._finish()
                return -1
            self._drop_stream()
            return len(data)

    def _drop_stream(self) -> None:
        if self._stream:
            self._loop.remove_writer(self._stream.fileno())
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_WR)
            self._stream.close()
            self._stream = None

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self._loop.remove_reader(self._source)
        os.close(self._source)
        self._drop_stream()
        self._pending = memoryview(b"")
        self.done.set()


class Inlet(_Pump):
    """From the host's stream to a process (pipe or pty master)."""

    def __init__(self, stream: socket.socket, sink: int, *, at_end: Callable[[int], None] | None = None) -> None:
        """Both become the pump's, which closes them. `at_end` is called with the sink before it is closed at the
        stream's end of file (a terminal needs its end-of-file character)."""
        super().__init__(stream.fileno())
        os.set_blocking(sink, False)
        stream.setblocking(False)
        self._stream = stream
        self._sink = sink
        self._at_end = at_end
        self._ending = False

    def end(self) -> None:
        """End the input after what has already arrived (CloseStdin)."""
        if self._closed:
            return
        self._ending = True
        if not self._blocked:
            self._readable()

    def process_ended(self) -> None:
        self._finish()

    abandon = process_ended

    def _readable(self) -> None:
        for _ in range(ROUNDS):
            try:
                count = self._stream.recv_into(_buffer)
            except BlockingIOError:
                if self._ending:
                    self._finish(orderly=True)
                return
            except OSError:
                self._finish(orderly=True)
                return
            if not count:
                self._finish(orderly=True)
                return
            written = self._write(_buffer[:count])
            if written < 0:
                return
            self.moved += written
            if written < count:
                self._block(self._sink, memoryview(bytes(_buffer[written:count])))
                return
        if self._ending:
            self._loop.call_soon(self._more)

    def _more(self) -> None:
        if not self._closed and not self._blocked:
            self._readable()

    def _writable(self) -> None:
        written = self._write(self._pending)
        if written < 0:
            return
        self.moved += written
        if written < len(self._pending):
            self._pending = self._pending[written:]
            return
        self._unblock(self._sink)
        if self._ending:
            self._more()

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._sink, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EINTR:
                return 0
            # The process closed its input; the host learns it by the end of the stream.
            self._finish()
            return -1

    def _finish(self, *, orderly: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        if orderly and self._at_end:
            with suppress(OSError):
                self._at_end(self._sink)
        os.close(self._sink)
        self._stream.close()
        self._pending = memoryview(b"")
        self.done.set()


def _readable_bytes(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), "little")
    except OSError:
        return 0
