"""One socket: frames in and out. What they mean is the business of the subclasses in `server` and `client`."""

import asyncio
from collections import deque
from typing import cast

from kata_runtime.shim.ttrpc import frames
from kata_runtime.shim.ttrpc.errors import ConnectionLost, ResourceExhausted
from kata_runtime.shim.ttrpc.frames import Frame, Oversized
from kata_runtime.shim.ttrpc.stream import Inbox

__all__ = ["Connection"]

# ttrpc has no flow control of its own. A stream that nobody reads may hold up its neighbours for this long (seconds);
# then it fails, alone. containerd/ttrpc (stream.go, services.go) waits as long.
STALL_LIMIT = 1.0


class Connection(asyncio.Protocol):
    """Base of both sides. All methods are to be called in the event loop's thread."""

    def __init__(self) -> None:
        self._decoder = frames.Decoder()
        self._frames: deque[Frame | Oversized] = deque()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._stalled: Inbox | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.lost = asyncio.Event()

    # For subclasses.

    def frame_received(self, frame: Frame) -> None:
        """Act on a frame."""
        raise NotImplementedError

    def oversized_received(self, frame: Oversized) -> None:
        """Act on a frame whose data was too long and is being skipped."""
        raise NotImplementedError

    def ended(self) -> None:
        """The connection is gone; called once."""
        raise NotImplementedError

    # For users.

    @property
    def open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def partial(self) -> bool:
        """Whether the other side has sent only a part of a frame so far."""
        return self._decoder.partial

    def send(self, stream: int, kind: int, flags: int, data: bytes = b"") -> None:
        """Put a frame on its way. `drain` says when the other side has kept up.

        Raises:
            ConnectionLost: there is no connection any more.
            ResourceExhausted: `data` is longer than a frame may be; nothing was sent.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost("the ttrpc connection is closed")
        try:
            self._transport.write(frames.encode(Frame(stream, kind, flags, data)))
        except ValueError as error:
            raise ResourceExhausted(str(error)) from error

    async def drain(self) -> None:
        """Wait while the other side takes in less than we send."""
        await self._writable.wait()

    def deliver(self, inbox: Inbox, message: bytes) -> None:
        """Put a message into a stream's inbox; a full one stops reading until it has room or `STALL_LIMIT` is over."""
        inbox.put(message)
        if inbox.full and not inbox.ended and self._stalled is None and self._transport is not None:
            self._stalled = inbox
            inbox.on_room = self._unstall
            self._transport.pause_reading()
            self._stall_timer = asyncio.get_running_loop().call_later(STALL_LIMIT, self._stall_over)

    async def close(self, patience: float = 1.0) -> None:
        """Send what is waiting, at most for `patience` seconds, and close."""
        if self._transport is None:
            return
        self._transport.close()
        try:
            async with asyncio.timeout(patience):
                await self.lost.wait()
        except TimeoutError:
            self._transport.abort()
            await self.lost.wait()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._frames.extend(self._decoder.feed(data))
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_stall()
        self._frames.clear()
        self._writable.set()
        self.ended()
        self.lost.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _pump(self) -> None:
        while self._frames and self._stalled is None:
            frame = self._frames.popleft()
            if isinstance(frame, Frame):
                self.frame_received(frame)
            else:
                self.oversized_received(frame)

    def _stall_over(self) -> None:
        if self._stalled is not None:
            self._stalled.end(ResourceExhausted(f"the stream was not read for {STALL_LIMIT:g} s while more arrived"))
        self._unstall()

    def _unstall(self) -> None:
        if self._stalled is None:
            return
        self._clear_stall()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        # Not at once: the caller is a reader in the middle of taking a message.
        asyncio.get_running_loop().call_soon(self._pump)

    def _clear_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._stalled is not None:
            self._stalled.on_room = None
        self._stalled = self._stall_timer = None
