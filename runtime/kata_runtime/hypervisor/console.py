"""What the guest writes while it boots, as messages with the host's time.

Two byte streams come out of QEMU: SeaBIOS' debug port and the serial console. Both are hostile input: lines and their
number are bounded, control characters never reach a terminal.
"""

import asyncio
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kata_common.text import printable

__all__ = ["Console", "Lines", "readable"]

_LINE_LIMIT = 1024
_TAIL_LINES = 200
_LOG_LIMIT = 4 << 20
# SeaBIOS clears the screen by control sequences (ECMA-48, 5.4), shells colour by them.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_c])")


def readable(line: bytes) -> str:
    """A console line as text that can't do anything to a terminal: what firmware and shells colour by is left out."""
    text = _ANSI.sub("", line.decode("utf-8", errors="replace")).expandtabs()
    return printable(text.rstrip(), _LINE_LIMIT)


class Lines:
    """Cuts a byte stream into lines of bounded length (pure)."""

    def __init__(self, limit: int = _LINE_LIMIT) -> None:
        self._limit = limit
        self._partial = b""

    @property
    def partial(self) -> bytes:
        """What came after the last line's end."""
        return self._partial

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes; a line longer than the limit comes in pieces."""
        *lines, rest = (self._partial + chunk).split(b"\n")
        pieces = [line[i : i + self._limit] for line in lines for i in range(0, max(len(line), 1), self._limit)]
        while len(rest) > self._limit:
            pieces.append(rest[: self._limit])
            rest = rest[self._limit :]
        self._partial = rest
        return [piece.rstrip(b"\r") for piece in pieces]


class Console(asyncio.Protocol):
    """Reads one of QEMU's byte streams to its end; keeps the last lines and, up to 4 MiB, a file.

    `on_line(text, local_ns)` is called for each line with CLOCK_MONOTONIC as of its arrival.
    """

    def __init__(self, on_line: Callable[[str, int], None], log_path: Path | None = None) -> None:
        self._on_line = on_line
        self._lines = Lines()
        self._log = log_path.open("ab", buffering=0) if log_path else None
        self._logged = 0
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
        if self._log is not None and self._logged < _LOG_LIMIT:
            self._logged += len(data)
            try:
                self._log.write(data)
            except OSError:
                # A full disk costs the log; whoever waits for a line must not wait for ever.
                self._logged = _LOG_LIMIT
        for line in self._lines.feed(data):
            text = readable(line)
            self._tail.append(text)
            self._on_line(text, now)

    def close(self) -> None:
        """Stop reading. Safe to repeat."""
        if self._transport is not None:
            self._transport.close()
        if self._log is not None:
            self._log.close()
            self._log = None
