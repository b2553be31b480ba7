"""Logs of helpers and of the guest's consoles: whoever is in a guest can make each of them talk without end.

So a log has so many bytes, and gets so many in a second. What is beyond is left out, and a line says how much that was.
What came last is kept, for it may say why the helper ended. Lines are printable: people look at logs on terminals.
"""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kata_common.text import printable

__all__ = ["HelperLog", "Lines", "readable"]

LINE_LIMIT = 1024
# Of a file; at once; in a second; of what came last. All in bytes.
SIZE = 1 << 20
BURST = 256 << 10
RATE = 32 << 10
LAST = 16 << 10
# SeaBIOS clears the screen by control sequences (ECMA-48, 5.4), shells colour by them.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_c])")


def readable(line: bytes) -> str:
    """A line as text that can't do anything to a terminal; what firmware and shells colour by is left out."""
    text = _ANSI.sub("", line.decode("utf-8", errors="replace")).expandtabs().rstrip()
    return printable(text, len(text))


class Lines:
    """Cuts a byte stream into lines of bounded length (pure)."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
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

    def skip(self, chunk: bytes, keep: int) -> list[bytes]:
        """As `feed`, for somebody who wants the last `keep` bytes only."""
        if len(chunk) <= keep:
            return self.feed(chunk)
        self._partial = b""
        return self.feed(chunk[-keep:])[1:]  # the first is part of a line


class HelperLog:
    """One bounded log; without a path it only says what is within the rate. `clock` in s."""

    def __init__(self, path: Path | None, *, size: int = SIZE, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError: the file can't be opened."""
        self._file = path.open("ab", buffering=0) if path else None
        self._left = size
        self._clock = clock
        self._tokens = float(BURST)
        self._since = clock()
        # Bytes that were left out since the last line, and the end of them.
        self._missing = 0
        self._last: list[str] = []
        self._flooded = False

    def allows(self, count: int) -> bool:
        """Whether `count` more bytes are within the rate. Of what isn't, only the end is worth a look."""
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._since) * RATE, BURST)
        self._since = now
        # Once it was too much, some calm is needed before it goes on: else it would be a line here and a line there.
        if self._tokens < max(count, BURST // 4 if self._flooded else 0):
            self._flooded = True
            self._missing += count
            return False
        self._flooded = False
        self._tokens -= count
        return True

    def lines(self, lines: Iterable[str]) -> None:
        """Lines within the rate."""
        for line in lines:
            if len(line) < self._left:
                self._tell_last()
                self._left -= len(line) + 1
                self._write(line)
            else:
                self._left = 0
                self._missing += len(line) + 1
                self.last([line])

    def last(self, lines: Iterable[str]) -> None:
        """The end of what is left out."""
        self._last = [*self._last, *lines]
        while sum(map(len, self._last)) > LAST:
            del self._last[: len(self._last) // 8 + 1]

    def close(self, partial: str = "") -> None:
        """Add what came last; `partial` is a line that has no end. Safe to repeat."""
        self._tell_last()
        if partial:
            self._write(partial)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _tell_last(self) -> None:
        """Say what is left out, and then what came last of it."""
        there = sum(len(line) + 1 for line in self._last)
        if self._missing > there:
            self._write(f"[{self._missing - there} bytes are left out]")
        for line in self._last:
            self._write(line)
        self._missing, self._last = 0, []
        self._left -= there

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line.encode(errors="backslashreplace") + b"\n")
        except OSError:
            # A full disk costs the log, and nothing else.
            self._file.close()
            self._file = None
