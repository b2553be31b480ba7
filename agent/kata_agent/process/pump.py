"""Bytes between a process and its streams.

All pumps of the agent run in one thread of their own (`PumpThread`), without a buffer that grows: a pump reads only
what it can pass on, so a slow host stops the process (back-pressure) and nobody else. Why a thread, and why splice one
way only: docs/decisions/0012.

What a process wrote is always delivered, however late the host reads. What its orphans write (a background job that
kept stdout open) is delivered for LINGER seconds after the process ended; then the stream is closed.
"""

import asyncio
import errno
import fcntl
import os
import select
import socket
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

__all__ = ["LINGER", "MAX_WAITING", "PIPE_SIZE", "Inlet", "Outlet", "PumpThread"]

# Seconds, see above. Documented in docs/architecture.md.
LINGER: Final = 2.0
# Bytes a pipe holds: with 64 KiB the process and the pump would take turns on every write.
PIPE_SIZE: Final = 1 << 20
# Bytes that a pump moves in one go, and how many may have a buffer of that size that waits for the host; others get
# small ones then.
CHUNK: Final = PIPE_SIZE
MAX_WAITING: Final = 16
SMALL_CHUNK: Final = 16 * 1024
# Bytes of output that are remembered.
HEAD: Final = 512


class PumpThread:
    """Runs pumps. Its methods may be called by any thread; pumps are touched by the thread alone."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._calls: deque[Callable[[], None]] = deque()
        self._pumps: dict[int, _Pump] = {}
        self._busy: set[_Pump] = set()
        self._timers: dict[_Pump, float] = {}
        self._thread: threading.Thread | None = None
        self._ending = self._closed = False
        # Nothing stays in it between turns of pumps, unless one takes it away (`lend`).
        self._buffer: memoryview | None = None
        self._lent = 0

    def call(self, work: Callable[[], None]) -> None:
        """Have the thread do `work`, after what it was given before. Once it is closed there is nothing to do it on."""
        if self._closed:
            return
        if self._thread is None:
            # With the first container: until then nobody needs it.
            self._epoll.register(self._wake, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="stdio", daemon=True)
            self._thread.start()
        self._calls.append(work)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Abandon every pump and end the thread."""
        if self._closed:
            return
        if self._thread is not None:
            self.call(self._end)
            self._thread.join()
        self._closed = True
        self._epoll.close()
        os.close(self._wake)

    # From here on in the thread.

    def watch(self, fd: int, pump: "_Pump", events: int) -> None:
        """Give the pump a turn whenever `fd` becomes ready. Edge-triggered: one registration for its life."""
        self._pumps[fd] = pump
        self._epoll.register(fd, events | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        if self._pumps.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def again(self, pump: "_Pump") -> None:
        """Give the pump a turn without waiting for anything."""
        self._busy.add(pump)

    def finish_in(self, pump: "_Pump", seconds: float) -> None:
        """Have the pump finish then."""
        self._timers[pump] = time.monotonic() + seconds

    def gone(self, pump: "_Pump") -> None:
        """It needs no more turns."""
        self._busy.discard(pump)
        self._timers.pop(pump, None)

    def buffer(self) -> memoryview:
        """The buffer of this turn."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(CHUNK if self._lent < MAX_WAITING else SMALL_CHUNK))
        return self._buffer

    def lend(self) -> memoryview:
        """The same, the pump's until it gives it back."""
        buffer = self.buffer()
        self._buffer = None
        self._lent += 1
        return buffer

    def give_back(self, buffer: memoryview) -> None:
        """What `lend` gave."""
        self._lent -= 1
        if self._buffer is None or len(self._buffer) < len(buffer):
            self._buffer = buffer

    def _run(self) -> None:
        # Of this thread alone. The kernel lets a process that writes go on until its pipe is full or its time is over
        # (sched(7)), instead of changing to the pump at each write.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while not self._ending:
            turns, self._busy = self._busy, set()
            for fd, _ in self._epoll.poll(0 if turns else self._patience()):
                if fd == self._wake:
                    os.eventfd_read(fd)
                elif fd in self._pumps:
                    turns.add(self._pumps[fd])
            while self._calls:
                self._calls.popleft()()
            for pump in turns:
                self._turn(pump)
            self._expire()

    def _turn(self, pump: "_Pump") -> None:
        if pump.closed:
            return
        try:
            pump.turn()
        except Exception as error:
            # A mistake of ours, which must not be the end of all others.
            pump.failed(error)
            pump.finish()

    def _patience(self) -> float | None:
        return max(min(self._timers.values()) - time.monotonic(), 0) if self._timers else None

    def _expire(self) -> None:
        if self._timers:
            now = time.monotonic()
            for pump in [pump for pump, due in self._timers.items() if due <= now]:
                pump.finish()

    def _end(self) -> None:
        self._ending = True
        for pump in set(self._pumps.values()):
            pump.finish()


class _Pump:
    """Moves bytes from a source to a sink until the end, then closes both and sets `done`."""

    def __init__(self, pumps: PumpThread) -> None:
        self._pumps = pumps
        self._loop = asyncio.get_running_loop()
        self.closed = False
        self.done = asyncio.Event()
        self.moved = 0

    def abandon(self) -> None:
        """Close soon, whatever is left."""
        self._pumps.call(self.finish)

    # From here on in the pumps' thread.

    def turn(self) -> None:
        """Move what can be moved, but let others have their turns."""
        raise NotImplementedError

    def finish(self) -> None:
        """Close both ends. Safe to repeat."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Have the event loop tell of an error as it tells of those in its own callbacks."""
        context = {"message": f"{type(self).__name__} failed", "exception": error}
        self._tell(lambda: self._loop.call_exception_handler(context))

    def _finished(self) -> None:
        self._pumps.gone(self)
        self._tell(self.done.set)

    def _tell(self, news: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(news)


class Outlet(_Pump):
    """From a process (pipe or pty master) to the host's stream."""

    def __init__(
        self,
        pumps: PumpThread,
        source: int,
        stream: socket.socket | None,
        *,
        linger: float = LINGER,
        keep_reading: bool = False,
    ) -> None:
        """Both ends become the pump's, which closes them. Without a stream the bytes go nowhere.

        When the host closes the stream early, the process learns it as SIGPIPE, or with `keep_reading` (a terminal,
        which knows no such thing) goes on unheard.
        """
        super().__init__(pumps)
        self._source = source
        self._stream = stream
        self._keep_reading = keep_reading
        self._linger = linger
        self._owed = -1
        self._lent: memoryview | None = None
        # What was read and not yet sent; within the lent buffer.
        self._pending = memoryview(b"")
        # The first bytes, for whoever wants to know what a process that failed at once has said.
        self.head = b""
        os.set_blocking(source, False)
        if stream:
            stream.setblocking(False)

    def start(self) -> None:
        """Begin."""
        self._pumps.call(self._begin)

    async def look(self) -> bytes:
        """The first bytes of all, those that are only just in the pipe included."""
        looked = asyncio.Event()

        def look() -> None:
            if not self.head and not self.closed:
                self.turn()
            self._tell(looked.set)

        self._pumps.call(look)
        await looked.wait()
        return self.head

    def process_ended(self) -> None:
        """From now on only what is already on its way is owed; an end of file usually comes by itself."""
        self._pumps.call(self._count_owed)

    def _begin(self) -> None:
        self._pumps.watch(self._source, self, select.EPOLLIN)
        if self._stream:
            self._pumps.watch(self._stream.fileno(), self, select.EPOLLOUT)

    def _count_owed(self) -> None:
        if not self.closed:
            # What the process wrote before its end sits in the pipe (or terminal) now.
            self._owed = self.moved + len(self._pending) + _readable_bytes(self._source)
            self._settle()

    def _settle(self) -> None:
        if self._owed >= 0 and self.moved >= self._owed:
            self._owed = -1
            self._pumps.finish_in(self, self._linger)

    def turn(self) -> None:
        """A chunk, and the rest of the one before it."""
        if self._pending and not self._send():
            return
        buffer = self._pumps.buffer()
        try:
            count = os.readv(self._source, (buffer,))
        except BlockingIOError:
            return
        except OSError:
            count = 0  # a terminal whose last user has gone says EIO
        if not count:
            self.finish()
            return
        if len(self.head) < HEAD:
            self.head += bytes(buffer[: min(count, HEAD - len(self.head))])
        self._pending = buffer[:count]
        if self._send():
            self._pumps.again(self)
        elif self._pending:
            # Until the host takes the rest, which gives an event.
            self._lent = self._pumps.lend()

    def _send(self) -> bool:
        """Send what is pending; whether all of it is gone and more is wanted."""
        while self._pending:
            try:
                sent = self._stream.send(self._pending) if self._stream else len(self._pending)
            except BlockingIOError:
                return False
            except OSError:
                # The host went away.
                if not self._keep_reading:
                    self.finish()
                    return False
                self._drop_stream()
                continue
            self.moved += sent
            self._pending = self._pending[sent:]
        if self._lent is not None:
            self._pumps.give_back(self._lent)
            self._lent = None
        self._settle()
        return True

    def _drop_stream(self) -> None:
        if self._stream:
            self._pumps.forget(self._stream.fileno())
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_WR)
            self._stream.close()
            self._stream = None

    def finish(self) -> None:
        """See _Pump."""
        if self.closed:
            return
        self.closed = True
        self._pumps.forget(self._source)
        os.close(self._source)
        self._drop_stream()
        self._pending = memoryview(b"")
        if self._lent is not None:
            self._pumps.give_back(self._lent)
            self._lent = None
        self._finished()


class Inlet(_Pump):
    """From the host's stream to a process (pipe or pty master)."""

    def __init__(
        self, pumps: PumpThread, stream: socket.socket, sink: int, *, at_end: Callable[[int], None] | None = None
    ) -> None:
        """Both ends become the pump's, which closes them. `at_end` is called with the sink before it is closed at the
        stream's end of file (a terminal needs its end-of-file character)."""
        super().__init__(pumps)
        self._stream = stream
        self._sink = sink
        self._at_end = at_end
        self._ending = False
        # A terminal can't be spliced to.
        self._splices = at_end is None
        self._pending = b""
        os.set_blocking(sink, False)
        stream.setblocking(False)

    def start(self) -> None:
        """Begin."""
        self._pumps.call(self._begin)

    def end(self) -> None:
        """End the input after what has already arrived (CloseStdin)."""
        self._pumps.call(self._end)

    def process_ended(self) -> None:
        """Nobody will read what is left."""
        self.abandon()

    def _begin(self) -> None:
        self._pumps.watch(self._stream.fileno(), self, select.EPOLLIN | select.EPOLLRDHUP)
        self._pumps.watch(self._sink, self, select.EPOLLOUT)

    def _end(self) -> None:
        if not self.closed:
            self._ending = True
            self.turn()

    def turn(self) -> None:
        """A chunk."""
        try:
            moved = self._splice() if self._splices else self._copy()
        except BlockingIOError:
            if self._ending and not self._arrived():
                self.finish(orderly=True)
            return
        except BrokenPipeError:
            # The process closed its input; the host learns it by the end of the stream, which is a reset where bytes
            # are left in it.
            with suppress(OSError):
                self._stream.recv_into(self._pumps.buffer())
            self.finish()
            return
        except OSError:
            moved = 0  # the host went away
        if not moved:
            self.finish(orderly=True)
            return
        self.moved += moved
        self._pumps.again(self)

    def _splice(self) -> int:
        # One copy instead of two. What finds no place in the pipe stays in the stream.
        try:
            return os.splice(self._stream.fileno(), self._sink, CHUNK, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._splices = False
            return self._copy()

    def _copy(self) -> int:
        """Bytes that the sink took; 0 is the end of the stream."""
        if not self._pending:
            self._pending = self._stream.recv(SMALL_CHUNK)
            if not self._pending:
                return 0
        try:
            written = os.write(self._sink, self._pending)
        except BlockingIOError:
            raise
        except OSError as error:
            # Of a terminal whose users have gone: EIO.
            raise BrokenPipeError(error.errno, "nobody reads the input") from error
        self._pending = self._pending[written:]
        return written

    def _arrived(self) -> bool:
        """Whether something waits for room in the sink."""
        if self._pending:
            return True
        try:
            return bool(self._stream.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def finish(self, *, orderly: bool = False) -> None:
        """See _Pump."""
        if self.closed:
            return
        self.closed = True
        self._pumps.forget(self._stream.fileno())
        self._pumps.forget(self._sink)
        if orderly and self._at_end:
            with suppress(OSError):
                self._at_end(self._sink)
        os.close(self._sink)
        self._stream.close()
        self._pending = b""
        self._finished()


def _readable_bytes(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), "little")
    except OSError:
        return 0
