"""What the guest writes while it boots, as messages with the host's time.

Two byte streams come out of QEMU: SeaBIOS' debug port and the serial console. Both are hostile input: lines are bounded
and printable, and so is what of them is kept (`helper_log`).
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kata_runtime.helper_log import HelperLog, Lines, readable

__all__ = ["Console"]

_TAIL_LINES = 200


class Console(asyncio.Protocol):
    """Reads one of QEMU's byte streams to its end; keeps the last lines and a log.

    `on_line(text, local_ns)` is called for each line with CLOCK_MONOTONIC as of its arrival.
    """

    def __init__(self, on_line: Callable[[str, int], None], log_path: Path | None = None) -> None:
        self._on_line = on_line
        self._lines = Lines()
        self._log = HelperLog(log_path)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def attach(
        cls, end: socket.socket, on_line: Callable[[str, int], None], log_path: Path | None = None
    ) -> "Console":
        """Read from our end of the chardev's socketpair; takes the socket over."""
        loop = asyncio.get_running_loop()
        _, console = await loop.create_connection(lambda: cls(on_line, log_path), sock=end)
        return console

    def tail(self, count: int = 15) -> list[str]:
        """The last lines, the unfinished one included."""
        unfinished = readable(self._lines.partial)
        return [*self._tail, *([unfinished] if unfinished else [])][-count:]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        # Each is looked at, whatever the rate: somebody may wait for it.
        lines = [readable(line) for line in self._lines.feed(data)]
        (self._log.lines if self._log.allows(len(data)) else self._log.last)(lines)
        for text in lines:
            self._tail.append(text)
            self._on_line(text, now)

    def close(self) -> None:
        """Stop reading. Safe to repeat."""
        if self._transport is not None:
            self._transport.close()
        self._log.close(readable(self._lines.partial))
