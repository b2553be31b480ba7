"""Streams that the host opened and has not yet been told what they are for.

The host opens a stream to the stdio port first and names it, by its own port number, in a later call
(docs/decisions/0002). Between the two the stream waits here. Whoever opens streams and never names them gets them
closed.
"""

import asyncio
import socket
from typing import Final

from kata_agent.errors import NotFoundError, ResourceError

__all__ = ["StreamRoom"]

MAX_WAITING: Final = 256
# Seconds that a stream may wait to be named, and that a call waits for a stream it names.
CLAIM_WITHIN: Final = 30.0
ARRIVE_WITHIN: Final = 5.0


class StreamRoom:
    """Accepted streams by the host's port number. Belongs to one event loop."""

    def __init__(self, *, claim_within: float = CLAIM_WITHIN, max_waiting: int = MAX_WAITING) -> None:
        self._claim_within = claim_within
        self._max_waiting = max_waiting
        self._waiting: dict[int, tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._wanted: dict[int, asyncio.Future[socket.socket]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, stream: socket.socket, port: int) -> None:
        """Take a stream that the host opened from `port`. Closes it where there are too many, or the port is taken."""
        wanted = self._wanted.pop(port, None)
        if wanted is not None and not wanted.done():
            wanted.set_result(stream)
            return
        if len(self._waiting) >= self._max_waiting or port in self._waiting:
            stream.close()
            return
        timer = asyncio.get_running_loop().call_later(self._claim_within, self._expire, port)
        self._waiting[port] = stream, timer

    async def claim(self, port: int, *, within: float = ARRIVE_WITHIN) -> socket.socket:
        """The stream from the host's `port`, which is the caller's from now on (non-blocking).

        Raises NotFoundError where none arrives in time.
        """
        found = self._waiting.pop(port, None)
        if found is not None:
            stream, timer = found
            timer.cancel()
            return stream
        if port in self._wanted:
            raise ResourceError(f"stdio stream {port} is named by two calls: open one stream for each channel")
        wanted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._wanted[port] = wanted
        try:
            async with asyncio.timeout(within):
                return await wanted
        except (TimeoutError, asyncio.CancelledError) as error:
            if wanted.done() and not wanted.cancelled():
                wanted.result().close()  # it came in the same moment
            if isinstance(error, asyncio.CancelledError):
                raise
            raise NotFoundError(
                f"no stdio stream from the host's port {port} arrived within {within:g} s: "
                "open it before the call that names it"
            ) from None
        finally:
            self._wanted.pop(port, None)

    def close(self) -> None:
        """Close every stream that nobody claimed."""
        for stream, timer in self._waiting.values():
            timer.cancel()
            stream.close()
        self._waiting.clear()
        for wanted in self._wanted.values():
            wanted.cancel()

    def _expire(self, port: int) -> None:
        stream, _ = self._waiting.pop(port)
        stream.close()
