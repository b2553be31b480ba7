"""Messages of one stream that have arrived and wait to be taken."""

import asyncio
from collections import deque
from collections.abc import Callable

from kata_runtime.shim.ttrpc.errors import RpcError

__all__ = ["Inbox"]

# Bytes that may wait before the connection stops reading; one message more than that may be over it.
_LIMIT = 1 << 20
# What a message costs besides its bytes, so that empty messages can't pile up for nothing.
_OVERHEAD = 64


class Inbox:
    """A bounded queue with an end, for one reader. `on_room` is called when a full one has room again."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: RpcError | None = None
        self._arrived = asyncio.Event()
        self.on_room: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """Whether the sender should wait."""
        return self._size >= _LIMIT

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive."""
        return self._ended

    def put(self, message: bytes) -> None:
        """Add a message; one that comes after the end is dropped."""
        if self._ended:
            return
        self._messages.append(message)
        self._size += len(message) + _OVERHEAD
        self._arrived.set()

    def end(self, error: RpcError | None = None) -> None:
        """Nothing more will arrive; `error`, if any, is raised after the messages that did."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._arrived.set()

    async def get(self) -> bytes | None:
        """The next message, or None at the end.

        Raises:
            RpcError: the stream ended with an error.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        was_full = self.full
        self._size -= len(message) + _OVERHEAD
        if was_full and not self.full and self.on_room is not None:
            self.on_room()
        return message
